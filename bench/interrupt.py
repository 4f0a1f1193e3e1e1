"""Commands stopped by signals and killed at random moments, and begun again: are steps, outputs or
bits lost, is anything left behind?

``python -m longseq.bench.interrupt --trials 40`` (``make interrupt``). Each trial begins a command
in a process of its own, stops it after a random share of the processor time that it needs, looks at
what is there, and begins it again as a user or a scheduler would.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from longseq.bench.interrupt_files import files, fingerprint, newest, step_of
from longseq.core.process import heed

ENDS = {
    "signal": (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1),
    "kill": (signal.SIGKILL,),
}


@dataclass(frozen=True)
class Command:
    """What is stopped.

    Attributes:
        name: in the table.
        argv: of ``longseq``, for a folder to work in.
        results: files below that folder that the command is for; of several versions of a run the
            newest.
        weights: whether they are compared as checkpoints, else byte for byte.
    """

    name: str
    argv: Callable[[Path], list[str]]
    results: tuple[str, ...]
    weights: bool = False


_FIT = [
    *("genomics", "fit", "--data.fasta", "tiny", "--data.length", "64", "--data.batch_size", "2"),
    *("--model.d_model", "8", "--model.n_layers", "1", "--model.dropout", "0.1"),
    *("--trainer.max_steps", "60", "--trainer.val_check_interval", "20"),
    *("--trainer.limit_val_batches", "2", "--checkpoint_every", "1", "--seed_everything", "3"),
    *("--name", "r", "--ckpt_path", "auto", "--trainer.default_root_dir"),
]
CHECKPOINT = "r/version_0/checkpoints/last.ckpt"


def commands(fixed: Path) -> list[Command]:
    """Returns the commands.

    Args:
        fixed: folder with ``model.ckpt``, a trained model, ``genome.fa``, and ``songs``.
    """
    model, genome = str(fixed / "model.ckpt"), str(fixed / "genome.fa")

    def predict(to: Path) -> list[str]:
        return f"genomics predict {genome} --ckpt_path {model} --out {to}/scores.parquet".split()

    def scan(to: Path) -> list[str]:
        return f"audio scan {fixed / 'songs'} --out {to}/scan --workers 1".split()

    def demo(to: Path) -> list[str]:
        return f"demo timeseries --out {to}/demo --max_steps 4".split()  # the cheapest training

    def convert(to: Path) -> list[str]:
        return f"genomics export --ckpt_path {model} --out {to}/model.safetensors".split()

    return [
        Command("fit", lambda to: [*_FIT, str(to)], (CHECKPOINT,), weights=True),
        Command("predict", predict, ("scores.parquet",)),
        Command("scan", scan, ("scan/scores.csv", "scan/segments.jsonl")),
        Command("demo", demo, ("demo/timeseries/fit/version_*/forecasts.csv",)),
        Command("convert", convert, ("model.safetensors",)),
    ]


@dataclass
class Ended:
    """How a process ended.

    Attributes:
        status: of the exit; minus the signal's number if that ended it.
        steps: of optimisers that it did.
        cpu: processor seconds that it took.
        sent: whether the signal reached it.
        text: that it printed.
    """

    status: int
    steps: int
    cpu: float
    sent: bool
    text: str


def _busy(pid: int) -> float:
    """Returns the processor seconds that a process has taken."""
    values = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(values[11]) + int(values[12])) / os.sysconf("SC_CLK_TCK")


def warm(modules: Path) -> None:
    """Imports what a run has imported, once for all that follow.

    Args:
        modules: a file with their names.
    """
    for name in modules.read_text().split():
        # Some exist only after others have made them; what fails here is imported when needed.
        with contextlib.suppress(Exception):
            importlib.import_module(name)


def run(
    argv: Sequence[str],
    signum: int = 0,
    after: float = 0.0,
    step: int = 0,
    modules: Path | None = None,
) -> Ended:
    """Runs a command in a forked process, so that packages are imported once.

    Args:
        argv: of ``longseq``.
        signum: what to send; 0 for nothing.
        after: processor seconds until then.
        step: optimiser steps until then, beside ``after``.
        modules: file that takes the names of what it has imported.
    """
    with tempfile.TemporaryFile() as out:
        return _run(argv, signum, after, step, modules, out)


def _run(
    argv: Sequence[str], signum: int, after: float, step: int, modules: Path | None, out: Any
) -> Ended:
    told = os.pipe()
    child = os.fork()
    if not child:
        status = 70
        try:
            os.setsid()
            os.dup2(out.fileno(), 1)
            os.dup2(out.fileno(), 2)
            from torch.optim.optimizer import register_optimizer_step_post_hook

            from longseq.core.shell.cli import signalled

            def tell(*_: Any) -> None:
                os.write(told[1], b".")

            register_optimizer_step_post_hook(tell)
            try:
                status = signalled(list(argv))
            except SystemExit as error:
                status = int(error.code or 0)
            except KeyboardInterrupt:
                status = 130  # what the interpreter would make of it
            sys.stdout.flush()
            if modules:
                modules.write_text("\n".join(sorted(sys.modules)))
        finally:
            os._exit(status)
    os.close(told[1])
    os.set_blocking(told[0], False)
    steps, cpu, sent = 0, 0.0, False
    while True:
        with contextlib.suppress(BlockingIOError):
            steps += len(os.read(told[0], 1 << 16))
        pid, ended = os.waitpid(child, os.WNOHANG)
        if pid:
            break
        cpu = _busy(child)
        if signum and not sent and cpu >= after and steps >= step:
            os.kill(child, signum)
            sent = True
        time.sleep(0.001)
    while more := os.read(told[0], 1 << 16):
        steps += len(more)
    os.close(told[0])
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # workers of a process that could not end them
    out.seek(0)
    code = os.waitstatus_to_exitcode(ended)
    return Ended(code, steps, cpu, sent, out.read().decode(errors="replace"))


@dataclass
class Tally:
    """What a command's trials came to.

    Attributes:
        trials: with the signal delivered while the command ran.
        states: exit statuses.
        steps: most optimiser steps that one trial lost.
        counts: "bits", "outputs", "leftovers" and "status" → trials in which they were wrong.
        notes: the first faults.
    """

    trials: int = 0
    states: Counter[int] = field(default_factory=Counter)
    steps: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)

    def fault(self, kind: str, note: str) -> None:
        """Counts a fault."""
        self.counts[kind] += 1
        self.notes.append(f"{kind}: {note}")


def trial(
    one: Command, whole: Path, cpu: float, signum: int, rng: random.Random, to: Path, tally: Tally
) -> None:
    """Stops a command once, begins it again, and counts what is wrong.

    Args:
        one: the command.
        whole: folder of an undisturbed run.
        cpu: seconds that the run took.
        signum: what to send.
        rng: that chooses the moment.
        to: empty folder.
        tally: of the command.
    """
    old = b"an older file, to be kept whole or replaced whole"
    outputs = [] if one.weights or one.name in ("scan", "demo") else [to / n for n in one.results]
    for path in outputs:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(old)
    step = rng.randrange(1, 59) if one.weights else 0
    ended = run(one.argv(to), signum, 0.0 if one.weights else rng.uniform(0.05, 0.95) * cpu, step)
    if not ended.sent:
        return
    tally.trials += 1
    tally.states[ended.status] += 1
    allowed = {128 + signum, -signum, 0}
    if ended.status not in allowed:
        tally.fault("status", f"{ended.status}: {ended.text[-300:]}")
    for path, name in zip(outputs, one.results):
        if path.read_bytes() != old and fingerprint(path, False) != fingerprint(
            whole / name, False
        ):
            tally.fault("outputs", f"{name} is neither the old nor the new file")
    if one.weights:
        lost = ended.steps - step_of(to / CHECKPOINT)
        tally.steps = max(tally.steps, lost)
    again = run(one.argv(to))
    if again.status:
        tally.fault("status", f"begun again: {again.status}: {again.text[-300:]}")
    for name in one.results:
        if not newest(to, name).exists():
            tally.fault("outputs", f"{name} is not there")
        elif fingerprint(newest(to, name), one.weights) != fingerprint(
            newest(whole, name), one.weights
        ):
            tally.fault("bits", f"{name} differs")
    if more := files(to) - files(whole):
        tally.fault("leftovers", ", ".join(sorted(more)[:3]))


def prepare(fixed: Path) -> None:
    """Makes the model, the genome and the songs that the commands read.

    Args:
        fixed: folder to write.
    """
    import numpy as np
    import soundfile

    rng = np.random.default_rng(0)
    bases = "".join("ACGT"[i] for i in rng.integers(0, 4, 300_000))
    (fixed / "genome.fa").write_text(f">a\n{bases}\n")
    (fixed / "songs").mkdir()
    for number in range(3):
        tone = np.sin(np.arange(44100 * 4) * (0.02 + 0.01 * number)) * 0.3
        noise = tone + 0.01 * rng.standard_normal(tone.size)
        soundfile.write(fixed / "songs" / f"{number}.wav", noise.astype("float32"), 44100)
    first = run([*_FIT, str(fixed / "fit")], modules=fixed / "modules")
    if first.status:
        raise SystemExit(first.text)
    warm(fixed / "modules")
    shutil.copy(fixed / "fit" / CHECKPOINT, fixed / "model.ckpt")


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a table and returns 1 if something was lost.

    Args:
        argv: arguments; of the process if None.
    """
    parser = argparse.ArgumentParser(prog="python -m longseq.bench.interrupt", description=__doc__)
    parser.add_argument("--trials", type=int, default=40, help="of each kind of end (40)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (0)")
    parser.add_argument("--only", nargs="+", help="commands: fit predict scan demo convert")
    args = parser.parse_args(argv)
    heed()
    rng, bad = random.Random(args.seed), 0
    with tempfile.TemporaryDirectory() as name:
        fixed = Path(name) / "fixed"
        fixed.mkdir()
        prepare(fixed)
        chosen = [c for c in commands(fixed) if not args.only or c.name in args.only]
        print(f"{'command':8} {'end':7} trials lost steps  bits outputs left  statuses")
        for place, one in enumerate(chosen):
            whole = Path(name) / f"whole-{one.name}"
            whole.mkdir()
            if not one.weights:  # that was done for the model
                (fixed / one.name).mkdir()
                run(one.argv(fixed / one.name), modules=fixed / "modules")
                warm(fixed / "modules")
            first = run(one.argv(whole))
            if first.status or not all(newest(whole, result).exists() for result in one.results):
                raise SystemExit(f"{one.name}: {first.text}\n{sorted(files(whole))}")
            for end, signals in ENDS.items():
                tally, share = Tally(), args.trials // len(chosen)
                wanted = share + (place < args.trials % len(chosen))
                tries = 0
                while tally.trials < wanted and tries < 3 * wanted:
                    to = Path(name) / "trial"
                    to.mkdir()
                    signum = signals[tries % len(signals)]
                    trial(one, whole, first.cpu, signum, rng, to, tally)
                    shutil.rmtree(to)
                    tries += 1
                states = ", ".join(f"{n} × {s}" for s, n in sorted(tally.states.items()))
                print(
                    f"{one.name:8} {end:7} {tally.trials:6} {tally.steps:10} "
                    f"{tally.counts['bits']:5} {tally.counts['outputs']:7} "
                    f"{tally.counts['leftovers']:4}  {states}",
                    flush=True,
                )
                for note in tally.notes[:5]:
                    print(f"  {note}", flush=True)
                bad += bool(tally.counts) or tally.steps > 1 or tally.trials < wanted
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
