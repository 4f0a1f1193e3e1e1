"""Scenarios: yearly anomalies with their predictors, and the rule that no scored year was trained
on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from longseq.core.errors import ConfigError, DataError
from longseq.core.tables import SUFFIXES as TABLES
from longseq.core.tables import read_rows
from longseq.weather.data.cf import open_dataset, resolve
from longseq.weather.data.coords import decode_time, kind_of
from longseq.weather.data.field import Field, annual_means, same_grid
from longseq.weather.metrics import area_mean, area_weights

Span = tuple[int, int]
# Two runs of a chaotic model never agree to a thousandth of a year-to-year deviation in every cell.
_IDENTICAL = 1e-3


def parse_span(name: str, text: str) -> Span:
    """Returns the first and the last year of "1860-1889".

    Args:
        name: of the option, for the message.
        text: as given.

    Raises:
        ConfigError: if it is no span of years.
    """
    parts = str(text).split("-")
    try:
        first, last = (int(parts[0]), int(parts[-1])) if len(parts) in (1, 2) else (1, 0)
    except ValueError:
        first, last = 1, 0
    if first > last:
        raise ConfigError(f"{name}: years such as 1860-1889 are needed, got {text!r}")
    return first, last


def inside(years: np.ndarray, span: Span) -> np.ndarray:
    """Returns which years lie in a span, both ends included."""
    return (years >= span[0]) & (years <= span[1])


def running_mean(series: np.ndarray, window: int) -> np.ndarray:
    """Returns the centred mean over ``window`` years; near the ends over those that there are.

    Args:
        series: (T, …).
        window: odd number of years; 1 leaves the series as it is.

    Raises:
        ConfigError: if it is even or below 1.
    """
    if window < 1 or window % 2 == 0:
        raise ConfigError(f"smooth must be an odd number of years, got {window}")
    half, sums = window // 2, np.cumsum(np.concatenate([np.zeros_like(series[:1]), series]), 0)
    index = np.arange(len(series))
    low, high = np.maximum(index - half, 0), np.minimum(index + half + 1, len(series))
    return (sums[high] - sums[low]) / (high - low).reshape(-1, *[1] * (series.ndim - 1))


@dataclass(frozen=True)
class Scenario:
    """Yearly anomalies of one run and the predictors that an emulator sees.

    Args:
        field: yearly means as read.
        anomalies: float32 (T, Y, X), relative to ``climatology``.
        climatology: mean of the baseline years (Y, X), float64.
        predictors: (T, K), float64: the smoothed regional-mean anomaly, or forcings.
        names: of the predictors.
        weights: (Y, X), cosine of the latitude, summing to one.
        baseline: its years.
    """

    field: Field
    anomalies: np.ndarray
    climatology: np.ndarray
    predictors: np.ndarray
    names: Sequence[str]
    weights: np.ndarray
    baseline: Span

    @property
    def years(self) -> np.ndarray:
        """The years (T)."""
        return self.field.years

    def mean(self) -> np.ndarray:
        """Returns the regional mean of the anomalies (T), not smoothed."""
        return area_mean(self.anomalies, self.weights)


REGIONAL = "regional_mean"


def make_scenario(data: Field, baseline: Span, smooth: int, forcing: str | None = None) -> Scenario:
    """Returns the yearly anomalies of a field and its predictors.

    Args:
        data: as read.
        baseline: years of the climatology that is subtracted.
        smooth: years of the centred running mean of the regional mean.
        forcing: file of forcings; None takes the regional mean itself as predictor.

    Raises:
        DataError: if baseline years or forcings are missing.
    """
    yearly = annual_means(data)
    values, years = yearly.mean.astype(np.float64), yearly.years
    chosen = need_years(yearly, baseline, "baseline")
    climatology = values[chosen].mean(0)
    weights = area_weights(yearly.lat, len(yearly.lon))
    anomalies = (values - climatology).astype(np.float32)
    if forcing is None:
        predictors, names = running_mean(area_mean(anomalies, weights), smooth)[:, None], [REGIONAL]
    else:
        found, predictors, names = read_series(forcing)
        missing = sorted(set(years.tolist()) - set(found.tolist()))
        if missing:
            raise DataError(f"has no year {missing[0]}, which {data.path} has", path=forcing)
        predictors = predictors[np.searchsorted(found, years)]
    return Scenario(yearly, anomalies, climatology, predictors, tuple(names), weights, baseline)


def need_years(data: Field, span: Span, what: str) -> np.ndarray:
    """Returns which records lie in a span of years.

    Args:
        data: yearly field.
        span: first and last year.
        what: "baseline" or "period", for the message.

    Raises:
        DataError: if a year is missing.
    """
    years = data.years
    missing = sorted(set(range(span[0], span[1] + 1)) - set(years.tolist()))
    if missing:
        text = f"lacks {len(missing)} of the {what} years {span[0]}-{span[1]}, first {missing[0]}"
        raise DataError(text, path=data.path, hint=f"it has {years[0]}-{years[-1]}")
    return inside(years, span)


def shared_years(one: Scenario, other: Scenario) -> np.ndarray:
    """Returns the years whose fields are the same in both runs, as a common historical part makes
    them.

    Args:
        one: a run.
        other: another, on the same grid.

    Raises:
        DataError: if grid, variable or units differ.
    """
    check_alike(one.field, other.field)
    common, a, b = np.intersect1d(one.years, other.years, return_indices=True)
    x, y = one.field.mean[a].astype(np.float64), other.field.mean[b].astype(np.float64)
    spread = float(one.anomalies.std(0, dtype=np.float64).max())
    return common[np.abs(x - y).max((1, 2)) <= _IDENTICAL * spread]


def check_alike(one: Field, other: Field) -> None:
    """Checks that two fields lie on one grid, in one unit.

    Raises:
        DataError: naming both files and what differs.
    """
    if not same_grid(one, other):
        sizes = [f"{data.shape[0]} × {data.shape[1]}" for data in (other, one)]
        text = f"lies on another grid ({sizes[0]}) than {one.path} ({sizes[1]})"
        raise DataError(text, path=other.path, hint="regrid one of them")
    if one.units != other.units:
        raise DataError(f"is in {other.units}, {one.path} in {one.units}", path=other.path)


def spans_text(years: Sequence[int] | np.ndarray) -> str:
    """Returns years as spans: "1860-1999, 2004"."""
    parts: list[list[int]] = []
    for year in map(int, years):
        if parts and year == parts[-1][1] + 1:
            parts[-1][1] = year
        else:
            parts.append([year, year])
    return ", ".join(f"{a}-{b}" if a != b else str(a) for a, b in parts)


def refuse_leak(train: Sequence[Scenario], test: Scenario, scored: Span) -> np.ndarray:
    """Checks that no scored year of the test is among the training years, and returns the shared
    years.

    Args:
        train: runs that are trained on.
        test: run that is scored.
        scored: its scored years.

    Raises:
        DataError: naming the years that are the same in both files.
    """
    found: set[int] = set()
    for run in train:
        shared = shared_years(run, test)
        leaked = shared[inside(shared, scored)]
        if len(leaked):
            rest = shared[-1] + 1
            hint = (
                f"score later years: --period {rest}-{test.years[-1]}"
                if rest <= test.years[-1]
                else ("the two files hold the same run")
            )
            raise DataError(
                f"the years {spans_text(leaked)} are the same as in {run.field.path}, on which "
                f"models are trained: scoring them would be a leak",
                path=test.field.path,
                hint=hint,
            )
        found |= set(shared.tolist())
    return np.array(sorted(found), dtype=int)


def read_series(
    path: str | Path, names: Sequence[str] | None = None
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Reads yearly series: forcings, or a regional mean.

    Args:
        path: table (.csv, .tsv, .parquet) with a column ``year``, or NetCDF with variables on time;
            those on (time, latitude, longitude) are averaged over the area.
        names: of the series to take, in order; None for all.

    Returns:
        Years (T), values (T, K) and names (K).

    Raises:
        DataError: for missing columns, values or unsorted years.
    """
    file = resolve(path)
    years, table = _read_table(file) if file.suffix.lower() in TABLES else _read_netcdf_series(file)
    chosen = list(table) if names is None else list(names)
    for name in chosen:
        if name not in table:
            raise DataError(
                f"has no series {name!r} (it has {', '.join(table) or 'none'})", path=file
            )
    if not chosen:
        raise DataError("has no series over time", path=file)
    values = np.stack([table[name] for name in chosen], 1)
    if len(np.flatnonzero(np.diff(years) <= 0)):
        where = int(np.flatnonzero(np.diff(years) <= 0)[0]) + 1
        raise DataError("years must ascend strictly", path=file, record=f"year {years[where]}")
    if not np.isfinite(values).all():
        row, column = np.argwhere(~np.isfinite(values))[0]
        raise DataError(f"{chosen[column]} is missing", path=file, record=f"year {years[row]}")
    return years, values, chosen


def _read_table(file: Path) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    rows = read_rows(file)
    if not rows or "year" not in rows[0]:
        raise DataError("needs a column 'year' and rows below it", path=file)
    table: dict[str, list[float]] = {name: [] for name in rows[0] if name}
    for line, row in enumerate(rows, 2):
        for name in table:
            try:
                table[name].append(float(row[name]))
            except (TypeError, ValueError) as error:
                raise DataError(
                    f"{name}: {row[name]!r} is no number", path=file, record=f"line {line}"
                ) from error
    years = np.array(table.pop("year")).astype(int)
    return years, {name: np.array(column) for name, column in table.items()}


def _read_netcdf_series(file: Path) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    table: dict[str, np.ndarray] = {}
    with open_dataset(file) as data:
        times = [str(dim) for dim in data.dims if kind_of(str(dim), _attrs(data, dim)) == "time"]
        if not times or times[0] not in data.variables:
            raise DataError("has no time coordinate", path=file)
        dates, _ = decode_time(data[times[0]].values, _attrs(data, times[0]), file)
        for name, array in data.data_vars.items():
            if (
                array.dims[:1] != (times[0],)
                or array.dtype.kind not in "fiu"
                or str(name).endswith("bnds")
            ):
                continue
            kinds = [kind_of(str(dim), _attrs(data, dim)) for dim in array.dims[1:]]
            values = np.asarray(array.values, dtype=np.float64)
            if kinds == ["latitude", "longitude"]:
                lat = np.asarray(data[array.dims[1]].values, dtype=np.float64)
                values = area_mean(values, area_weights(lat, values.shape[-1]))
            elif kinds:
                continue
            table[str(name)] = values
    return np.array([date.year for date in dates]), table


def _attrs(data: object, name: object) -> dict[str, object]:
    variables = data.variables  # type: ignore[attr-defined]
    return dict(variables[name].attrs) if name in variables else {}
