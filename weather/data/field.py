"""A checked field over time on a latitude-longitude grid, always in one convention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from longseq.core.errors import DataError


@dataclass(frozen=True)
class Field:
    """A variable on (time, latitude, longitude).

    Args:
        values: float32 (T, Y, X), or (M, T, Y, X) with M ensemble members.
        time: T cftime dates, ascending.
        lat: degrees north (Y), ascending: from south to north.
        lon: degrees east (X), ascending in [0, 360).
        name: of the variable.
        units: of the values.
        calendar: CF name.
        path: file that it was read from.
        attrs: further CF attributes: standard_name, long_name, cell_methods.
        notes: what was changed on reading, for example "longitude from [-180, 180) to [0, 360)".
    """

    values: np.ndarray
    time: np.ndarray
    lat: np.ndarray
    lon: np.ndarray
    name: str
    units: str
    calendar: str
    path: str = ""
    attrs: dict[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()

    @property
    def years(self) -> np.ndarray:
        """The year of every time (T), int."""
        return np.array([date.year for date in self.time], dtype=int)

    @property
    def mean(self) -> np.ndarray:
        """Values (T, Y, X), the mean over members where there are several."""
        if self.values.ndim == 3:
            return self.values
        return self.values.mean(0, dtype=np.float64).astype(np.float32)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the grid (Y, X)."""
        return len(self.lat), len(self.lon)


def same_grid(one: Field, other: Field) -> bool:
    """Returns whether two fields lie on the same grid, to 1e-4 degrees."""
    return (
        one.shape == other.shape
        and np.allclose(one.lat, other.lat, atol=1e-4)
        and np.allclose(one.lon, other.lon, atol=1e-4)
    )


def annual_means(data: Field) -> Field:
    """Returns yearly means; months count by their days in the file's own calendar.

    Args:
        data: one record a year (kept as it is), twelve a year, or one a day.

    Raises:
        DataError: if a year has fewer records than its neighbours, or the step is another.
    """
    import cftime

    years, counts = np.unique(data.years, return_counts=True)
    if np.all(counts == 1):
        gaps = np.flatnonzero(np.diff(years) != 1)
        if len(gaps):
            raise DataError(
                f"the years {years[gaps[0]]} and {years[gaps[0] + 1]} follow each other: years "
                f"are missing",
                path=data.path,
            )
        return data
    weights = np.array([_days(date) for date in data.time], dtype=np.float64)
    for year, count in zip(years, counts):
        dates = data.time[data.years == year]
        months = {date.month for date in dates}
        full = (count == 12 and len(months) == 12) or count == sum(
            _days(cftime.datetime(year, month, 1, calendar=data.calendar)) for month in range(1, 13)
        )
        if not full:
            raise DataError(
                f"has {count} records: whole years of one, twelve, or one record a day are needed",
                path=data.path,
                record=f"year {year}",
                hint="cut the file to whole years",
            )
    daily = counts[0] > 12
    means, times = [], []
    for year in years:
        chosen = np.flatnonzero(data.years == year)
        weight = np.ones(len(chosen)) if daily else weights[chosen]
        part = data.values[..., chosen, :, :].astype(np.float64)
        means.append(np.einsum("t,...tyx->...yx", weight / weight.sum(), part))
        times.append(cftime.datetime(int(year), 7, 1, calendar=data.calendar))
    values = np.stack(means, axis=-3).astype(np.float32)
    return replace(
        data, values=values, time=np.array(times, dtype=object), notes=(*data.notes, "yearly means")
    )


def _days(date: Any) -> int:
    return int(date.daysinmonth)
