"""The data module of a long Parquet file that is larger than memory: windows from a pool of row
groups."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from longseq.core.checks import check_positive
from longseq.core.errors import ConfigError, DataError
from longseq.core.training.loader import step_dataloader
from longseq.timeseries.data.calendar import calendar_features, resolution
from longseq.timeseries.data.long_file import LongFile
from longseq.timeseries.data.module import ForecastData, Stage
from longseq.timeseries.data.panel import Panel
from longseq.timeseries.data.protocols import Split
from longseq.timeseries.data.ragged import Ragged, RaggedWindows
from longseq.timeseries.data.windows import Scaler, Windows
from longseq.timeseries.likelihoods import is_count

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


class LongFileData(ForecastData):
    """Windows of a long Parquet file whose rows stand series by series, in memory that does not
    grow with the file: a pool of row groups at a time, and 100 bytes or so for every series.

    The last horizon of every series validates, in a sample of series; the rows before it train.
    Every series has a scaler of its own. For models that take series one by one.

    Args:
        path: the file.
        context: known rows L of a window.
        horizon: predicted rows h.
        batch_size: windows a training step.
        eval_batch_size: windows at once in validation; the figures do not depend on it.
        steps_per_epoch: batches between two ends of an epoch; None for one pass over the training
            windows.
        pool: rows that are in memory at a time, in every process that makes batches; at least one
            row group.
        valid_series: series whose last horizon validates, evenly drawn; up to twice as many.
        seed: of the training batches.
        num_workers: processes that make batches, each with a pool of its own.
        id: column with the name of the series; by the usual names if None.
        time: column with the times; by the usual names if None.
        target: column with the values; by the usual names if None.
        zone: IANA name of the clock of the times, for example "Europe/Berlin".
        min_context: rows since a series began that a window needs; None for the whole context.
    """

    def __init__(
        self,
        path: str,
        context: int = 336,
        horizon: int = 96,
        batch_size: int = 32,
        eval_batch_size: int = 128,
        steps_per_epoch: int | None = None,
        pool: int = 3_000_000,
        valid_series: int = 1024,
        seed: int = 0,
        num_workers: int = 0,
        id: str | None = None,
        time: str | None = None,
        target: str | None = None,
        zone: str | None = None,
        min_context: int | None = None,
    ) -> None:
        super().__init__(
            path,
            context=context,
            horizon=horizon,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            steps_per_epoch=steps_per_epoch,
            seed=seed,
            num_workers=num_workers,
            id=id,
            time=time,
            target=target,
            zone=zone,
            min_context=min_context,
        )
        self.pool = check_positive("pool", pool)
        self.valid_series = check_positive("valid_series", valid_series)

    @cached_property
    def file(self) -> LongFile:
        """The file, surveyed as a whole."""
        return LongFile(self.path, self.roles)

    @property
    def panel(self) -> Panel:
        """The times of the file without its series, which are never all in memory."""
        survey = self.file.survey
        none = np.empty((len(survey.axis), 0))
        return Panel(none, (), survey.axis, survey.freq, self.path, survey.notes)

    @cached_property
    def _found(self) -> tuple[list[Group], Scaler, Ragged, np.ndarray, int, str | None]:
        """Row groups, scaler, the sample, its series, the last training row, a series that is no
        count."""
        file, h = self.file, self.horizon
        groups: dict[int, list[int]] = {}  # first row, rows, first series, series, windows
        names, means, stds = [], [np.empty(0)], [np.empty(0)]
        sample: list[tuple[int, Ragged]] = []
        every, end, other = 1, 0, None
        for piece in file.pieces():
            ragged, first = Ragged.of(piece, file.rows_of(piece)), len(names)
            mean, std = ragged.scales(h)
            windows = np.bincount(
                np.searchsorted(ragged.bounds, ragged.cutoffs(self.least, h, h), side="right") - 1,
                minlength=len(mean),
            )
            begins = piece.first_row + piece.bounds[:-1]
            held = np.searchsorted(file.group_starts, begins, side="right") - 1
            for g in np.unique(held).tolist():
                mine = np.flatnonzero(held == g)
                sums = int(piece.counts[mine].sum()), len(mine), int(windows[mine].sum())
                fresh = [int(begins[mine[0]]), 0, first + int(mine[0]), 0, 0]
                group = groups.setdefault(g, fresh)
                for place, more in zip((1, 3, 4), sums):
                    group[place] += more
            if other is None and not is_count(piece.values):
                bad = [
                    len(one) > 0 and not is_count(one)
                    for one in np.split(ragged.values, ragged.bounds[1:-1])
                ]
                other = str(piece.names[bad.index(True)]) if any(bad) else None
            end = max(end, int((ragged.starts + ragged.lengths).max()) - h)
            at = ragged.cutoffs(self.least, h, 0, last=True)
            able = np.searchsorted(ragged.bounds, at, side="right") - 1
            for c in able[(first + able) % every == 0].tolist():
                sample.append((first + c, ragged.tails(self.context + h, np.array([c]))))
            while len(sample) >= 2 * self.valid_series:
                every *= 2
                sample = [one for one in sample if one[0] % every == 0]
            names += piece.names.tolist()
            means.append(mean)
            stds.append(std)
        made = [Group(*numbers) for numbers in groups.values() if numbers[4]]
        if not made:
            raise DataError(
                f"no series has {self.least} rows before a training target of {h}, and {h} that "
                "validate",
                path=self.path,
                hint="shorten --data.context, or allow padded contexts by --data.min_context",
            )
        if (largest := max(made, key=lambda group: group.rows)).rows > self.pool:
            raise DataError(
                f"has a row group of {largest.rows:,} rows, the pool holds {self.pool:,}",
                path=self.path,
                hint="raise --data.pool, or write it anew: polars.scan_parquet(…).sink_parquet("
                "…, row_group_size=500_000)",
            )
        scaler = Scaler(tuple(map(str, names)), np.concatenate(means), np.concatenate(stds))
        which = np.array([i for i, _ in sample], np.int64)
        return made, scaler, Ragged.joined([one for _, one in sample]), which, end, other

    def scaler(self) -> Scaler:
        """Returns the scaler of every series, of its training rows."""
        return self._found[1]

    def split(self) -> Split:
        raise self._whole()

    def windows(self, stage: Stage, stride: int = 1) -> Windows:
        raise self._whole()

    def _whole(self) -> ConfigError:
        return ConfigError(
            f"{self.path}: its series are never all in memory, so nothing can be compared on them: "
            "predict forecasts them in pieces; compare takes a file with some of the series"
        )

    def not_counts(self) -> str | None:
        return self._found[5]

    def facts(self) -> dict[str, Any]:
        """See ``ForecastData``; training ends where the series that ends last has its last
        horizon."""
        end = str(self.file.survey.axis[max(self._found[4], 1) - 1])
        own = {"train_end": end, "frequency": self.panel.frequency, "least": self.least}
        return {**self.scaler().to_dict(), **own}

    def setup(self, stage: str | None = None) -> None:
        """Goes through the file, so that bad input fails before training starts."""
        if not self._pairs:
            raise ConfigError(
                f"{self.path}: a model that takes all series at once needs them in memory: "
                "ForecastData, or a model that takes series one by one"
            )
        self._found  # noqa: B018
        if stage in (None, "fit") and not self._told:
            self._told = True
            for note in self.panel.notes:
                print(f"{self.path}: {note}")
            groups, scaler = self._found[:2]
            print(
                f"{self.path}: {len(scaler.ids):,} series of {self.file.rows:,} rows, "
                f"{sum(group.windows for group in groups):,} training windows, drawn from pools of "
                f"{self.pool:,} rows; {len(self._found[3]):,} series validate"
            )

    def train_dataloader(self) -> Any:
        """Returns the loader of training windows, which resumes at any step."""
        groups, scaler = self._found[:2]
        rank, world = self._ranks()
        sizes = (self.context, self.horizon, self.least)
        batches = PoolWindows(
            *(self.file, groups, scaler, sizes, self.pool),
            *(self.batch_size, self.seed, rank, world),
        )
        steps = self.steps_per_epoch or max(1, len(batches) // (self.batch_size * world))
        return step_dataloader(batches, self.trainer, steps, self.num_workers)

    def val_dataloader(self) -> Any:
        """Returns the last window of a sample of series."""
        _, scaler, sample, which, _, _ = self._found
        survey, (rank, world) = self.file.survey, self._ranks()
        marks = torch.from_numpy(calendar_features(survey.axis, resolution(survey.freq)))
        mean, std = scaler.mean[which], scaler.std[which]
        windows = RaggedWindows(sample, mean, std, marks, self.context, self.horizon)
        at = sample.cutoffs(self.least, self.horizon, 0, last=True)
        return DataLoader(
            SampleWindows(windows, at, self.eval_batch_size, rank, world), batch_size=None
        )

    def test_dataloader(self) -> Any:
        """Returns the windows that validate: none are held back beside them."""
        return self.val_dataloader()
