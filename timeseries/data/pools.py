"""Training windows from pools of row groups of a long file, one pool in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from longseq.timeseries.data.calendar import calendar_features, resolution
from longseq.timeseries.data.long_file import LongFile
from longseq.timeseries.data.ragged import Ragged, RaggedWindows
from longseq.timeseries.data.windows import Scaler

VISIT = 100  # batches that are drawn from a pool before the next one is read


@dataclass(frozen=True)
class Group:
    """The series that begin in one row group of a file.

    Args:
        row: first of their rows in the file.
        rows: number of their rows.
        series: number of the first one.
        count: number of series.
        windows: of training.
    """

    row: int
    rows: int
    series: int
    count: int
    windows: int


class PoolWindows(Dataset[Any]):
    """``dataset[n]`` is the n-th training batch, a pure function of n.

    An epoch deals the row groups into pools. A pool's windows are shuffled, and ``VISIT`` batches
    of them are taken before the next pool is read; once all pools were read, their next windows
    follow, so that every epoch has every window once and the file is gone through often. A process
    holds one pool at a time.

    Args:
        file: of the series.
        groups: those with windows of training.
        scaler: of all series.
        sizes: context L, horizon h, and the least rows of a context.
        pool: rows of a pool.
        batch_size: windows per batch.
        seed: of all orders.
        rank: of this process.
        world: number of processes.
    """

    def __init__(
        self,
        file: LongFile,
        groups: list[Group],
        scaler: Scaler,
        sizes: tuple[int, int, int],
        pool: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.file, self.groups, self.scaler, self.sizes = file, groups, scaler, sizes
        self.pool, self.batch_size, self.seed = pool, batch_size, seed
        self.rank, self.world = rank, world
        survey = file.survey
        self.marks = torch.from_numpy(calendar_features(survey.axis, resolution(survey.freq)))
        self._visits: tuple[int, list[list[int]], np.ndarray, np.ndarray] | None = None
        self._held: tuple[tuple[int, int], RaggedWindows, np.ndarray] | None = None

    def __len__(self) -> int:
        return sum(group.windows for group in self.groups)

    def _schedule(self, epoch: int) -> tuple[list[list[int]], np.ndarray, np.ndarray]:
        """Returns the groups of every pool; the pool and the slice of its windows of every visit
        (V, 2); and where visits end, in windows (V,)."""
        if self._visits is None or self._visits[0] != epoch:
            generator = np.random.default_rng([self.seed, epoch])
            pools: list[list[int]] = [[]]
            rows = 0
            for i in generator.permutation(len(self.groups)).tolist():
                if pools[-1] and rows + self.groups[i].rows > self.pool:
                    pools.append([])
                    rows = 0
                pools[-1].append(i)
                rows += self.groups[i].rows
            size = VISIT * self.batch_size * self.world
            windows = np.array([sum(self.groups[i].windows for i in one) for one in pools])
            visits, counts = [], []
            for part in range(-(-int(windows.max()) // size)):
                left = windows - part * size
                for k in generator.permutation(np.flatnonzero(left > 0)):
                    visits.append((int(k), part))
                    counts.append(min(size, int(left[k])))
            self._visits = epoch, pools, np.array(visits), np.cumsum(counts)
        return self._visits[1:]

    def _load(self, epoch: int, k: int, members: list[int]) -> tuple[RaggedWindows, np.ndarray]:
        """Returns the windows of a pool and their order; the last pool is given up before."""
        if self._held is None or self._held[0] != (epoch, k):
            self._held = None
            parts, series = [], []
            for i in members:
                group = self.groups[i]
                piece = self.file.read(group.row, group.rows)
                parts.append(Ragged.of(piece, self.file.rows_of(piece)))
                series.append(np.arange(group.series, group.series + group.count))
                del piece
            ragged, which = Ragged.joined(parts), np.concatenate(series)
            del parts
            context, horizon, least = self.sizes
            at = ragged.cutoffs(least, horizon, horizon)
            np.random.default_rng([self.seed, epoch, k]).shuffle(at)
            mean, std = self.scaler.mean[which], self.scaler.std[which]
            windows = RaggedWindows(ragged, mean, std, self.marks, context, horizon)
            self._held = (epoch, k), windows, at
        return self._held[1:]

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        place, left, parts = (step * self.world + self.rank) * self.batch_size, self.batch_size, []
        while left:
            epoch, at = divmod(place, len(self))
            pools, visits, ends = self._schedule(epoch)
            v = int(np.searchsorted(ends, at, side="right"))
            (k, part), begun = visits[v], int(ends[v - 1]) if v else 0
            windows, order = self._load(epoch, int(k), pools[k])
            first = int(part) * VISIT * self.batch_size * self.world + at - begun
            count = min(left, int(ends[v]) - at)
            parts.append(windows.batch(order[first : first + count]))
            place, left = place + count, left - count
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


class SampleWindows(Dataset[Any]):
    """The last window of a sample of series, in order, in batches.

    Args:
        windows: of the sample.
        at: first target of every window.
        batch_size: windows per batch; a matter of memory, not of the result.
        rank: of this process, which takes every ``world``-th window.
        world: number of processes.
    """

    def __init__(
        self, windows: RaggedWindows, at: np.ndarray, batch_size: int, rank: int, world: int
    ) -> None:
        self.windows, self.mine, self.batch_size = windows, at[rank::world], batch_size

    def __len__(self) -> int:
        return -(-len(self.mine) // self.batch_size)

    def __getitem__(self, place: int) -> dict[str, Tensor]:
        if not 0 <= place < len(self):
            raise IndexError(place)
        return self.windows.batch(self.mine[place * self.batch_size :][: self.batch_size])

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return (self[place] for place in range(len(self)))
