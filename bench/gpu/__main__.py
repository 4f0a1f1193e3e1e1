"""Builds, checks and times every GPU kernel on this machine: ``make test-gpu``.

    python -m longseq.bench.gpu [--json FILE] [--no-times] [--no-training] [--seconds 450]

Checks every CUDA and Triton kernel against float64 references on the CPU, on fresh inputs (the seed
is printed), with free memory full of NaN, three times each with bit-identical results; trains every
registered mixer for 200 steps in bfloat16; then times the kernels beside mamba-ssm, fla,
mlstm-kernels and SDPA where they are installed, in bytes, operations and percentages of a bound,
and says which targets are met. Exit status: 0, 1 if a check or a training failed or was not
reached, 2 if there is no GPU to run on.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from longseq.bench.gpu import cases, checks, delta, resources, timing
from longseq.bench.gpu.agreement import Result
from longseq.bench.targets import gpu_line, gpu_verdicts
from longseq.core.files import atomic_path
from longseq.core.kernels import nvrtc
from longseq.core.ops import availability, triton_calls

TRAINING = 0.75
"""The part of --seconds by which checks and trainings have to be over; timings take what is
left."""


def options_of(argv: Sequence[str]) -> argparse.Namespace:
    """Returns the command line's options."""
    parser = argparse.ArgumentParser(
        prog="python -m longseq.bench.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", type=Path, help="also write everything to this file")
    parser.add_argument("--no-times", action="store_true", help="time nothing")
    parser.add_argument("--no-training", action="store_true", help="train nothing")
    parser.add_argument(
        "--seconds", type=float, default=450, help="begin nothing more after this long"
    )
    parser.add_argument("--seed", type=int, help="of the inputs; fresh ones each time without")
    parser.add_argument(
        "--jobs", type=int, default=min(12, os.cpu_count() or 1), help="processes that check"
    )
    parser.add_argument(
        "--small", action="store_true", help="check small shapes only, in this process"
    )
    parser.add_argument(
        "--lines", type=Path, help="append a JSON line to this file after every result"
    )
    # k/n: the k-th of n shares of the checks
    parser.add_argument("--shard", help=argparse.SUPPRESS)
    parser.add_argument(
        "--clock", type=float, default=1.755e9, help="multiprocessors' Hz, for the bound"
    )
    options = parser.parse_args(list(argv))
    if options.seconds <= 0 or options.clock <= 0:
        parser.error("--seconds and --clock must be above 0")
    return options


def unavailable() -> str | None:
    """Returns in one line why the kernels cannot run here, or None."""
    for name, (there, note) in (("CUDA", nvrtc.describe()), ("Triton", triton_calls.describe())):
        if not there:
            return f"The {name} kernels cannot run here: {note}"
    return None


def time_all(
    device: torch.device, rates: timing.Rates, deadline: float, lines: checks.Lines
) -> list[Result]:
    """Times what there is to time until the deadline."""
    rates_in_words = (
        f"bounds from {rates.exponentials / 1e12:.2f} Texp/s, {rates.memory / 1e12:.2f} TB/s, "
        f"{rates.products / 1e12:.0f} TFLOP/s"
    )
    print(rates_in_words, flush=True)
    found: list[Result] = []
    for case in chain(cases.cases(device), delta.cases(device)):
        if time.perf_counter() > deadline:
            print(f"  out of time: {case.family} B {case.batch} L {case.length} and what follows")
            return found
        for row in timing.time_case(case, rates):
            lines.write("time", row)
            found.append(row)
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
    seed = torch.seed() % (1 << 31) if options.seed is None else options.seed
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
    for backend, there, why in availability.describe():
        print(f"  {backend}: {'available' if there else 'no'} ({why})")
    lines = checks.Lines(options.lines)
    deadline = begin + TRAINING * options.seconds
    if options.shard or options.small:
        shard, shards = (int(x) for x in (options.shard or "0/1").split("/"))
        todo = checks.small if options.small else checks.cases
        train = not (options.no_training or options.small)
        found, trained = checks.share(shard, shards, todo, device, deadline, train, lines)
        return summary(found, trained, time.perf_counter() - begin)
    with TemporaryDirectory() as folder:
        same = ["--seconds", str(options.seconds), "--seed", str(seed)]
        same += ["--no-training"] if options.no_training else []
        found, trained = checks.share_out(
            options.jobs, same, options.lines or Path(folder) / "lines"
        )
    print(f"built, checked and trained in {time.perf_counter() - begin:.0f} s", flush=True)
    timed, judged = [], []
    if not options.no_times:
        timed = time_all(
            device, timing.measure_rates(options.clock), begin + options.seconds, lines
        )
        judged = gpu_verdicts(timed)
        print("targets:")
        for row in judged:
            print(gpu_line(row))
    used = []
    if device.type == "cuda" and time.perf_counter() < begin + options.seconds:
        major, minor = torch.cuda.get_device_capability(device)
        used = resources.report([10 * major + minor])
    seconds = time.perf_counter() - begin
    if options.json:
        content = {
            **about,
            "seconds": seconds,
            "checks": found,
            "training": trained,
            "times": timed,
        }
        content["resources"] = used
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
        f"{good} of {len(found)} checks passed, {finite} of {len(trained)} mixers trained without "
        f"a number that is not finite, {seconds:.0f} s in all"
    )
    return 0 if good == len(found) and finite == len(trained) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
