"""The panel: series on one regular time axis, each with its own start, end and gaps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from longseq.core.errors import ConfigError, did_you_mean
from longseq.timeseries.data.covariates import Covariates
from longseq.timeseries.data.times import times_after

CELLS = 2**18  # values that are worked on at once: a matter of memory, not of the result


@dataclass(frozen=True)
class Panel:
    """Series on one regular time axis.

    Args:
        values: float64 (T, C), T rows of C series; NaN where nothing was observed: before a series
            begins, after it ends, and in its gaps.
        ids: name of every series.
        ds: time of every row: a ``DatetimeIndex`` (with its zone, where one is known), or integers
            for files without times.
        freq: step of ``ds``: a pandas offset, or a whole number.
        source: file that it came from, for messages.
        notes: what the reader understood and a user should know, a sentence each.
        covariates: what is known beside the values.
    """

    values: np.ndarray
    ids: tuple[str, ...]
    ds: pd.Index
    freq: Any
    source: str = ""
    notes: tuple[str, ...] = ()
    covariates: Covariates = field(default_factory=Covariates)

    def __len__(self) -> int:
        return len(self.ds)

    @property
    def dated(self) -> bool:
        """Whether the rows have calendar times."""
        return isinstance(self.ds, pd.DatetimeIndex)

    @cached_property
    def observed(self) -> np.ndarray:
        """Where a value was observed, bool (T, C)."""
        return ~np.isnan(self.values)

    @cached_property
    def starts(self) -> np.ndarray:
        """First observed row of every series (C,); T for one without values."""
        return np.where(self.observed.any(0), self.observed.argmax(0), len(self))

    @cached_property
    def ends(self) -> np.ndarray:
        """One past the last observed row of every series (C,); 0 for one without values."""
        return np.where(self.observed.any(0), len(self) - self.observed[::-1].argmax(0), 0)

    @property
    def missing(self) -> int:
        """Number of values that are missing between the first and the last of their series."""
        inside = np.maximum(self.ends - self.starts, 0).sum()
        return int(inside - self.observed.sum())

    def carried(self) -> np.ndarray:
        """Returns the values with gaps and ends carried forward, as models read them (T, C).

        Rows before a series begins hold its first value. Whatever is carried is context only: it
        is never a target of training, of a score or of an interval.
        """
        found = np.empty(self.values.shape)
        for part, filled in self.carried_parts():
            found[:, part] = filled
        return found

    def carried_parts(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Yields ``carried`` of some series after others, so that no copy of all is needed."""
        some = max(1, CELLS // max(1, len(self)))
        for start in range(0, len(self.ids), some):
            part = slice(start, start + some)
            observed, values = self.observed[:, part], self.values[:, part]
            rows = np.where(observed, np.arange(len(self))[:, None], -1)
            last = np.maximum.accumulate(rows, axis=0)
            first = np.minimum(self.starts[part], len(self) - 1)
            filled = np.take_along_axis(values, np.where(last < 0, first, last), axis=0)
            yield part, np.where(observed.any(0), filled, 0.0)

    def future(self, row: int, horizon: int) -> pd.Index:
        """Returns the times of rows ``row … row + horizon - 1``, beyond the end if need be.

        Args:
            row: first row.
            horizon: number of rows.
        """
        known = self.ds[row : row + horizon]
        more = horizon - len(known)
        if more == 0:
            return known
        skip = max(0, row - len(self))
        if not self.dated:
            return known.append(pd.Index(self.ds[-1] + self.freq * (1 + skip + np.arange(more))))
        return known.append(times_after(self.ds, self.freq, more + skip)[skip:])

    def extended(self, horizon: int) -> Panel:
        """Returns the panel with ``horizon`` rows more, of which nothing is observed."""
        empty = np.full((horizon, len(self.ids)), np.nan)
        ds = self.ds.append(self.future(len(self), horizon))
        return replace(
            self,
            values=np.concatenate([self.values, empty]),
            ds=ds,
            covariates=self.covariates.extended(ds, self.freq),
        )

    def before(self, row: int) -> Panel:
        """Returns the rows before ``row``, and what is known of the future."""
        return replace(
            self,
            values=self.values[:row],
            ds=self.ds[:row],
            covariates=self.covariates.rows(row),
        )

    def select(self, names: list[str] | None) -> Panel:
        """Returns the panel with only the named series, in that order; itself for None.

        Raises:
            ConfigError: for an unknown name.
        """
        if names is None:
            return self
        for name in names:
            if name not in self.ids:
                raise ConfigError(
                    f"{self.source}: no series {name!r}; {did_you_mean(name, self.ids)}"
                )
        place = {name: i for i, name in enumerate(self.ids)}
        columns = [place[name] for name in names]
        return replace(
            self,
            values=self.values[:, columns],
            ids=tuple(names),
            covariates=self.covariates.select(columns),
        )

    @property
    def step(self) -> pd.Timedelta | None:
        """The usual distance of two rows; None without times."""
        if not self.dated or len(self) < 2:
            return None
        return pd.Timedelta(np.median(np.diff(self.ds.tz_localize(None).to_numpy())))

    @property
    def frequency(self) -> str:
        """The step in words that a checkpoint can keep: "h", "15min", "MS", "D", or "1" for rows
        without times."""
        return str(getattr(self.freq, "freqstr", self.freq))

    def season(self) -> int:
        """Returns the usual season in rows: a day for steps below a day, else a week, a year, or 1.

        Steps below a minute have none that could be taken for granted.
        """
        step = self.step
        if step is None or step < pd.Timedelta(minutes=1):
            return 1
        if "BusinessDay" in type(self.freq).__name__:
            return 5
        for span in (pd.Timedelta(days=1), pd.Timedelta(days=7)):
            if step < span and span % step == pd.Timedelta(0):
                return int(span / step)
        days = step / pd.Timedelta(days=1)
        if days in (7, 14, 28):  # a year of 52 weeks
            return int(364 / days)
        months = (n for n in (1, 2, 3, 4, 6) if 30 * n - 2 <= days <= 31 * n)
        return next((12 // n for n in months), 1)
