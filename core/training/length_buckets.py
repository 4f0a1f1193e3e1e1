"""Sequences cut into parts whose lengths are powers of two: every position once, every step of one
cost, short parts before long ones."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from longseq.core.checks import check_positive
from longseq.core.errors import ConfigError

Part = tuple[int, int, int]
"""Number of the sequence, first position, positions."""


@dataclass(frozen=True)
class _Epoch:
    """One pass over all positions.

    Attributes:
        number: of the pass, from 0.
        parts: (n, 3): sequence, first position, positions.
        rows: length → its rows, each with the numbers of its parts.
        steps: (length, number among the steps of that length), in order.
    """

    number: int
    parts: np.ndarray
    rows: dict[int, list[list[int]]]
    steps: list[tuple[int, int]]


class LengthBuckets:
    """Training batches of one length each, and of equally many positions (Dataset Decomposition,
    arXiv 2405.13226): no row holds two sequences unless they are told apart, and none is padded but
    the last of the shortest.

    A sequence is cut by the binary digits of its size, as ``longest`` allows; parts that are more
    than their length's share are halved, from the longest down. What is shorter than ``shortest``
    is packed into rows of that length, best fit first. In every pass other parts are halved, the
    parts of a sequence lie in another order, and other rows meet; their numbers stay. ``step`` is a
    pure function of its number, so that a resumed run needs no state.

    Args:
        sizes: positions of every sequence.
        longest: length of the longest rows, a power of two.
        shortest: of the shortest, likewise.
        tokens: positions of a step, a multiple of ``longest``.
        shares: of the positions, for the lengths from ``shortest`` to ``longest``, relative to one
            another; where sequences are too short for theirs, the lengths below take it over. Equal
            if None.
        cycles: how many times a pass goes from short to long; 0 for a random order.
        seed: of all choices, at least 0.

    Raises:
        ConfigError: for values that are impossible.

    Attributes:
        lengths: from the shortest to the longest.
        steps: of one pass.
        counts: length → its steps in one pass.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        longest: int,
        shortest: int,
        tokens: int,
        shares: Sequence[float] | None = None,
        cycles: int = 0,
        seed: int = 0,
    ) -> None:
        for name, value in (("longest", longest), ("shortest", shortest)):
            if check_positive(name, value) & (value - 1):
                raise ConfigError(f"{name} length {value} must be a power of two")
        if shortest > longest:
            raise ConfigError(f"the shortest length ({shortest}) is above the longest ({longest})")
        if tokens < longest or tokens % longest:
            raise ConfigError(f"{tokens} positions per step are no multiple of {longest}")
        if cycles < 0 or seed < 0:
            raise ConfigError(f"cycles={cycles} and seed={seed} must be at least 0")
        self.lengths = [1 << n for n in range(shortest.bit_length() - 1, longest.bit_length())]
        shares = [1.0] * len(self.lengths) if shares is None else list(shares)
        if len(shares) != len(self.lengths) or min(shares) < 0 or not 0 < sum(shares) < np.inf:
            raise ConfigError(
                f"{len(self.lengths)} shares of at least 0, not all 0, are needed, for the lengths "
                f"{', '.join(map(str, self.lengths))}; got {shares}"
            )
        self._sizes = np.asarray(sizes, np.int64)
        if self._sizes.ndim != 1 or not self._sizes.size or self._sizes.min() < 1:
            raise ConfigError("sequences of at least one position are needed")
        self._shares, self._tokens, self._cycles, self._seed = shares, tokens, cycles, seed
        self._epoch = self._make(0)
        self.steps = len(self._epoch.steps)
        self.counts = dict.fromkeys(self.lengths, 0)
        for length, _ in self._epoch.steps:
            self.counts[length] += 1

    def __repr__(self) -> str:
        return f"LengthBuckets({self._sizes.size} sequences, steps by length {self.counts})"

    def step(self, number: int) -> tuple[int, list[list[Part]]]:
        """Returns the length of a step's rows, and of every row its parts, one after the other; a
        row without parts fills up the last step of the shortest length.

        Args:
            number: of the step, from 0, over all passes.
        """
        epoch, within = divmod(number, self.steps)
        if epoch != self._epoch.number:
            self._epoch = self._make(epoch)
        length, nth = self._epoch.steps[within]
        count = self._tokens // length
        rows = self._epoch.rows[length][nth * count : (nth + 1) * count]
        found = [[self._part(one) for one in row] for row in rows]
        return length, found + [[] for _ in range(count - len(rows))]

    def _part(self, number: int) -> Part:
        sequence, begin, size = self._epoch.parts[number].tolist()
        return sequence, begin, size

    def _make(self, number: int) -> _Epoch:
        """Cuts the sequences for a pass."""
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((self._seed, number))))
        by_length, tails = self._cut(rng)
        owners = [*by_length.values(), tails]
        sizes = [np.full(len(all_of), size) for size, all_of in by_length.items()]
        sequence = np.concatenate(owners)
        size = np.concatenate([*sizes, self._sizes[tails] % self.lengths[0]])
        # The parts of a sequence lie in it in a random order.
        order = np.lexsort((rng.random(len(size)), sequence))
        ends = np.cumsum(size[order])
        first = np.zeros(len(self._sizes), np.int64)
        first[1:] = np.cumsum(self._sizes)[:-1]
        begin = np.empty_like(size)
        begin[order] = ends - size[order] - first[sequence[order]]
        parts, at = np.stack([sequence, begin, size], 1), 0
        rows: dict[int, list[list[int]]] = {}
        for length, all_of in by_length.items():
            rows[length] = [[one] for one in range(at, at + len(all_of))]
            at += len(all_of)
        rows[self.lengths[0]] += pack(size[at:].tolist(), self.lengths[0], at)
        for length in self.lengths:
            order = rng.permutation(len(rows[length]))
            rows[length] = [rows[length][one] for one in order]
        return _Epoch(number, parts, rows, self._order(rows, rng))

    def _cut(self, rng: np.random.Generator) -> tuple[dict[int, np.ndarray], np.ndarray]:
        """Returns length → the sequence of each of its parts, and the sequences with a rest that is
        shorter than all lengths."""
        numbers = np.arange(len(self._sizes))
        found = {self.lengths[-1]: np.repeat(numbers, self._sizes // self.lengths[-1])}
        for length in self.lengths[-2::-1]:
            found[length] = numbers[self._sizes & length > 0]
        left = sum(length * len(all_of) for length, all_of in found.items())
        for place in range(len(self.lengths) - 1, 0, -1):
            length, below = self.lengths[place], self.lengths[place - 1]
            all_of, rows = found[length], self._tokens // length
            below_too = sum(self._shares[: place + 1])
            share = self._shares[place] / below_too if below_too else 0.0
            keep = min(len(all_of), round(share * left / length))
            keep -= keep % rows  # whole steps only
            order = rng.permutation(len(all_of))
            halved = np.repeat(all_of[order[keep:]], 2)
            found[length] = all_of[order[:keep]]
            found[below] = np.concatenate([found[below], halved])
            left -= keep * length
        return found, numbers[self._sizes % self.lengths[0] > 0]

    def _order(
        self, rows: dict[int, list[list[int]]], rng: np.random.Generator
    ) -> list[tuple[int, int]]:
        """Returns the steps of a pass in order."""
        every = [
            (length, nth, -(-len(rows[length]) * length // self._tokens))
            for length in self.lengths
            for nth in range(-(-len(rows[length]) * length // self._tokens))
        ]
        if self._cycles:  # every cycle has its part of every length, the short ones first
            every.sort(key=lambda one: (one[1] * self._cycles // one[2], one[0]))
        else:
            every = [every[one] for one in rng.permutation(len(every))]
        return [(length, nth) for length, nth, _ in every]


def pack(sizes: Sequence[int], capacity: int, first: int = 0) -> list[list[int]]:
    """Puts pieces into as few rows as goes quickly: the largest first, each into the fullest row
    that has room for it.

    Args:
        sizes: of the pieces, each at most ``capacity``.
        capacity: of a row.
        first: number of the first piece.

    Returns:
        The numbers of the pieces of each row.
    """
    rows: list[list[int]] = []
    free: list[tuple[int, int]] = []  # room of a row, its number
    for piece in sorted(range(len(sizes)), key=lambda one: -sizes[one]):
        at = bisect_left(free, (sizes[piece], 0))
        room, row = free.pop(at) if at < len(free) else (capacity, len(rows))
        if row == len(rows):
            rows.append([])
        rows[row].append(first + piece)
        insort(free, (room - sizes[piece], row))
    return rows
