"""Windows: training batches as a pure function of the step, and evaluation over every base exactly
once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from longseq.core.errors import ConfigError, DataError
from longseq.genomics.data.fasta import Genome
from longseq.genomics.data.splits import Interval
from longseq.genomics.data.tokenizer import IGNORE_INDEX, PAD, N, is_base, reverse_complement


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

    ``ds[step]`` depends on (seed, step, rank) only: not on the worker, nor on what was read before.
    Training therefore resumes at any step with exactly the batches that it would have had. Use it
    with ``DataLoader(ds, sampler=range(first_step, last_step), batch_size=None)``.

    A window's start is uniform over all positions of all intervals at which it fits. An interval
    shorter than a window counts as one position and is padded with N after its end, never with
    bases from outside it, which might be held out.

    Args:
        genome: the sequence.
        intervals: where windows may lie.
        schedule: maps a step to (batch size, length L), for a length warm-up.
        seed: of the windows, at least 0.
        rc_augment: take each window's reverse complement with probability one half.
        steps: number of steps, for ``len``.
        rank: of this process in data-parallel training; every rank draws its own windows.

    Attributes:
        skipped: number of intervals that were left out as shorter than two bases.
    """

    def __init__(
        self,
        genome: Genome,
        intervals: Sequence[Interval],
        schedule: Callable[[int], tuple[int, int]],
        seed: int = 0,
        rc_augment: bool = True,
        *,
        steps: int | None = None,
        rank: int = 0,
    ) -> None:
        if seed < 0 or rank < 0:
            raise ConfigError(f"seed={seed} and rank={rank} must be at least 0")
        self.genome, self.schedule, self.seed, self.rank = genome, schedule, seed, rank
        self.rc_augment, self.steps = rc_augment, steps
        self.intervals, self.skipped = _usable(intervals)
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
        rng = np.random.Generator(
            np.random.Philox(np.random.SeedSequence([self.seed, step, self.rank]))
        )
        cumulative = self._starts(length)
        draws = rng.integers(cumulative[-1], size=batch)
        # Drawn whether used or not, so that the augmentation does not change where the windows lie.
        flips = rng.random(batch) < 0.5
        which = np.searchsorted(cumulative, draws, side="right")
        ids = np.full((batch, length + 1), N, np.uint8)
        for row, (draw, index, flip) in enumerate(zip(draws, which, flips)):
            item = self.intervals[index]
            start = item.start + int(draw - (cumulative[index - 1] if index else 0))
            bases = self.genome.fetch(item.chrom, start, min(start + length + 1, item.end))
            ids[row, : len(bases)] = (
                reverse_complement(bases) if flip and self.rc_augment else bases
            )
        return {
            "input_ids": torch.from_numpy(ids[:, :-1].astype(np.int64)),
            "targets": torch.from_numpy(next_token_targets(ids)),
        }

    def _starts(self, length: int) -> np.ndarray:
        """Returns the running total of window starts over the intervals, int64, shape
        (len(intervals),)."""
        if self._cumulative[0] != length:  # a warm-up keeps one length for many steps
            self._cumulative = (length, np.cumsum(np.maximum(self._sizes - length, 1)))
        return self._cumulative[1]


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
        self, genome: Genome, intervals: Sequence[Interval], length: int, batch_size: int = 1
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
