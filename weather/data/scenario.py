"""Scenarios: yearly anomalies with their predictors, and the rule that no scored year was trained
on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from longseq.core.errors import ConfigError, DataError
from longseq.weather.data import quantities
from longseq.weather.data import units as unit_library
from longseq.weather.data.field import Field, annual_means
from longseq.weather.data.positive import keep_positive, reference
from longseq.weather.data.runs import check_alike
from longseq.weather.data.series import read_series, read_units
from longseq.weather.metrics import area_mean

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
        anomalies: float32 (T, Y, X), relative to ``climatology``; 0 in cells without values.
        climatology: mean of the baseline years (Y, X), float64; 0 where the field holds anomalies.
        predictors: (T, K), float64: the smoothed regional-mean anomaly, or forcings.
        names: of the predictors.
        weights: areas of the cells (Y, X), summing to one; 0 in cells without values.
        baseline: its years.
        positive: whether totals cannot be negative.
        units: of the predictors by name, as far as their file says them.
        forcing: their file; empty for the regional mean.
        repeated: bool (T), years that are the same in an earlier training run and count there; None
            for none.
        shared: bool (T), years that are the same in any other training run; None for none.
    """

    field: Field
    anomalies: np.ndarray
    climatology: np.ndarray
    predictors: np.ndarray
    names: Sequence[str]
    weights: np.ndarray
    baseline: Span
    positive: bool = False
    repeated: np.ndarray | None = None
    shared: np.ndarray | None = None
    units: Mapping[str, str] = dataclasses.field(default_factory=dict)
    forcing: str = ""

    @property
    def counted(self) -> np.ndarray:
        """Which years are fitted on (T), bool: all that no earlier training run has too."""
        if self.repeated is None:
            return np.ones(len(self.years), dtype=bool)
        return ~self.repeated

    @property
    def own(self) -> np.ndarray:
        """Which years no other training run has (T), bool: those that can be held out of a fit."""
        return np.ones(len(self.years), dtype=bool) if self.shared is None else ~self.shared

    @property
    def years(self) -> np.ndarray:
        """The years (T)."""
        return self.field.years

    def mean(self) -> np.ndarray:
        """Returns the regional mean of the anomalies (T), not smoothed."""
        return area_mean(self.anomalies, self.weights)

    def admissible(self, anomalies: np.ndarray) -> np.ndarray:
        """Returns predicted anomalies (…, Y, X) as they can be: totals of rain above zero."""
        if not self.positive:
            return anomalies
        scale = reference(self.climatology, self.weights)
        return keep_positive(np.asarray(anomalies), self.climatology, scale)


REGIONAL = "regional_mean"


def make_scenario(
    data: Field,
    baseline: Span,
    smooth: int,
    forcing: str | None = None,
    anomalies: bool = False,
    interpolate: bool = False,
) -> Scenario:
    """Returns the yearly anomalies of a field and its predictors.

    Args:
        data: as read.
        baseline: years of the climatology that is subtracted.
        smooth: years of the centred running mean of the regional mean.
        forcing: file of forcings; None takes the regional mean itself as predictor.
        anomalies: whether the field holds anomalies already: nothing is subtracted.
        interpolate: whether forcings are filled in linearly between the years of their file.

    Raises:
        DataError: if baseline years or forcings are missing.
    """
    yearly = annual_means(data)
    values, years = yearly.mean.astype(np.float64), yearly.years
    if yearly.mask is not None:
        values = np.where(yearly.mask, values, 0.0)
    climatology = np.zeros(yearly.shape)
    if not anomalies:
        climatology = values[need_years(yearly, baseline, "baseline")].mean(0)
    weights = yearly.grid.weights(mask=yearly.mask)
    found = (values - climatology).astype(np.float32)
    units: dict[str, str] = {}
    if forcing is None:
        predictors, names = running_mean(area_mean(found, weights), smooth)[:, None], [REGIONAL]
        if smooth // 2 >= len(years) - 1 > 0:
            text = f"a running mean over {smooth} years is the mean of all {len(years)}: "
            yearly = replace(yearly, notes=(*yearly.notes, text + "the predictor never changes"))
    else:
        own, predictors, names = read_series(forcing, interpolate=interpolate)
        found_units = read_units(forcing)
        units = {name: found_units[name] for name in names if found_units.get(name)}
        missing = sorted(set(years.tolist()) - set(own.tolist()))
        if missing:
            raise DataError(f"has no year {missing[0]}, which {data.path} has", path=forcing)
        predictors = predictors[np.searchsorted(own, years)]
    positive = not anomalies and quantities.is_positive(yearly.name, yearly.attrs)
    return Scenario(
        yearly,
        found,
        climatology,
        predictors,
        tuple(names),
        weights,
        baseline,
        positive,
        units=units,
        forcing="" if forcing is None else str(forcing),
    )


def deviations(values: np.ndarray) -> np.ndarray:
    """Returns the standard deviations of columns (T, K), 0 for those that never change: what
    rounding leaves of a constant is no change, and networks see predictors in single precision.
    """
    spread = values.std(0)
    least = float(np.finfo(np.float32).eps) * np.abs(values).max(0, initial=0.0)
    return np.asarray(np.where(spread > least, spread, 0.0))


def check_fixed(
    fixed: Mapping[str, float], predictors: np.ndarray, names: Sequence[str], path: object
) -> None:
    """Checks that predictors that never change in training do not change elsewhere: nothing is
    known of what they do.

    Args:
        fixed: their values in training, by name.
        predictors: (T, K).
        names: K.
        path: their file, for messages.

    Raises:
        DataError: naming the first that differs.
    """
    for name, value in fixed.items():
        column = predictors[:, list(names).index(name)]
        other = column[~np.isclose(column, value, rtol=1e-6, atol=0.0)]
        if len(other):
            text = (
                f"is {other[0]:g} here and {value:g} in all training years: its effect is unknown"
            )
            hint = "leave it out of all files, or train on runs in which it changes"
            raise DataError(text, path=str(path), record=name, hint=hint)


def check_predictors(
    names: Sequence[str], units: Mapping[str, str], run: Scenario, other: str
) -> None:
    """Checks that a run has the predictors of another, in the same order and units.

    Args:
        names: of the other's.
        units: of these, as far as they are known.
        run: a scenario.
        other: what the other is called in messages.

    Raises:
        DataError: naming what differs.
    """
    path = run.forcing or run.field.path
    if tuple(run.names) != tuple(names):
        text = f"has the predictors {', '.join(run.names)}; {other} has {', '.join(names)}"
        raise DataError(text, path=path, hint="the same are needed, in one order")
    check_units(units, run.units, path, other)


def check_units(units: Mapping[str, str], own: Mapping[str, str], path: str, other: str) -> None:
    """Checks that predictors have the same units where both are known.

    Args:
        units: by name.
        own: those of ``path``.
        path: file, for messages.
        other: what the other is called in messages.

    Raises:
        DataError: naming the first that differs.
    """
    for name in (one for one in units if units[one] and own.get(one)):
        known = unit_library.parse(own[name])
        same = known is not None and known == unit_library.parse(units[name])
        if own[name] != units[name] and not same:
            text = f"is in {own[name]}, in {other} {units[name]}"
            raise DataError(text, path=path, record=name, hint="convert one of them")


def check_same_units(paths: Sequence[Path]) -> None:
    """Checks that files have their variables in the same units.

    Args:
        paths: NetCDF files.

    Raises:
        DataError: as ``check_units``.
    """
    first = read_units(paths[0])
    for path in paths[1:]:
        check_units(first, read_units(path), str(path), paths[0].name)


def need_years(data: Field, span: Span, what: str, hint: str | None = None) -> np.ndarray:
    """Returns which records lie in a span of years.

    Args:
        data: yearly field.
        span: first and last year.
        what: "baseline" or "period", for the message.
        hint: what to do; None where the span is an option of the command.

    Raises:
        DataError: if a year is missing.
    """
    years = data.years
    missing = sorted(set(range(span[0], span[1] + 1)) - set(years.tolist()))
    if missing:
        option = f"give --{what} within these (fit: --data.{what}), or a longer run"
        hint = f"it has {years[0]}-{years[-1]}: {hint or option}"
        text = f"lacks {len(missing)} of the {what} years {span[0]}-{span[1]}, first {missing[0]}"
        raise DataError(text, path=data.path, hint=hint)
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
    x, y = (
        np.nan_to_num(run.field.mean[rows].astype(np.float64))
        for run, rows in ((one, a), (other, b))
    )
    spread = float(one.anomalies.std(0, dtype=np.float64).max())
    return common[np.abs(x - y).max((1, 2)) <= _IDENTICAL * spread]


def once(runs: Sequence[Scenario]) -> list[Scenario]:
    """Returns training runs whose years that others have too are marked: scenarios share their
    historical part, which counts once.

    Args:
        runs: all training runs, in order.
    """
    repeated, shared = ([np.zeros(len(run.years), dtype=bool) for run in runs] for _ in range(2))
    for index, run in enumerate(runs):
        for at, other in enumerate(runs[:index]):
            same = shared_years(other, run)
            repeated[index] |= np.isin(run.years, same)
            shared[at] |= np.isin(other.years, same)
        shared[index] |= repeated[index]
    return [
        replace(run, repeated=one if one.any() else None, shared=both if both.any() else None)
        for run, one, both in zip(runs, repeated, shared)
    ]


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
