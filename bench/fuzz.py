"""Every reader against damaged files, in processes with limits of time and memory: a reader answers
with its content or with one line, never with another exception, a hang, a crash or all memory.

``python -m longseq.bench.fuzz --inputs 1000`` (``make fuzz``); one input again, with its traceback:
``python -m longseq.bench.fuzz --only netcdf --again 17``.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from longseq.bench.fuzz_inside import inside
from longseq.bench.fuzz_targets import TARGETS, Target
from longseq.core.errors import LongseqError

SECONDS, MEGABYTES = 20, 1024
"""Processor time for one input, and memory above what the process has before it."""
_TOKENS = [
    b"0",
    b"-1",
    b"1e999",
    b"nan",
    b"99999999999999999999",
    b"",
    b"\t",
    b"\n",
    b"\0",
    b"\xff",
]
_TOKENS += [b"[/x]", b"\x1b[31m", b'"', b"{", b"null", b"[]", b"true", b"2147483648", b",", b";"]


def mutate(content: bytes, rng: random.Random, others: Sequence[bytes] = ()) -> bytes:
    """Returns a file with one to four faults: bits, bytes, pieces cut, doubled, moved or taken from
    another file, numbers and words exchanged, the end missing.

    Args:
        content: of a good file.
        rng: that chooses.
        others: files to take pieces from.
    """
    data = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        if not data:
            return bytes(rng.choice(_TOKENS))
        # Half of the faults are in the header, where they matter most.
        at = rng.randrange(min(len(data), 512) if rng.random() < 0.5 else len(data))
        size = min(len(data) - at, rng.choice([1, 2, 4, 8, 64, 512]))
        kind = rng.randrange(9)
        if kind == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
        elif kind == 2:
            value = rng.choice([0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**16, 10**6])
            data[at : at + 4] = value.to_bytes(4, rng.choice(["little", "big"]))
        elif kind == 3:
            del data[at : at + size]
        elif kind == 4:
            data[at:at] = data[at : at + size] * rng.choice([1, 2, 50])
        elif kind == 5:
            del data[at:]
        elif kind == 6:
            data[at : at + rng.choice([0, 1, size])] = rng.choice(_TOKENS)
        elif kind == 7:
            source = rng.choice([content, *others]) or b"x"
            start = rng.randrange(len(source))
            data[at : at + size] = source[start : start + size]
        else:
            data[at : at + size] = rng.randbytes(size)
    return bytes(data)


def content_of(target: Target, seeds: Sequence[bytes], number: int) -> bytes:
    """Returns input ``number`` of a target: the same for the same number. Every second one of a
    packed file is damaged behind its checksum."""
    rng = random.Random(f"{target.name} {number}")
    seed = rng.choice(seeds)
    if number % 2 and (deep := inside(seed, rng, lambda part: mutate(part, rng))) is not None:
        return deep
    return mutate(seed, rng, seeds)


@dataclass
class Outcome:
    """What a target's inputs ended in.

    Attributes:
        counts: "read", "refused", or a fault with its place → how many.
        first: fault → number of its first input.
        peak: most memory of a process above its start, MB.
        slowest: processor seconds of the slowest input.
    """

    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, int] = field(default_factory=dict)
    peak: float = 0.0
    slowest: float = 0.0

    @property
    def faults(self) -> int:
        """How many inputs ended in neither content nor one line."""
        return sum(n for name, n in self.counts.items() if name not in ("read", "refused"))

    def add(self, name: str, number: int) -> None:
        """Counts one input."""
        self.counts[name] += 1
        self.first.setdefault(name, number)


def one(target: Target, content: bytes, folder: Path) -> str:
    """Reads one input and returns what it ended in."""
    path = target.place(folder, content)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            target.read(path)
    except LongseqError as error:
        return "refused" if len(str(error).splitlines()) <= 1 else "a message of several lines"
    except MemoryError:
        return "out of memory"
    except Exception as error:  # noqa: BLE001 (which kinds there are is what is looked for)
        own = [
            one for one in traceback.extract_tb(error.__traceback__) if "longseq" in one.filename
        ]
        last = own[-1] if own else traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}"
    return "read"


def _child(target: Target, seeds: list[bytes], numbers: range, pipe: Connection) -> None:
    """Reads inputs one after the other; limits kill it."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if sys.platform == "linux" else 0
    limit = pages * resource.getpagesize() + (MEGABYTES << 20)
    if pages:
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGVTALRM, signal.SIG_DFL)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as name:
        for number in numbers:
            signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
            begin = time.process_time()
            found = one(target, content_of(target, seeds, number), Path(name))
            peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
            pipe.send((number, found, peak, time.process_time() - begin))
    pipe.send(None)


def run(target: Target, inputs: int, begin: int = 0) -> Outcome:
    """Fuzzes one reader.

    Args:
        target: the reader.
        inputs: how many damaged files.
        begin: number of the first.
    """
    outcome, number = Outcome(), begin
    target.warm()
    with tempfile.TemporaryDirectory() as name:
        seeds = target.seeds(Path(name))
        context: Any = multiprocessing.get_context("fork")
        while number < begin + inputs:
            reader, writer = context.Pipe(duplex=False)
            rest = range(number, min(number + 500, begin + inputs))
            child = context.Process(target=_child, args=(target, seeds, rest, writer))
            child.start()
            writer.close()
            try:
                while (got := reader.recv()) is not None:
                    outcome.add(got[1], got[0])
                    outcome.peak, outcome.slowest = (
                        max(outcome.peak, got[2]),
                        max(outcome.slowest, got[3]),
                    )
                    number = got[0] + 1
            except EOFError:
                child.join()
                ended = -(child.exitcode or 0)
                hang = ended == signal.SIGVTALRM
                outcome.add("hang" if hang else f"crash by signal {ended}", number)
                number += 1
            child.join()
    return outcome


def main(argv: Sequence[str] | None = None) -> int:
    """Fuzzes the readers and returns 1 if one of them has a fault.

    Args:
        argv: arguments; of the process if None.
    """
    parser = argparse.ArgumentParser(prog="python -m longseq.bench.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=1000, help="damaged files for each reader")
    parser.add_argument("--begin", type=int, default=0, help="number of the first")
    parser.add_argument("--only", nargs="+", choices=sorted(TARGETS), default=sorted(TARGETS))
    parser.add_argument("--again", type=int, help="read one input here, with its traceback")
    args = parser.parse_args(argv)
    if args.again is not None:
        target = TARGETS[args.only[0]]
        with tempfile.TemporaryDirectory() as name:
            content = content_of(target, target.seeds(Path(name)), args.again)
            print(repr(content[:400]))
            print(target.read(target.place(Path(name), content)))
        return 0
    total = 0
    for name in args.only:
        outcome = run(TARGETS[name], args.inputs, args.begin)
        total += outcome.faults
        print(
            f"{name}: {outcome.counts['read']} read, {outcome.counts['refused']} refused, "
            f"{outcome.faults} faults, {outcome.peak:.0f} MB, slowest {outcome.slowest:.1f} s",
            flush=True,
        )
        for fault, count in outcome.counts.most_common():
            if fault not in ("read", "refused"):
                print(f"  {count} × {fault}, first input {outcome.first[fault]}", flush=True)
    return int(total > 0)


if __name__ == "__main__":
    sys.exit(main())
