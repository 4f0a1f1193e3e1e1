"""The data module of a long Parquet file that is larger than memory: windows from a pool of row
groups."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from longseq.core.checks import check_positive
from longseq.core.errors import ConfigError, DataError
from longseq.core.training.loader import step_dataloader
from longseq.timeseries.data.calendar import calendar_features, resolution
from longseq.timeseries.data.long_file import LongFile
from longseq.timeseries.data.module import ForecastData, Stage
from longseq.timeseries.data.panel import Panel
from longseq.timeseries.data.panel_data import PanelData
from longseq.timeseries.data.pools import Group, PoolWindows, SampleWindows
from longseq.timeseries.data.protocols import Split
from longseq.timeseries.data.ragged import Ragged, RaggedWindows
from longseq.timeseries.data.windows import Scaler, Windows
from longseq.timeseries.likelihoods import is_count


class SampleData(PanelData):
    """Some series of a file in memory, in z-scores of all their training rows."""

    known: Scaler

    def scaler(self) -> Scaler:
        """Returns the scaler of all training rows, of which the panel may hold the last ones."""
        return self.known


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
        date_order: "dmy", "mdy" or "ymd" (01/02/24); of numbers "ymd", "epoch" or "number".
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
        date_order: str | None = None,
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
            date_order=date_order,
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
        # Baselines are fitted on the sample's last rows: a pool of them, and some windows at least.
        rows = max(self.context + 4 * h, self.pool // (2 * self.valid_series))
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
                sample.append((first + c, ragged.tails(rows, np.array([c]))))
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

    def sample(self) -> PanelData:
        """Returns the series that validate, with their last rows, as data in memory for baselines.

        Series are laid so that all end on one row: the last horizon is what was tested, and the
        calendar is that of the series that end last.
        """
        _, scaler, tails, which, _, _ = self._found
        survey, count = self.file.survey, int(tails.lengths.max())
        table = np.full((count, len(which)), np.nan)
        for c, length in enumerate(tails.lengths.tolist()):
            table[count - length :, c] = tails.values[tails.bounds[c] :][:length]
        names = tuple(scaler.ids[i] for i in which)
        panel = Panel(table, names, survey.axis[-count:], survey.freq, self.path)
        made = SampleData.of(
            panel,
            context=self.context,
            horizon=self.horizon,
            eval_batch_size=self.eval_batch_size,
            min_context=self.least,
        )
        assert isinstance(made, SampleData)
        made.known = Scaler(names, scaler.mean[which], scaler.std[which])
        made.protocol = replace(made.protocol, name="of the last horizon of a sample of series")
        return made

    def not_counts(self) -> str | None:
        return self._found[5]

    def facts(self) -> dict[str, Any]:
        """See ``ForecastData``; training ends where the series that ends last has its last
        horizon."""
        end = str(self.file.survey.axis[max(self._found[4], 1) - 1])
        own = {"train_end": end, "frequency": self.panel.frequency, "least": self.least}
        return {**self.scaler().to_dict(), **own, "season": self.panel.season()}

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
