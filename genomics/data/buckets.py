"""Training batches of genomes in which every pair of neighbouring bases is met once per pass,
whatever the records' lengths."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.utils.data import Dataset

from longseq.core.errors import ConfigError, DataError
from longseq.core.training.length_buckets import LengthBuckets
from longseq.genomics.data.collection import Collection
from longseq.genomics.data.fasta import Genome
from longseq.genomics.data.splits import Interval
from longseq.genomics.data.tokenizer import IGNORE_INDEX, PAD, is_base, reverse_complement
from longseq.genomics.data.windows import next_token_targets

_PIECE = 1 << 20  # bases looked at at once


class BucketDataset(Dataset[dict[str, torch.Tensor]]):
    """Training batches indexed by the optimiser's step: see ``LengthBuckets`` for the lengths.

    In one pass every base but the first of an interval is the target of the one before it exactly
    once (or, in a part that is reverse-complemented, that one the target of it), with nothing of
    another interval in its context. Runs of N as long as ``shortest`` are left out. The
    ranks' batches of a step, one after the other, are the batch of one rank that takes as many rows
    as all of them.

    Args:
        genome: the sequence.
        intervals: what is trained on.
        longest: length of the longest rows, a power of two.
        shortest: of the shortest.
        batch_size: rows of ``longest`` in a step of one rank.
        shares: see ``LengthBuckets``.
        cycles: see ``LengthBuckets``.
        seed: of all choices, at least 0.
        rc_augment: take the reverse complement of each part with probability one half.
        rank: of this process in data-parallel training.
        world: number of processes; each takes its rows of the step's.
        repeat_weight: of soft-masked bases in the loss; those of others are 1.

    Raises:
        ConfigError: see ``LengthBuckets``.
        DataError: if no interval has two bases.

    Attributes:
        intervals: the parts of the intervals between runs of N.
        buckets: which parts of them a step has.
    """

    def __init__(
        self,
        genome: Genome | Collection,
        intervals: Sequence[Interval],
        longest: int,
        shortest: int,
        batch_size: int,
        shares: Sequence[float] | None = None,
        cycles: int = 0,
        seed: int = 0,
        rc_augment: bool = True,
        *,
        rank: int = 0,
        world: int = 1,
        repeat_weight: float = 1.0,
    ) -> None:
        if not 0 <= rank < world:
            raise ConfigError(f"rank={rank} of {world} must be at least 0")
        self.genome, self.seed, self.rc_augment = genome, seed, rc_augment
        self.rank, self.world, self.repeat_weight = rank, world, repeat_weight
        self.intervals = [
            part
            for one in intervals
            for part in known_parts(genome, one, shortest)
            if len(part) > 1
        ]
        if not self.intervals:
            raise DataError(
                f"none of {len(intervals)} intervals has two bases, so there is nothing to predict"
            )
        sizes = [len(one) - 1 for one in self.intervals]  # the first base is no target
        tokens = longest * batch_size * world
        self.buckets = LengthBuckets(sizes, longest, shortest, tokens, shares, cycles, seed)

    def __len__(self) -> int:
        return self.buckets.steps

    def __getitem__(self, step: int) -> dict[str, torch.Tensor]:
        """Returns ``input_ids`` and ``targets`` of a step, int64, shape (B, L), and, where a row
        has several parts, ``segment_ids``; [PAD] fills a row up."""
        length, rows = self.buckets.step(step)
        count = len(rows) // self.world
        rows = rows[self.rank * count : (self.rank + 1) * count]
        inputs = np.full((count, length), PAD, np.int64)
        targets = np.full((count, length), IGNORE_INDEX, np.int64)
        segments = np.zeros((count, length), np.int64)
        weights = np.ones((count, length), np.float32)
        for row, parts in enumerate(rows):
            key = (self.seed, step, self.rank * count + row)
            rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))
            at = 0
            for number, (which, begin, size) in enumerate(parts):
                bases, mask = self._fetch(which, begin, size)
                # Drawn whether used or not, so that the augmentation changes nothing else.
                if rng.random() < 0.5 and self.rc_augment:
                    bases, mask = reverse_complement(bases), mask[::-1]
                place = slice(at, at + size)
                inputs[row, place], targets[row, place] = bases[:-1], next_token_targets(bases)
                weights[row, place] = np.where(mask[1:], self.repeat_weight, 1.0)
                at += size
                segments[row, at:] = number + 1
        found = {"input_ids": torch.from_numpy(inputs), "targets": torch.from_numpy(targets)}
        if any(len(parts) > 1 for parts in rows):
            found["segment_ids"] = torch.from_numpy(segments)
        if self.repeat_weight != 1.0:
            found["weights"] = torch.from_numpy(weights)
        return found

    def _fetch(self, which: int, begin: int, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the bases of so many positions and the one after them, and their soft mask."""
        item = self.intervals[which]
        start = item.start + begin
        if self.repeat_weight != 1.0:
            return self.genome.fetch_with_mask(item.chrom, start, start + size + 1)
        bases = self.genome.fetch(item.chrom, start, start + size + 1)
        return bases, np.zeros(len(bases), bool)


def known_parts(genome: Genome | Collection, interval: Interval, shortest: int) -> list[Interval]:
    """Returns an interval without its runs of unknown bases of some length.

    Args:
        genome: the sequence.
        interval: in it.
        shortest: length from which on a run is left out.
    """
    unknown = np.concatenate(
        [
            ~is_base(genome.fetch(interval.chrom, low, min(low + _PIECE, interval.end)))
            for low in range(interval.start, interval.end, _PIECE)
        ]
        or [np.zeros(0, bool)]
    )
    edges = np.flatnonzero(np.diff(unknown, prepend=False, append=False))
    runs = edges.reshape(-1, 2) + interval.start
    runs = runs[runs[:, 1] - runs[:, 0] >= shortest]
    bounds = [interval.start, *runs.ravel().tolist(), interval.end]
    return [
        Interval(interval.chrom, low, high)
        for low, high in zip(bounds[::2], bounds[1::2])
        if low < high
    ]
