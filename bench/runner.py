"""The grid of ``longseq bench kernels`` and ``models``, and how one cell of it is measured."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from longseq.bench import peers
from longseq.bench.isolated import Isolated, Job, Probe, available_memory
from longseq.bench.measure import (
    OURS,
    Case,
    Cell,
    Disagreement,
    Mode,
    Reading,
    Shape,
    Side,
    check_agreement,
    executable,
    interleave,
    summarise,
    timed,
)

WIDTH, NARROW, WIDE_UNTIL = 768, 64, 1 << 16
LENGTHS = (1024, 4096, 16384, 65536, 1 << 20)
QUICK_LENGTHS = (1024, 4096)
QUICK_ALONE = (1 << 16,)  # for what takes minutes at its own length
MIDDLE = 4096  # where batch and dtype are varied, and the targets are set
_ROUNDS = 5
# Seconds: pages and caches are a small part of so long a run, which has run once alone.
_NEEDS_NO_WARM_UP = 1.0
_ALONE_SECONDS = 590.0  # for what is run once only


@dataclass(frozen=True)
class Plan:
    """What a run does.

    Attributes:
        module: that holds the cases.
        cases: of it.
        lengths: for all of them.
        chosen: whether the user named the lengths, for models that have one of their own too.
        quick: whether batch 1 and float32 are enough.
        threads: for torch.
        limit: seconds of one run of one side, at most.
        seconds: of timed runs of one side of a cell, roughly.
        use_peers: or ours alone.
        width: of the model, up to length 65,536.
    """

    module: str
    cases: Sequence[Case]
    lengths: Sequence[int]
    chosen: bool
    quick: bool
    threads: int
    limit: float
    seconds: float
    use_peers: bool
    width: int = WIDTH

    def settings(self) -> dict[str, Any]:
        """Returns the plan as plain values."""
        own = {k: v for k, v in self.__dict__.items() if k not in ("cases", "module")}
        return {**own, "lengths": list(self.lengths), "cases": [case.name for case in self.cases]}


def grid(plan: Plan) -> Iterator[tuple[Case, Mode, Shape]]:
    """Yields the cells: all lengths at batch 1 in float32; batch 4 up to 4,096; bfloat16 there; the
    steps.

    Args:
        plan: of the run.
    """
    for case in plan.cases:
        lengths: Sequence[int] = [length for length in plan.lengths if length <= case.longest]
        if case.alone and not plan.chosen:
            lengths = QUICK_ALONE if plan.quick else case.alone
        if not lengths:
            continue
        middle = MIDDLE if MIDDLE in lengths else min(lengths)
        for mode in case.modes:
            if mode == "step":
                kinds = [(1, 1, "float32"), (4, 1, "float32"), (1, 1, "bfloat16")]
            else:
                kinds = [(1, length, "float32") for length in sorted(lengths)]
                kinds += [(4, length, "float32") for length in sorted(lengths) if length <= middle]
                kinds += [(1, middle, "bfloat16")]
            for batch, length, dtype in kinds:
                varied = batch > 1 or dtype != "float32"
                if dtype in case.dtypes and not (varied and (plan.quick or case.alone)):
                    width = case.width or (plan.width if length <= WIDE_UNTIL else NARROW)
                    yield case, mode, Shape(batch, length, width, dtype)


@dataclass
class Runner:
    """Measures cells one after another and remembers what was too slow.

    Attributes:
        plan: of the run.
        isolated: where first runs happen.
        tell: told what is being done.
    """

    plan: Plan
    isolated: Isolated
    tell: Callable[[str], None] = lambda text: None
    _known: dict[tuple[object, ...], tuple[int, float, str]] = field(default_factory=dict)

    def cell(self, case: Case, mode: Mode, shape: Shape) -> Cell:
        """Measures all sides of a cell: each alone at first, then all in turn.

        Args:
            case: what.
            mode: how.
            shape: how large.
        """
        cell = Cell(case.name, case.level, mode, shape, case.work(shape, mode))
        sides = [side for side in case.sides if mode in side.modes]
        sides = [side for side in sides if side.name == OURS or self.plan.use_peers]
        expected: dict[str, float] = {}
        for side in sides:
            self.tell(f"{side.name}: memory")
            reading = self._first_run(case, side, mode, shape)
            cell.readings.append(reading)
            if reading.status == "measured" and reading.seconds is not None:
                expected[side.name] = reading.seconds
            elif side.name == OURS:
                for other in sides[1:]:
                    reason = "ours was not measured"
                    cell.readings.append(Reading(other.name, "skipped", other.same, reason))
                return cell
        if not case.alone:
            self._in_turn(case, cell, [side for side in sides if side.name in expected], expected)
        gc.collect()
        return cell

    def _first_run(self, case: Case, side: Side, mode: Mode, shape: Shape) -> Reading:
        """Runs a side once in a process of its own, if it is there and has a chance to end in
        time."""
        reading = Reading(side.name, "skipped", side.same)
        if side.peer is not None:
            there = peers.status(side.peer)
            if not there.available:
                reading.status, reading.reason = "absent", there.reason
                return reading
        limit = _ALONE_SECONDS if case.alone else self.plan.limit
        key = (case.name, side.name, mode, shape.batch, shape.dtype, shape.width)
        before = self._known.get(key)
        if before is not None:
            length, seconds, why = before
            expected = seconds * shape.length / length
            if why:
                reading.reason = f"{why} at L {length:,} already"
                return reading
            if expected > 1.2 * limit:
                reading.reason = (
                    f"would take at least {expected:.0f} s ({seconds:.2g} s at L {length:,})"
                )
                return reading
        probe = self._probe(case, side, mode, shape, limit)
        reading.peak_bytes, reading.held_bytes = probe.peak_bytes, probe.held_bytes
        reading.total_bytes, reading.seconds, reading.fastest = (
            probe.total_bytes,
            probe.seconds,
            probe.seconds,
        )
        reading.reason, reading.runs = probe.reason, int(probe.status == "ok")
        reading.status = "measured" if probe.status == "ok" else probe.status
        self._known[key] = (
            shape.length,
            probe.seconds or 0.0,
            "" if probe.status == "ok" else probe.reason,
        )
        return reading

    def _probe(self, case: Case, side: Side, mode: Mode, shape: Shape, limit: float) -> Probe:
        if self.isolated.available:
            memory = int(0.8 * available_memory())
            shape_fields = {k: getattr(shape, k) for k in ("batch", "length", "width", "dtype")}
            where = (self.plan.module, case.name, side.name, mode, shape_fields)
            return self.isolated.run(Job(*where, self.plan.threads, limit, memory))
        try:
            run = executable(side.make(case.inputs(shape), shape, mode), mode)
            return Probe("ok", seconds=timed(run))
        except Exception as error:  # noqa: BLE001 - a peer may raise anything; its words go into the table
            return Probe("failed", f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")

    def _in_turn(
        self, case: Case, cell: Cell, sides: Sequence[Side], expected: dict[str, float]
    ) -> None:
        """Compares the sides' values and times all that agree, in turn, in this process."""
        shape, mode, runs = cell.shape, cell.mode, {}
        first: dict[str, float] = {}
        reference: list[torch.Tensor] = []
        budget = 0.8 * available_memory()
        for side in sides:
            reading = cell.reading(side.name)
            assert reading is not None
            need = (reading.peak_bytes or 0) + (reading.held_bytes or 0)
            budget -= reading.held_bytes or 0
            if need > budget:
                reading.status, reading.seconds = "skipped", None
                reading.reason = (
                    f"{need / 2**30:.1f} GiB beside the other sides are more than there is"
                )
                continue
            self.tell(f"{side.name}: warm-up")
            run = executable(side.make(case.inputs(shape), shape, mode), mode)
            try:
                start = time.perf_counter()
                outputs = run()
                if expected[side.name] > _NEEDS_NO_WARM_UP:
                    first[side.name] = time.perf_counter() - start
                # From the third position on all state is in use.
                for _ in range(2 if mode == "step" else 0):
                    outputs = run()
                if side.name == OURS:
                    reference = outputs
                elif side.same:
                    reading.difference = check_agreement(reference, outputs, shape.dtype)
            except Disagreement as error:
                reading.status, reading.seconds, reading.reason = "failed", None, str(error)
                continue
            runs[side.name] = run
            del outputs
        reference.clear()
        times = interleave(
            runs,
            expected,
            _ROUNDS,
            self.plan.seconds,
            lambda name: self.tell(f"{name}: timing"),
            first,
        )
        for name, seconds in times.items():
            reading = cell.reading(name)
            assert reading is not None
            summarise(reading, seconds)
