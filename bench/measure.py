"""What a speed benchmark measures: cases and their sides, each run in turn in one process and
compared."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from longseq.core.errors import LongseqError

Mode = Literal["forward", "training", "step"]
"""``training`` is forward and backward with the gradients of the input and of every weight, no
optimiser; ``step`` is one position from a carried state."""

OURS = "longseq"
# Of the largest value; another order of float32 sums: 1e-5.
_TOLERANCE = {"float32": 1e-3, "bfloat16": 6e-2}
_MOST_RUNS = 25  # of one side in a turn


class Disagreement(LongseqError):
    """A side computes something else than ours: timing it would compare nothing."""


@dataclass(frozen=True)
class Shape:
    """The size of a cell.

    Attributes:
        batch: B.
        length: L; what was read before, for a step.
        width: D of the model; operators inside a block may be wider, as their case says.
        dtype: "float32" or "bfloat16", of activations and weights.
    """

    batch: int
    length: int
    width: int
    dtype: str = "float32"

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype itself."""
        return torch.bfloat16 if self.dtype == "bfloat16" else torch.float32

    @property
    def item(self) -> int:
        """Bytes of a value."""
        return 2 if self.dtype == "bfloat16" else 4


@dataclass
class Program:
    """One side of a cell, ready to run.

    Attributes:
        run: one call; the output is (B, L, …) whatever layout the side works in, so transposed
            views are returned where it works in another. A step's run carries its state from call
            to call.
        leaves: what takes gradients, the input first.
        canonical: turns the gradient of the input to the layout of ours.
    """

    run: Callable[[], Tensor]
    leaves: Sequence[Tensor] = ()
    canonical: Callable[[Tensor], Tensor] = lambda gradient: gradient


@dataclass(frozen=True)
class Side:
    """An implementation of a case.

    Attributes:
        name: "longseq" or the peer's name in the table.
        make: builds it from the case's inputs, on the weights of ours where there are any.
        peer: what must be there, a key of ``peers.PEERS``; None for ours and for plain torch.
        same: whether it computes the same function; else it is there for scale, not compared.
        note: what a reader of the ratio must know.
        modes: that it has.
    """

    name: str
    make: Callable[[Any, Shape, Mode], Program]
    peer: str | None = None
    same: bool = True
    note: str = ""
    modes: tuple[Mode, ...] = ("forward", "training", "step")


@dataclass(frozen=True)
class Work:
    """What any implementation of the chosen algorithm has to do at least.

    Attributes:
        fma: multiply-adds in float32.
        exp: exponentials.
        bytes: read and written once each: inputs, weights, outputs and gradients.
    """

    fma: float
    exp: float
    bytes: float


@dataclass(frozen=True)
class Case:
    """An operator, block or model, ours and its peers.

    Attributes:
        name: for ``--operators`` and the table.
        about: sizes and function, one line.
        level: "operator", "block" or "model".
        inputs: makes the tensors or the module that all sides share, the same at every call.
        sides: ours first.
        work: its bound, by shape and mode.
        modes: that are measured.
        dtypes: that are measured.
        longest: greatest length; beyond 65,536 a narrower width is used.
        alone: lengths, in place of those asked for, that are run once in a process of their own.
        width: of the model; None for the benchmark's.
    """

    name: str
    about: str
    level: str
    inputs: Callable[[Shape], Any]
    sides: tuple[Side, ...]
    work: Callable[[Shape, Mode], Work]
    modes: tuple[Mode, ...] = ("forward", "training")
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    longest: int = 1 << 20
    alone: tuple[int, ...] = ()
    width: int | None = None


@dataclass
class Reading:
    """What was measured of one side of one cell.

    Attributes:
        side: name.
        status: "measured", "stopped" (ran into the limit: seconds is a lower bound), "skipped",
            "failed" or "absent".
        same: whether it computes the same function as ours.
        reason: why it was not measured, in words.
        seconds: median.
        fastest: the least.
        runs: timed.
        peak_bytes: most memory beyond inputs and weights, in a process of its own; None if unknown.
        held_bytes: inputs and weights.
        total_bytes: most memory of that process, libraries included.
        difference: largest difference from ours over the largest value of ours; None if not
            compared.
    """

    side: str
    status: str
    same: bool = True
    reason: str = ""
    seconds: float | None = None
    fastest: float | None = None
    runs: int = 0
    peak_bytes: int | None = None
    held_bytes: int | None = None
    total_bytes: int | None = None
    difference: float | None = None


@dataclass
class Cell:
    """One case at one shape and mode.

    Attributes:
        case: name.
        level: of the case.
        mode: what was run.
        shape: its size.
        work: of the bound.
        readings: ours first.
    """

    case: str
    level: str
    mode: Mode
    shape: Shape
    work: Work
    readings: list[Reading] = field(default_factory=list)

    def reading(self, side: str) -> Reading | None:
        """Returns what was measured of a side, None if it is not part of the case."""
        return next((r for r in self.readings if r.side == side), None)

    def ratio(self, side: str) -> float | None:
        """Returns how many times faster ours is; a lower bound if the side was stopped; None if
        unknown."""
        ours, other = self.reading(OURS), self.reading(side)
        if ours is None or ours.seconds is None or ours.status != "measured" or other is None:
            return None
        return None if other.seconds is None else other.seconds / ours.seconds


def executable(program: Program, mode: Mode, generator_seed: int = 7) -> Callable[[], list[Tensor]]:
    """Returns one run of a program in a mode; what it returns is compared between the sides.

    Args:
        program: from ``Side.make``.
        mode: what to run.
        generator_seed: of the gradient that enters the backward.
    """
    if mode != "training":

        def without_gradient() -> list[Tensor]:
            with torch.no_grad():
                return [program.run()]

        return without_gradient
    leaves = [leaf for leaf in program.leaves if leaf.requires_grad]
    arriving: list[Tensor] = []

    def with_gradient() -> list[Tensor]:
        y = program.run()
        if not arriving:  # drawn once, in the warm-up
            generator = torch.Generator().manual_seed(generator_seed)
            arriving.append(torch.randn(y.shape, generator=generator).to(y.dtype))
        grads = torch.autograd.grad(y, leaves, arriving[0], allow_unused=True)
        assert grads[0] is not None
        return [y.detach(), program.canonical(grads[0])]

    return with_gradient


def difference(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """Returns the largest difference over the largest value, the worst of all tensors."""
    worst = 0.0
    for a, b in zip(ours, theirs):
        if a.shape != b.shape:
            raise Disagreement(f"its output is {tuple(b.shape)} where ours is {tuple(a.shape)}")
        wide = torch.complex64 if a.is_complex() else torch.float32
        scale = float(a.to(wide).abs().max())
        gap = float((a.to(wide) - b.to(wide)).abs().max())
        worst = max(worst, gap / max(scale, 1e-30) if math.isfinite(gap) else math.inf)
    return worst


def check_agreement(ours: Sequence[Tensor], theirs: Sequence[Tensor], dtype: str) -> float:
    """Returns ``difference`` if it is small enough.

    In bfloat16 only outputs are judged: sides keep different sums in full precision, and where a
    gradient has a near-pole (mLSTM's normaliser) they are apart by its whole size. Gradients are
    judged in float32.

    Raises:
        Disagreement: if not.
    """
    count = 1 if dtype == "bfloat16" else len(ours)
    gap = difference(ours[:count], theirs[:count])
    if not gap <= _TOLERANCE[dtype]:
        raise Disagreement(
            f"its values differ from ours by {gap:.1e} of the largest: a wrong result is not timed"
        )
    return gap


def timed(run: Callable[[], object]) -> float:
    """Returns the seconds of one call; what it returned is freed before the clock is read, as in a
    loop."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def interleave(
    runs: Mapping[str, Callable[[], object]],
    expected: Mapping[str, float],
    rounds: int,
    seconds: float,
    on_turn: Callable[[str], None] = lambda side: None,
    first: Mapping[str, float] | None = None,
) -> dict[str, list[float]]:
    """Runs all sides in turn, round after round, and returns the seconds of each run.

    A turn has as many runs as fit into a round's share of ``seconds``; a side that has used
    ``seconds`` up sits out the other rounds, so that a slow one runs once and ours in every round.

    Args:
        runs: by side.
        expected: seconds of one run of each, roughly.
        rounds: at most.
        seconds: for each side.
        on_turn: told the side before each turn.
        first: seconds of a run that sides have had already and that counts.
    """
    times = {side: [first[side]] if first is not None and side in first else [] for side in runs}
    order = list(runs)
    for number in range(rounds):
        for side in order[number % len(order) :] + order[: number % len(order)]:
            if times[side] and sum(times[side]) >= seconds:
                continue
            on_turn(side)
            share = seconds / rounds / max(expected[side], 1e-7)
            times[side] += [timed(runs[side]) for _ in range(max(1, min(_MOST_RUNS, int(share))))]
    return times


def summarise(reading: Reading, times: Sequence[float]) -> None:
    """Writes the median and the least of some runs into a reading."""
    reading.status, reading.runs = "measured", len(times)
    reading.seconds, reading.fastest = statistics.median(times), min(times)
