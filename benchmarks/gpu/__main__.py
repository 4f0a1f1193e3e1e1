"""Builds, checks and times every GPU kernel on this machine: ``make test-gpu``.

    python -m benchmarks.gpu [--json FILE] [--no-times] [--no-training] [--seconds 450]

Checks every CUDA and Triton kernel against float64 references on the CPU, on fresh inputs (the seed is
printed), with free memory full of NaN, three times each with bit-identical results; trains every registered
mixer for 200 steps in bfloat16; then times the kernels beside mamba-ssm, fla, mlstm-kernels and SDPA where
they are installed, in bytes, operations and percentages of a bound, and says which targets are met. Exit
status: 0, 1 if a check or a training failed or was not reached, 2 if there is no GPU to run on.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import agreement, chunked, delta, peers, targets, timing, training, walks
from benchmarks.gpu.agreement import Case, Result
from longseq.core.files import atomic_path
from longseq.core.kernels import nvrtc
from longseq.core.ops import _triton, backends

# Of --seconds: checks may take up to the first part, training up to the second; timings take what is left.
CHECKS, TRAINING = 0.5, 0.75


def options_of(argv: Sequence[str]) -> argparse.Namespace:
    """Returns the command line's options."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", type=Path, help="also write everything to this file")
    parser.add_argument("--no-times", action="store_true", help="time nothing")
    parser.add_argument("--no-training", action="store_true", help="train nothing")
    parser.add_argument("--seconds", type=float, default=450, help="begin nothing more after this long")
    parser.add_argument("--clock", type=float, default=1.755e9, help="multiprocessors' Hz, for the bound")
    options = parser.parse_args(list(argv))
    if options.seconds <= 0 or options.clock <= 0:
        parser.error("--seconds and --clock must be above 0")
    return options


def unavailable() -> str | None:
    """Returns in one line why the kernels cannot run here, or None."""
    for name, (there, note) in (("CUDA", nvrtc.describe()), ("Triton", _triton.describe())):
        if not there:
            return f"The {name} kernels cannot run here: {note}"
    return None


def check_all(cases: Iterable[Case], device: torch.device, deadline: float) -> list[Result]:
    """Runs checks and prints a line each; what is not reached before the deadline has not passed."""
    found = []
    for case in cases:
        if time.perf_counter() > deadline:
            row: Result = {"check": case.name, "ok": False, "why": "out of time"}
            print(f"  not run: {case.name} (out of time)", flush=True)
        else:
            row = agreement.compare(case, device)
            print(agreement.line(row), flush=True)
        found.append(row)
    return found


def time_all(device: torch.device, rates: timing.Rates, deadline: float) -> list[Result]:
    """Times what there is to time until the deadline."""
    rates_in_words = (
        f"bounds from {rates.exponentials / 1e12:.2f} Texp/s, {rates.memory / 1e12:.2f} TB/s, "
        f"{rates.products / 1e12:.0f} TFLOP/s"
    )
    print(rates_in_words, flush=True)
    found: list[Result] = []
    for case in chain(delta.cases(device), peers.cases(device)):
        if time.perf_counter() > deadline:
            print(f"  out of time: {case.family} B {case.batch} L {case.length} and what follows")
            return found
        found += timing.time_case(case, rates)
        del case
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return found


def main(argv: Sequence[str]) -> int:
    """Runs everything.

    Args:
        argv: options.

    Returns:
        The exit status.
    """
    options = options_of(argv)
    begin = time.perf_counter()
    reason = unavailable()
    if reason is not None:
        print(reason, file=sys.stderr)
        return 2
    seed = torch.seed() % (1 << 31)
    torch.manual_seed(seed)
    return run(options, torch.device("cuda"), begin, seed)


def run(options: argparse.Namespace, device: torch.device, begin: float, seed: int) -> int:
    """Checks, trains and times on a device.

    Args:
        options: from ``options_of``.
        device: where.
        begin: when, by ``time.perf_counter``.
        seed: that torch was given.

    Returns:
        The exit status.
    """
    name = torch.cuda.get_device_name(device)
    about = {"device": name, "torch": torch.__version__, "nvrtc": nvrtc.version(), "seed": seed}
    print(f"{name}, torch {torch.__version__}, NVRTC {nvrtc.version()}, seed {seed}")
    for backend, there, why in backends.describe():
        print(f"  {backend}: {'available' if there else 'no'} ({why})")
    found = check_all(
        chain(walks.cases(), chunked.cases(), delta.checks()), device, begin + CHECKS * options.seconds
    )
    print(f"built and checked in {time.perf_counter() - begin:.0f} s")
    trained: list[Result] = []
    if not options.no_training:
        trained = training.train_all(device, begin + TRAINING * options.seconds)
    timed, judged = [], []
    if not options.no_times:
        timed = time_all(device, timing.measure_rates(options.clock), begin + options.seconds)
        judged = targets.verdicts(timed)
        print("targets:")
        for row in judged:
            print(targets.line(row))
    seconds = time.perf_counter() - begin
    if options.json:
        content = {**about, "seconds": seconds, "checks": found, "training": trained, "times": timed}
        write(options.json, {**content, "targets": judged})
    return summary(found, trained, seconds)


def write(file: Path, content: dict[str, Any]) -> None:
    """Writes the results, whole or not at all."""
    with atomic_path(file) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def summary(found: list[Result], trained: list[Result], seconds: float) -> int:
    """Prints how many checks and trainings passed; returns the exit status."""
    good, finite = (sum(bool(row["ok"]) for row in rows) for rows in (found, trained))
    print(
        f"{good} of {len(found)} checks passed, {finite} of {len(trained)} mixers trained without a number "
        f"that is not finite, {seconds:.0f} s in all"
    )
    return 0 if good == len(found) and finite == len(trained) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
