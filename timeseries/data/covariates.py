"""Covariates of a panel: known for the future, known for the past only, static, and holidays."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from longseq.core.errors import ConfigError, DataError, did_you_mean
from longseq.timeseries.data.columns import numbers
from longseq.timeseries.data.source import Source


@dataclass(frozen=True)
class Covariates:
    """What is known beside the values.

    Args:
        future: by name (T + F, C) float64, F rows beyond the panel's; NaN where it is not known.
        past: by name (T, C) float64, NaN where it is not known.
        static: by name (C,) float64; a column of texts is one covariate of 0 and 1 a text.
        holidays: country of the future covariate ``holidays:…``, which goes on by itself.
    """

    future: dict[str, np.ndarray] = field(default_factory=dict)
    past: dict[str, np.ndarray] = field(default_factory=dict)
    static: dict[str, np.ndarray] = field(default_factory=dict)
    holidays: str | None = None

    def __bool__(self) -> bool:
        return bool(self.future or self.past or self.static)

    @property
    def names(self) -> dict[str, list[str]]:
        """Names by kind."""
        return {kind: list(getattr(self, kind)) for kind in ("future", "past", "static")}

    def rows(self, count: int) -> Covariates:
        """Returns those of a panel's first ``count`` rows; what is known of the future stays."""
        return replace(self, past={name: value[:count] for name, value in self.past.items()})

    def extended(self, ds: pd.Index, freq: Any) -> Covariates:
        """Returns those of a panel with these times, NaN where nothing is known."""
        count = len(ds)

        def longer(value: np.ndarray) -> np.ndarray:
            more = count - len(value)
            return np.pad(value, ((0, more), (0, 0)), constant_values=np.nan) if more > 0 else value

        future = {name: longer(value) for name, value in self.future.items()}
        if self.holidays is not None:
            name = f"holidays:{self.holidays}"
            days = holiday_values(ds, freq, self.holidays)
            future[name] = np.repeat(days[:, None], future[name].shape[1], 1)
        past = {name: longer(value) for name, value in self.past.items()}
        return replace(self, future=future, past=past)

    def select(self, columns: Sequence[int]) -> Covariates:
        """Returns those of some series."""
        at = list(columns)
        return replace(
            self,
            future={name: value[:, at] for name, value in self.future.items()},
            past={name: value[:, at] for name, value in self.past.items()},
            static={name: value[at] for name, value in self.static.items()},
        )

    def ended(self, panel: Any, row: int, horizon: int) -> np.ndarray:
        """Returns which series end before a horizon that their future covariates do not reach.

        Args:
            panel: the series.
            row: first row of the horizon.
            horizon: rows h.
        """
        lacks = np.zeros(len(panel.ids), dtype=bool)
        for value in self.future.values():
            lacks |= np.isnan(value[row : row + horizon]).any(0)
        return lacks & (panel.ends < row + horizon)

    def check_future(self, panel: Any, rows: np.ndarray, series: np.ndarray, horizon: int) -> None:
        """Checks that the future ones are known from the series' beginnings to the horizons.

        Args:
            panel: the series, extended to all rows that are forecast.
            rows: first row of every forecast (P,).
            series: its series (P,).
            horizon: rows h.

        Raises:
            DataError: naming the column, the series and the time that is not known.
        """
        for name, value in self.future.items():
            unknown = np.cumsum(np.isnan(value), axis=0)
            begin = panel.starts[series]
            before = np.where(begin > 0, unknown[begin - 1, series], 0)
            bad = unknown[rows + horizon - 1, series] > before
            if bad.any():
                at, c = int(rows[bad][0]), int(series[bad][0])
                holes = np.flatnonzero(np.isnan(value[panel.starts[c] : at + horizon, c]))
                row = int(holes[0] + panel.starts[c])
                hint = (
                    f"give it for all {horizon} rows after the cutoff: rows with the target "
                    "left empty, or predict(h, future=…), --future_frame on the command line"
                )
                if row < at:
                    hint = "it has to be known in all rows of a series, in those of gaps too"
                raise DataError(
                    f"the future covariate {name!r} has no value",
                    path=panel.source,
                    record=f"{panel.ids[c]} at {panel.ds[row]}",
                    hint=hint,
                )


def check_columns(names: Sequence[str], columns: Sequence[str], where: Source, kind: str) -> None:
    """Checks that named covariates are columns of the frame.

    Raises:
        DataError: naming the first one that is not.
    """
    for name in names:
        if name not in columns:
            near = did_you_mean(name, columns)
            raise where.error(f"has no {kind} covariate {name!r} among its columns; {near}")


def static_values(frame: pd.DataFrame, name: str, codes: np.ndarray, where: Source) -> dict:
    """Returns a static covariate by the names it becomes, (C,) each.

    Args:
        frame: long.
        name: of the column.
        codes: number of the series of every row.
        where: the frame.

    Raises:
        DataError: if it is missing, or differs within a series.
    """
    column = frame[name]
    filled = column.notna().to_numpy()
    count = int(codes.max()) + 1
    first = np.full(count, -1)
    rows = np.flatnonzero(filled)[::-1]
    first[codes[rows]] = rows
    if (first < 0).any():
        row = int(np.flatnonzero(codes == int(np.flatnonzero(first < 0)[0]))[0])
        raise where.error(f"the static covariate {name!r} is empty for this series", row)
    differs = filled & (column.to_numpy() != column.to_numpy()[first[codes]])
    if differs.any():
        row = int(np.flatnonzero(differs)[0])
        now, was = column.iloc[[row, int(first[codes[row]])]].tolist()
        raise where.error(
            f"the static covariate {name!r} is {now!r} and was {was!r} for the series",
            row,
            hint="a covariate that changes is one of the future or of the past",
        )
    if pd.api.types.is_numeric_dtype(column) or pd.api.types.is_bool_dtype(column):
        return {name: numbers(column, name, where)[first]}
    texts = column.iloc[first].astype(str).to_numpy()
    return {f"{name}={text}": (texts == text).astype(float) for text in sorted(set(texts))}


def holiday_values(ds: pd.Index, freq: Any, country: str) -> np.ndarray:
    """Returns the public holidays that fall into every row (T,): 1 or 0 up to a day, else a number.

    Args:
        ds: times.
        freq: their step.
        country: code like "DE", or "DE-BY" with a part of the country.

    Raises:
        ConfigError: for an unknown country, times without dates, or without the package holidays.
    """
    if not isinstance(ds, pd.DatetimeIndex):
        raise ConfigError("holidays need dates, the times are whole numbers")
    try:
        package = importlib.import_module("holidays")
    except ImportError as error:
        raise ConfigError(
            "holidays need the package holidays: pip install 'longseq[timeseries]'"
        ) from error
    if not isinstance(country, str):
        raise ConfigError(f"holidays are those of one country, as DE or DE-BY; got {country!r}")
    land, _, part = country.partition("-")
    local = (ds if ds.tz is None else ds.tz_localize(None)).normalize()
    ends = pd.DatetimeIndex([*local[1:], (local[-1] + freq if len(ds) else pd.Timestamp(0))])
    years = range(local[0].year, ends[-1].year + 1)
    try:
        known = package.country_holidays(land, subdiv=part or None, years=years)
    except NotImplementedError as error:
        raise ConfigError(
            f"no holidays of {country!r}: give a country as DE, or DE-BY with a part of it"
        ) from error
    days = pd.DatetimeIndex(sorted(known))
    found = days.searchsorted(ends) - days.searchsorted(local)
    within = np.asarray(local.isin(days), float)
    return np.where(ends - local > pd.Timedelta(days=1), found, within).astype(float)
