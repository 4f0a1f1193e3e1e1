"""Windows: training batches as a pure function of the step, and evaluation over every base exactly
once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from longseq.core.errors import ConfigError, DataError
from longseq.genomics.data.collection import Collection
from longseq.genomics.data.fasta import Genome
from longseq.genomics.data.splits import Interval
from longseq.genomics.data.tokenizer import IGNORE_INDEX, PAD, N, is_base, reverse_complement

_TRIES = 1000
_NOTHING = "{} windows of {} bases had hardly a known base among them"
_HINT = "leave its regions of N out by a BED file"


def next_token_targets(ids: np.ndarray) -> np.ndarray:
    """Returns the targets of next-token prediction: the following base, or -100 if it is not A, C,
    G or T.

    Args:
        ids: token ids, shape (..., L + 1).

    Returns:
        int64 targets of ``ids[..., :-1]``, shape (..., L).
    """
    following = ids[..., 1:].astype(np.int64)  # before -100 comes in, which uint8 cannot hold
    return np.where(is_base(following), following, IGNORE_INDEX)


def _usable(intervals: Sequence[Interval]) -> tuple[list[Interval], int]:
    """Returns the intervals that have a base to predict from another, and how many have not."""
    usable = [item for item in intervals if len(item) >= 2]
    if not usable:
        raise DataError(
            f"none of {len(intervals)} intervals has two bases, so there is nothing to predict"
        )
    return usable, len(intervals) - len(usable)


class StepDataset(Dataset[dict[str, torch.Tensor]]):
    """Training batches indexed by the optimiser's step.

    ``ds[step]`` depends on (seed, step, rank, world) only: not on the worker, nor on what was read
    before. The ranks' batches of a step, one after the other, are the batch of one rank that takes
    as many rows as all of them.
    Training therefore resumes at any step with exactly the batches that it would have had. Use it
    with ``DataLoader(ds, sampler=range(first_step, last_step), batch_size=None)``.

    A window's start is uniform over all positions of all intervals at which it fits, and the window
    is taken with the probability of its share of known bases, or else drawn anew: none is without
    a base, and none of N alone costs a step. An interval
    shorter than a window counts as one position and is padded with N after its end, never with
    bases from outside it, which might be held out.

    Args:
        genome: the sequence.
        intervals: where windows may lie.
        schedule: maps a step to (batch size, length L), for a length warm-up.
        seed: of the windows, at least 0.
        rc_augment: take each window's reverse complement with probability one half.
        steps: number of steps, for ``len``.
        rank: of this process in data-parallel training.
        world: number of processes; each takes its rows of the step's.
        weights: how often each interval's positions are drawn, relative to one another.
        repeat_weight: of soft-masked bases in the loss; those of others are 1.

    Attributes:
        skipped: number of intervals that were left out as shorter than two bases.
    """

    def __init__(
        self,
        genome: Genome | Collection,
        intervals: Sequence[Interval],
        schedule: Callable[[int], tuple[int, int]],
        seed: int = 0,
        rc_augment: bool = True,
        *,
        steps: int | None = None,
        rank: int = 0,
        world: int = 1,
        weights: Sequence[float] | None = None,
        repeat_weight: float = 1.0,
    ) -> None:
        if seed < 0 or not 0 <= rank < world:
            raise ConfigError(f"seed={seed} and rank={rank} of {world} must be at least 0")
        self.genome, self.schedule, self.seed = genome, schedule, seed
        self.rank, self.world = rank, world
        self.rc_augment, self.steps = rc_augment, steps
        self.intervals, self.skipped = _usable(intervals)
        self.repeat_weight = repeat_weight
        self._weights = None
        if weights is not None:
            kept = [one for one, item in zip(weights, intervals, strict=True) if len(item) >= 2]
            self._weights = np.array(kept, np.float64)
        self._sizes = np.array([len(item) for item in self.intervals], np.int64)
        self._cumulative: tuple[int, np.ndarray] = (0, self._sizes)

    def __len__(self) -> int:
        if self.steps is None:
            raise TypeError("a StepDataset without steps= has no length: give the loader a sampler")
        return self.steps

    def __getitem__(self, step: int) -> dict[str, torch.Tensor]:
        """Returns ``input_ids`` and ``targets`` of a step, int64, shape (B, L)."""
        if step < 0 or (self.steps is not None and step >= self.steps):
            raise IndexError(f"step {step} of {self.steps}")
        batch, length = self.schedule(step)
        if batch < 1 or length < 1:
            raise ConfigError(
                f"the schedule gives batch size {batch} and length {length} at step {step}"
            )
        rng = _generator(self.seed, step, 0)
        cumulative = self._starts(length)
        ids = np.full((batch, length + 1), N, np.uint8)
        repeats = np.zeros((batch, length + 1), bool)
        mine = slice(self.rank * batch, (self.rank + 1) * batch)
        draws = self._draw(rng, batch * self.world)[mine]
        # Drawn whether used or not, so that the augmentation does not change where windows lie.
        flips = (rng.random(batch * self.world) < 0.5)[mine]
        for row in range(batch):
            rng = _generator(self.seed, step, 1 + mine.start + row)
            for _ in range(_TRIES):
                bases, mask = self._window(draws[row], cumulative, length)
                if rng.random() * (len(bases) - 1) < np.count_nonzero(is_base(bases[1:])):
                    break
                draws[row] = self._draw(rng, 1)[0]
            else:
                raise DataError(_NOTHING.format(_TRIES, length), path=self.genome.path, hint=_HINT)
            if flips[row] and self.rc_augment:
                bases, mask = reverse_complement(bases), mask[::-1]
            ids[row, : len(bases)], repeats[row, : len(bases)] = bases, mask
        found = {
            "input_ids": torch.from_numpy(ids[:, :-1].astype(np.int64)),
            "targets": torch.from_numpy(next_token_targets(ids)),
        }
        if self.repeat_weight != 1.0:
            weights = np.where(repeats[:, 1:], np.float32(self.repeat_weight), np.float32(1))
            found["weights"] = torch.from_numpy(weights)
        return found

    def places(self, step: int) -> list[Interval]:
        """Returns where windows of L bases lie, or shorter intervals, drawn for a step in the same
        way: for tasks whose targets are not the next base."""
        batch, length = self.schedule(step)
        rng = _generator(self.seed, step, 0)
        cumulative = self._starts(length)
        mine = slice(self.rank * batch, (self.rank + 1) * batch)
        found = []
        for row, draw in enumerate(self._draw(rng, batch * self.world)[mine]):
            rng = _generator(self.seed, step, 1 + mine.start + row)
            for _ in range(_TRIES):
                one = self._place(draw, cumulative, length)
                one = Interval(one.chrom, one.start, min(one.end, one.start + length))
                known = is_base(self.genome.fetch(one.chrom, one.start, one.end))
                if rng.random() * len(one) < np.count_nonzero(known):
                    break
                draw = self._draw(rng, 1)[0]
            else:
                raise DataError(_NOTHING.format(_TRIES, length), path=self.genome.path, hint=_HINT)
            found.append(one)
        return found

    def _draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Returns places in the running total of window starts, (count,)."""
        total = self._cumulative[1][-1]
        if self._weights is None:
            return rng.integers(total, size=count)
        return rng.random(count) * total

    def _window(
        self, draw: float, cumulative: np.ndarray, length: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the bases of the window at a place in the running total, and their soft mask."""
        place = self._place(draw, cumulative, length)
        if self.repeat_weight != 1.0:
            return self.genome.fetch_with_mask(place.chrom, place.start, place.end)
        bases = self.genome.fetch(place.chrom, place.start, place.end)
        return bases, np.zeros(len(bases), bool)

    def _place(self, draw: float, cumulative: np.ndarray, length: int) -> Interval:
        """Returns the window of length + 1 bases, or fewer, at a place in the running total."""
        index = int(np.searchsorted(cumulative, draw, side="right"))
        item, before = self.intervals[index], cumulative[index - 1] if index else 0
        inside = draw - before
        if self._weights is not None:
            inside = inside / self._weights[index]
        start = item.start + min(int(inside), max(len(item) - length, 1) - 1)
        return Interval(item.chrom, start, min(start + length + 1, item.end))

    def _starts(self, length: int) -> np.ndarray:
        """Returns the running total of window starts over the intervals, int64, shape
        (len(intervals),)."""
        if self._cumulative[0] != length:  # a warm-up keeps one length for many steps
            starts = np.maximum(self._sizes - length, 1)
            weighted = starts if self._weights is None else starts * self._weights
            self._cumulative = (length, np.cumsum(weighted))
        return self._cumulative[1]


def _generator(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


class EvaluationDataset(Dataset[dict[str, Any]]):
    """Windows that follow each other and have every base of the intervals as target exactly once.

    The first base of each interval is no target, for nothing precedes it. Windows come in order, so
    with ``batch_size=1`` a model may carry its state from one to the next and reset it where
    ``first`` is true. The last window of an interval is filled with [PAD].

    Args:
        genome: the sequence.
        intervals: what to score.
        length: L, positions in a window.
        batch_size: B, windows in an item.

    Attributes:
        skipped: number of intervals that were left out as shorter than two bases.
        n_windows: number of windows.
    """

    def __init__(
        self,
        genome: Genome | Collection,
        intervals: Sequence[Interval],
        length: int,
        batch_size: int = 1,
    ) -> None:
        if length < 1 or batch_size < 1:
            raise ConfigError(f"length={length} and batch_size={batch_size} must be at least 1")
        self.genome, self.length, self.batch_size = genome, length, batch_size
        self.intervals, self.skipped = _usable(intervals)
        # An interval of n bases has n - 1 targets.
        self._last = np.cumsum([-(-(len(item) - 1) // length) for item in self.intervals])
        self.n_windows = int(self._last[-1])

    def __len__(self) -> int:
        return -(-self.n_windows // self.batch_size)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns a batch of windows.

        Returns:
            ``input_ids`` and ``targets``, int64, shape (B, L); ``interval``, the index in
            ``intervals``, and ``start``, the position in the record of the window's first base,
            int64, shape (B,); ``first``, whether the window begins an interval, bool, shape (B,).
        """
        if not 0 <= index < len(self):
            raise IndexError(f"batch {index} of {len(self)}")
        windows = np.arange(
            index * self.batch_size, min((index + 1) * self.batch_size, self.n_windows)
        )
        which = np.searchsorted(self._last, windows, side="right")
        nth = windows - np.where(which > 0, self._last[which - 1], 0)
        starts = np.array([self.intervals[i].start for i in which]) + nth * self.length
        ids = np.full((len(windows), self.length + 1), PAD, np.uint8)
        inputs = np.full((len(windows), self.length), PAD, np.int64)
        for row, (i, start) in enumerate(zip(which, starts)):
            item = self.intervals[i]
            bases = self.genome.fetch(
                item.chrom, int(start), min(int(start) + self.length + 1, item.end)
            )
            ids[row, : len(bases)] = bases
            # The last base of the interval is a target only; as an input it would have nothing to
            # predict.
            inputs[row, : len(bases) - 1] = bases[:-1]
        return {
            "input_ids": torch.from_numpy(inputs),
            "targets": torch.from_numpy(next_token_targets(ids)),
            "interval": torch.from_numpy(which.astype(np.int64)),
            "start": torch.from_numpy(starts.astype(np.int64)),
            "first": torch.from_numpy(nth == 0),
        }
