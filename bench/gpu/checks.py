"""All checks and trainings, shared out among processes: most of their time is compiling, on one
core each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from pathlib import Path

import torch

from longseq.bench.gpu import agreement, chunked, delta, lengths, training, walks
from longseq.bench.gpu.agreement import Case, Result
from longseq.core.mixers import list_mixers

SMALL: list[walks.Shape] = [
    (2, 70, 40, 4, 2, torch.float32, False, True),
    (1, 300, 5, 16, 1, torch.float32, False, False),
    (1, 90, 4, 4, 1, torch.float32, True, True),
    (1, 70, 36, 4, 1, torch.bfloat16, False, True),
]
"""Shapes of the selective scan for a memory or race checker, under which everything is slow."""


def cases() -> Iterator[Case]:
    """Yields every check."""
    return chain(walks.cases(), chunked.cases(), delta.checks(), lengths.cases())


def small() -> Iterator[Case]:
    """Yields checks of every kernel at the smallest sizes that take all of their paths."""
    yield from walks.scan_cases(SMALL)
    yield walks.backward_in_pieces(SMALL[0])
    yield from walks.conv_cases()
    yield from islice(walks.linear_cases(), 1)
    yield from islice(walks.slstm_cases(), 1)
    yield from islice(chunked.cases(70, ((16, 16),)), 5)


class Lines:
    """Writes a JSON line after every result, so that a run that is cut short leaves what it had.

    Args:
        file: to append to; None writes nothing.
    """

    def __init__(self, file: Path | None) -> None:
        self.file = file

    def write(self, kind: str, row: Result) -> None:
        """Appends a result.

        Args:
            kind: "check", "training" or "time".
            row: the result.
        """
        if self.file is not None:
            with self.file.open("a", encoding="utf-8") as out:
                out.write(json.dumps({"kind": kind, **row}) + "\n")


def check_all(
    todo: Iterable[Case], device: torch.device, deadline: float, lines: Lines | None = None
) -> list[Result]:
    """Runs checks and prints a line for each; what is not reached before the deadline has not
    passed."""
    found = []
    for case in todo:
        if time.perf_counter() > deadline:
            row: Result = {"check": case.name, "ok": False, "why": "out of time"}
            print(f"  not run: {case.name} (out of time)", flush=True)
        else:
            begin = time.perf_counter()
            try:
                row = agreement.compare(case, device)
                text = agreement.line(row)
            except Exception as error:  # noqa: BLE001 - the other checks go on, and this one has not passed
                row = {
                    "check": case.name,
                    "ok": False,
                    "why": f"{type(error).__name__}: {error}"[:2000],
                }
                text = f"  BAD {case.name}: {row['why'][:300]}"
            row["wall"] = time.perf_counter() - begin
            print(text, flush=True)
        found.append(row)
        if lines is not None:
            lines.write("check", row)
    return found


def share(
    shard: int,
    shards: int,
    todo: Callable[[], Iterable[Case]],
    device: torch.device,
    deadline: float,
    train: bool,
    lines: Lines,
) -> tuple[list[Result], list[Result]]:
    """Runs one process's share of the checks and trainings.

    Args:
        shard: which share, from 0.
        shards: of how many.
        todo: gives the checks.
        device: where.
        deadline: of ``time.perf_counter``.
        train: whether to train mixers too.
        lines: where results go.
    """
    found = check_all(islice(todo(), shard, None, shards), device, deadline, lines)
    trained = []
    if train:
        trained = training.train_all(device, deadline, names=list_mixers()[shard::shards])
        for row in trained:
            lines.write("training", row)
    return found, trained


def share_out(jobs: int, options: list[str], file: Path) -> tuple[list[Result], list[Result]]:
    """Runs all checks and trainings in several processes and returns their results.

    Args:
        jobs: processes.
        options: of ``python -m longseq.bench.gpu``, the same for all.
        file: of JSON lines that they append to.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    begun = [
        subprocess.Popen(
            [
                sys.executable,
                "-m",
                "longseq.bench.gpu",
                f"--shard={k}/{jobs}",
                f"--lines={file}",
                *options,
            ],
            env=environment,
        )
        for k in range(jobs)
    ]
    status = [process.wait() for process in begun]
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    found = [row for row in rows if row["kind"] == "check"]
    for k, code in enumerate(status):
        if code not in (0, 1):
            why = f"its process ended with status {code}"
            found.append({"check": f"share {k} of {jobs}", "ok": False, "why": why})
    return found, [row for row in rows if row["kind"] == "training"]
