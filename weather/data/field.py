"""A checked field over time on a latitude-longitude grid, always in one convention."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from longseq.core.errors import DataError
from longseq.weather.data.grid import Grid
from longseq.weather.data.seasons import WHOLE, IncompleteYears, Part, months_text, seasons_of
from longseq.weather.data.times import days_in_year, interval_days, mid_years, year_bounds

# What is read at once while yearly means are taken.
_BLOCK_BYTES = 32 << 20
_ELEVEN_MONTHS = 329.5  # days, the shortest in any calendar, but for a clock's half a day


@dataclass(frozen=True)
class Scalar:
    """A scalar coordinate, such as the height of 2 m of a near-surface temperature.

    Args:
        name: of the variable.
        value: a number.
        attrs: its attributes.
    """

    name: str
    value: float
    attrs: Mapping[str, Any]


@dataclass(frozen=True)
class Field:
    """A variable on (time, latitude, longitude).

    Args:
        values: float32 (T, Y, X), or (M, T, Y, X) with M ensemble members; NaN where ``mask`` is
            False.
        time: T cftime dates, ascending.
        grid: its cells.
        name: of the variable.
        units: of the values.
        calendar: CF name.
        path: file that it was read from.
        attrs: further CF attributes: standard_name, long_name, cell_methods.
        notes: what was changed on reading, for example "units converted from degC to K".
        bounds: start and end of every record, cftime dates (T, 2); None if unknown.
        mask: bool (Y, X), False in cells without values (land of a sea surface temperature); None
            if all have some.
        scalars: scalar coordinates.
    """

    values: np.ndarray
    time: np.ndarray
    grid: Grid
    name: str
    units: str
    calendar: str
    path: str = ""
    attrs: dict[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
    bounds: np.ndarray | None = None
    mask: np.ndarray | None = None
    scalars: Sequence[Scalar] = ()

    @property
    def lat(self) -> np.ndarray:
        """Degrees north (Y), ascending."""
        return self.grid.lat

    @property
    def lon(self) -> np.ndarray:
        """Degrees east (X), ascending without a jump."""
        return self.grid.lon

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
        return self.grid.shape


def same_grid(one: Field, other: Field) -> bool:
    """Returns whether two fields lie on the same grid, to 1e-4 degrees."""
    return one.grid.same(other.grid)


def is_sum(attrs: Mapping[str, Any]) -> bool:
    """Returns whether values are sums over their records' intervals, as ``cell_methods`` says:
    the last of the methods over time counts (``time: sum``, not ``time: sum within days time: mean
    over days``).

    Args:
        attrs: of a variable.
    """
    methods = re.findall(r"\btime\d*:\s*(\w+)", str(attrs.get("cell_methods", "")).lower())
    return bool(methods) and methods[-1] == "sum"


def kind_of_years(attrs: Mapping[str, Any]) -> str:
    """Returns "sums" or "means", what a year of shorter records is."""
    return "sums" if is_sum(attrs) else "means"


def summed(plan: Sequence[Year]) -> list[Year]:
    """Returns a plan that adds a year's records up instead of averaging them."""
    return [replace(year, weights=np.ones(len(year.weights))) for year in plan]


@dataclass(frozen=True)
class Year:
    """The records that make a year's mean.

    Args:
        year: its number.
        start: the first record.
        stop: after the last.
        weights: of the records, summing to one for means.
    """

    year: int
    start: int
    stop: int
    weights: np.ndarray


def year_plan(
    time: np.ndarray,
    calendar: str,
    bounds: np.ndarray | None,
    path: str,
    part: Part = WHOLE,
) -> tuple[list[Year], np.ndarray, Sequence[str]]:
    """Returns which records make which year, the dates they were sorted by, and notes.

    With bounds, records count by their lengths and must fill the year; without, a year has one
    record, twelve months that count by their days, or equally many records every day. Files whose
    stamps fill whole years only as the ends of their intervals are taken so.

    Args:
        time: cftime dates (T).
        calendar: CF name.
        bounds: of the records (T, 2), or None.
        path: file, for messages.
        part: the months that are taken, and whether incomplete years at the ends are left out.

    Raises:
        DataError: for incomplete or missing years, and records longer than a year.
    """
    notes: list[str] = []
    if bounds is not None and np.median(interval_days(bounds)) > 400:
        days = np.median(interval_days(bounds))
        text = f"its records cover {days / 365.25:.3g} years each (a climatology, not a run)"
        raise DataError(text, path=path)
    problem = _incomplete(time, calendar, bounds)
    if problem and bounds is None:
        ends = np.array([date - _second() for date in time], dtype=object)
        if _incomplete(ends, calendar, None) is None:
            time, problem = ends, None
            notes.append("times without bounds taken as the ends of their intervals")
    if part.months:
        plan, more = _season_plan(time, calendar, bounds, path, part)
        return plan, time, [*notes, *more]
    numbers = np.array([date.year for date in time])
    first, last = 0, len(time)
    if problem and part.whole:
        first, last, problem = _whole_years(time, calendar, bounds)
        if not problem:
            lost = sorted({*numbers[:first].tolist(), *numbers[last:].tolist()})
            notes.append(f"incomplete years left out: {', '.join(map(str, lost))}")
    if problem:
        year, text = problem
        ends = year in (numbers[0], numbers[-1]) and not part.whole
        hint = "--whole_years leaves out incomplete years at the ends; --months takes seasons"
        if len(np.unique(numbers)) == len(numbers):
            hint = "--months takes a part of every year"
        hint = hint if ends else "cut the file to whole years"
        raise IncompleteYears(text, path=path, record=f"year {year}", hint=hint)
    years, starts, counts = np.unique(numbers[first:last], return_index=True, return_counts=True)
    if bounds is not None and np.all(counts == 1):
        shortest = interval_days(bounds[first:last]).min()
        if shortest < 355:
            notes.append(f"intervals of {shortest:g} days taken for whole years")
    starts = starts + first
    _check_gaps(years, path)
    plan = []
    for year, start, count in zip(years, starts, counts):
        part = slice(int(start), int(start + count))
        if bounds is not None:
            weights = interval_days(bounds[part])
        elif count == 12:
            weights = np.array([float(date.daysinmonth) for date in time[part]])
        else:
            weights = np.ones(count)
        plan.append(Year(int(year), part.start, part.stop, weights / weights.sum()))
    return plan, time, notes


def _check_gaps(years: np.ndarray, path: str) -> None:
    gaps = np.flatnonzero(np.diff(years) != 1)
    if len(gaps):
        text = f"the years {years[gaps[0]]} and {years[gaps[0] + 1]} follow each other: years "
        raise DataError(f"{text}are missing", path=path)


def _whole_years(
    time: np.ndarray, calendar: str, bounds: np.ndarray | None
) -> tuple[int, int, tuple[int, str] | None]:
    """Returns the records that are left without incomplete years at the ends, and what is still
    incomplete between them."""
    numbers = np.array([date.year for date in time])
    first, last = 0, len(time)
    while True:
        own = None if bounds is None else bounds[first:last]
        problem = _incomplete(time[first:last], calendar, own)
        if problem is None:
            return first, last, None
        inside = numbers[first:last]
        if inside[0] == inside[-1] or problem[0] not in (inside[0], inside[-1]):
            return first, last, problem
        if problem[0] == inside[0]:
            first += int((inside == inside[0]).sum())
        else:
            last -= int((inside == inside[-1]).sum())


def _season_plan(
    time: np.ndarray, calendar: str, bounds: np.ndarray | None, path: str, part: Part
) -> tuple[list[Year], list[str]]:
    """Returns the records of every year's months, and notes."""
    found = seasons_of(time, calendar, bounds, part, path)
    lost = []
    # Every file of whole years has half a winter at either end.
    if part.wraps or part.whole:
        for end in (0, -1):
            if found and found[end].problem:
                lost.append(found.pop(end).year)
    text = months_text(part.months)
    if not found:
        raise IncompleteYears(f"has no complete {text}", path=path)
    for season in found:
        if season.problem:
            hint = "--whole_years leaves out incomplete ones at the ends"
            record = f"{text} of {season.year}"
            raise IncompleteYears(season.problem, path=path, record=record, hint=hint)
    _check_gaps(np.array([season.year for season in found]), path)
    plan = [
        Year(one.year, int(one.records[0]), int(one.records[-1]) + 1, one.weights) for one in found
    ]
    # A winter is called by the year of its middle, as everywhere.
    names = ", ".join(str(year + part.wraps) for year in sorted(lost))
    note = f"incomplete {text} left out: {names}"
    return plan, [note] if lost else []


def _second() -> Any:
    from datetime import timedelta

    return timedelta(seconds=1)


def _incomplete(
    time: np.ndarray, calendar: str, bounds: np.ndarray | None
) -> tuple[int, str] | None:
    """Returns the first incomplete year and what is wrong with it."""
    numbers = np.array([date.year for date in time])
    years, counts = np.unique(numbers, return_counts=True)
    single = bool(np.all(counts == 1))
    if single and bounds is None:
        return None
    for year, count in zip(years, counts):
        chosen = numbers == year
        length = days_in_year(int(year), calendar)
        if bounds is not None:
            there = float(interval_days(bounds[chosen]).sum())
            # A year from April to March has a day more or less than the calendar's, and of months
            # without bounds cdo writes intervals from the first stamp to the last one.
            slack = 0.01 * length / max(12, count)
            low, high = (
                (_ELEVEN_MONTHS, length + 1.5) if single else (length - slack, length + slack)
            )
            if not low <= there <= high:
                return int(year), f"its records cover {there:g} of {length} days"
            continue
        months = {date.month for date in time[chosen]}
        days = {(date.month, date.day) for date in time[chosen]}
        full = (count == 12 and len(months) == 12) or (count % length == 0 and len(days) == length)
        if not full:
            what = "whole years of one, twelve, or equally many records a day are needed"
            return int(year), f"has {count} records: {what}"
    return None


def take_years(
    read: Callable[[int, int], np.ndarray], plan: Sequence[Year], shape: Sequence[int]
) -> np.ndarray:
    """Returns yearly means (…, years, Y, X) of records that are read in blocks.

    Args:
        read: returns the records from one to another (…, t, Y, X).
        plan: of ``year_plan``.
        shape: of one record (…, Y, X).
    """
    cells = int(np.prod(shape))
    step = max(1, _BLOCK_BYTES // (8 * cells))
    means = np.empty((*shape[:-2], len(plan), *shape[-2:]), dtype=np.float32)
    for at, year in enumerate(plan):
        total = np.zeros(shape)
        for start in range(year.start, year.stop, step):
            stop = min(year.stop, start + step)
            weights = year.weights[start - year.start : stop - year.start]
            block = read(start, stop)
            if len(weights) == 1:
                total += weights[0] * block[..., 0, :, :]
            else:
                total += np.einsum("t,...tyx->...yx", weights, block, dtype=np.float64)
        means[..., at, :, :] = total
    return means


def annual_means(data: Field) -> Field:
    """Returns yearly means; records count by their bounds, or months by their days in the calendar.

    Args:
        data: one record a year (kept as it is), twelve a year, equally many a day, or any whose
            bounds fill whole years.

    Raises:
        DataError: if years are missing or incomplete.
    """
    if np.all(np.diff(data.years) > 0):  # years, or a part of each that was asked for
        _check_gaps(data.years, data.path)
        return data
    plan, _, notes = year_plan(data.time, data.calendar, data.bounds, data.path)
    shape = (*data.values.shape[:-3], *data.shape)
    plan = summed(plan) if is_sum(data.attrs) else plan
    values = take_years(lambda start, stop: data.values[..., start:stop, :, :], plan, shape)
    axis = yearly_axis(plan, data.calendar, data.notes, notes, what=kind_of_years(data.attrs))
    return replace(data, values=values, **axis)


def yearly_axis(
    plan: Sequence[Year],
    calendar: str,
    notes: Sequence[str],
    more: Sequence[str],
    part: Part = WHOLE,
    what: str = "means",
) -> dict[str, Any]:
    """Returns time, bounds and notes of yearly means of shorter records, or of their months.

    Args:
        plan: the years.
        calendar: CF name.
        notes: of the file.
        more: of the plan.
        part: of every year.
        what: "means" or "sums".
    """
    years = np.array([year.year for year in plan])
    if part.months:
        middle, edges = part.axis(years, calendar)
        return {
            "time": middle,
            "bounds": edges,
            "notes": (*notes, *more, f"{what} of {months_text(part.months)}"),
        }
    return {
        "time": mid_years(years, calendar),
        "bounds": year_bounds(years, calendar),
        "notes": (*notes, *more, f"yearly {what}"),
    }
