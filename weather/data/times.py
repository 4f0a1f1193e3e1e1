"""Time coordinates of CF files: dates, calendars and the intervals of records."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from longseq.core.errors import DataError

CALENDARS = (
    "standard",
    "gregorian",
    "proleptic_gregorian",
    "julian",
    "noleap",
    "365_day",
    "all_leap",
    "366_day",
    "360_day",
)
# One calendar has one name; 360 is the IRI Data Library's.
_SPELLED = {
    "360": "360_day",
    "gregorian": "standard",
    "365_day": "noleap",
    "366_day": "all_leap",
}
_YEARS = ("", "year", "years", "1", "common_year")
_SINCE = re.compile(r"(month|months|mon|year|years|yr|yrs|common_years?)\s+since\s+(.*)", re.I)
_ABSOLUTE = re.compile(r"(day|month|year) as (%Y(?:%m)?(?:%d)?)(?:\.%f)?", re.I)
# What cftime does not understand after "since" it drops: "06", "-6:00", "EST".
_REFERENCE = re.compile(
    r"(?P<unit>\w+)\s+since\s+(?P<date>[+-]?\d+(?:-\d{1,2}){0,2})"
    r"(?:(?:T|\s+T?)(?P<clock>\d{1,2}:\d{1,2}(?::\d{1,2}(?:\.\d*)?)?|\d{4}|\d{1,2}))?"
    r"(?:\s*(?:Z|UTC|UT|GMT|(?P<east>[+-]\d{1,2}(?::?\d{2})?(?::00)?))|"
    r"\s+(?P<plain>\d{1,2}(?::?\d{2})?))?",
    re.I,
)
_YEAR_ZERO = re.compile(r"since\s+[+-]?0{1,4}-\d")


@dataclass(frozen=True)
class Times:
    """A decoded time coordinate.

    Args:
        dates: cftime dates inside the records' intervals (T), ascending strictly.
        calendar: CF name.
        bounds: cftime dates, start and end of every record (T, 2); None where the file has none.
        notes: what was changed.
    """

    dates: np.ndarray
    calendar: str
    bounds: np.ndarray | None = None
    notes: Sequence[str] = ()


def decode_time(
    values: np.ndarray,
    attrs: dict[str, Any],
    path: str | Path,
    bounds: np.ndarray | None = None,
    bounds_units: str = "",
) -> Times:
    """Returns the dates, the calendar and the intervals of a time coordinate, checked to ascend.

    A record whose stamp does not lie inside its interval (files of CESM are stamped at its end) is
    dated in the middle of the interval. Intervals that are all points are no bounds. Integers
    without units, as ClimateBench has them, are years; "months since" and "years since" count
    calendar months and years.

    Args:
        values: of the coordinate (T).
        attrs: its attributes: units, calendar.
        path: file, for messages.
        bounds: values of the variable that ``attrs["bounds"]`` names (T, 2).
        bounds_units: their own units; empty for those of the times.

    Raises:
        DataError: for missing or unknown units or calendars, duplicate or unsorted times, or bounds
            that are no intervals.
    """
    units = str(attrs.get("units", "")).strip()
    calendar = str(attrs.get("calendar", "standard")).strip().lower()
    calendar = _SPELLED.get(calendar, calendar)
    if calendar not in CALENDARS:
        known = ", ".join(CALENDARS)
        raise DataError(f"unknown calendar {calendar!r} (known: {known})", path=path, record="time")
    if not len(values):
        raise DataError("has no records", path=path, record="time")
    numbers = _numbers(values, path, "times")
    notes: list[str] = []
    if units.lower() in _YEARS:
        calendar = calendar if "calendar" in attrs else "noleap"
        dates = _bare_years(numbers, units, calendar, path)
    else:
        dates = _dates(numbers, units, calendar, path)
        if _YEAR_ZERO.search(units):
            notes.append("times count from the year 0, as a climatology's")
        if hours := _reference(units, path)[1]:
            notes.append(f"times converted from {hours:+g} hours to UTC")
            if bounds is None or _points(bounds):
                _check_months(dates, hours, path)
    _check_order(numbers, dates, path)
    if bounds is None or units.lower() in _YEARS:
        return Times(dates, calendar, None, tuple(notes))
    if _points(bounds):
        return Times(dates, calendar, None, (*notes, "bounds without a length are left out"))
    edges = _intervals(bounds, bounds_units or units, calendar, len(dates), path)
    middle = _middle(edges)
    inside = (dates > edges[:, 0]) & (dates < edges[:, 1])
    inside &= [date.year == own.year for date, own in zip(dates, middle)]
    if not inside.all():
        beyond = (dates < edges[:, 0]) | (dates > edges[:, 1])
        if beyond.any():
            at = int(np.flatnonzero(beyond)[0])
            text = f"{dates[at]} lies outside its bounds {edges[at, 0]} … {edges[at, 1]}"
            raise DataError(text, path=path, record=f"time {at}", hint="correct its bounds")
        notes.append("times at the edge of their bounds moved to the middle")
        dates = middle
    return Times(dates, calendar, edges, tuple(notes))


def _numbers(values: np.ndarray, path: str | Path, what: str) -> np.ndarray:
    array = np.asarray(values)
    numbers = array.astype(np.float64) if array.dtype.kind in "iuf" else None
    if numbers is None or not np.isfinite(numbers).all():
        raise DataError(f"{what} are not all numbers", path=path, record="time")
    return numbers


def _bare_years(numbers: np.ndarray, units: str, calendar: str, path: str | Path) -> np.ndarray:
    import cftime

    whole = np.all(numbers == np.round(numbers)) and numbers.min() >= 1 and numbers.max() <= 9999
    # A count of records (1, 2, 3, …) is no year either.
    if not whole or numbers.max() < 1000:
        has = f"units {units!r}" if units else "no units"
        raise DataError(
            f"has {has}, and its values {numbers[0]:g} … {numbers[-1]:g} are no years",
            path=path,
            record="time",
            hint='write units such as "days since 1850-01-01"',
        )
    return np.array(
        [cftime.datetime(int(n), 7, 1, calendar=calendar) for n in numbers], dtype=object
    )


def _dates(numbers: np.ndarray, units: str, calendar: str, path: str | Path) -> np.ndarray:
    """Returns dates in UTC; months and years are counted in the units' own zone."""
    units, hours = _reference(units, path)
    dates = _local_dates(numbers, units, calendar, path)
    return dates - _days(hours / 24) if hours else dates


def _reference(units: str, path: str | Path) -> tuple[str, float]:
    """Returns units of times without their zone, and the zone in hours east of Greenwich.

    As in UDUNITS, what follows the time of day is the zone, with or without a sign.
    """
    if not re.match(r"\w+\s+since\s", units, re.I):
        return units, 0.0
    found = _REFERENCE.fullmatch(units)
    zone = found and (found["east"] or found["plain"] or "")
    hours = 0.0
    if zone:
        sign, digits = -1.0 if zone[0] == "-" else 1.0, zone.lstrip("+-")
        parts = [int(part) for part in digits.split(":")]
        if len(parts) == 1 and len(digits) > 2:
            parts = [int(digits[:-2]), int(digits[-2:])]
        hours = sign * sum(part / 60**place for place, part in enumerate(parts))
    if not found or (hours and not found["clock"]) or abs(hours) > 18:
        text = f"units {units!r} cannot be read: what follows the date is no time of day and zone"
        hint = 'write them as "days since 1850-01-01 00:00:00 +01:00"'
        raise DataError(text, path=path, record="time", hint=hint)
    date, clock = found["date"], found["clock"] or ""
    date += "-1" * (2 - date.lstrip("+-").count("-"))
    if clock and ":" not in clock:
        clock = f"{clock[:-2]}:{clock[-2:]}" if len(clock) == 4 else f"{clock}:00"
    return f"{found['unit']} since {date} {clock}".strip(), hours


def _check_months(dates: np.ndarray, hours: float, path: str | Path) -> None:
    """Checks that records of a day or longer are in the same months in UTC as in their zone."""
    if len(dates) > 1 and np.median(np.diff(dates)) < _days(1):
        return
    local = dates + _days(hours / 24)
    moved = np.flatnonzero([one.month != other.month for one, other in zip(local, dates)])
    if len(moved):
        at = int(moved[0])
        raise DataError(
            f"{local[at]} in its zone ({hours:+g} hours) is {dates[at]} in UTC, another month",
            path=path,
            record=f"time {at}",
            hint="add time bounds, or write the times in UTC",
        )


def _local_dates(numbers: np.ndarray, units: str, calendar: str, path: str | Path) -> np.ndarray:
    import cftime

    since, absolute = _SINCE.fullmatch(units), _ABSOLUTE.fullmatch(units)
    try:
        if absolute:
            found = [_absolute(value, absolute[2], calendar) for value in numbers.ravel()]
            return np.array(found, dtype=object).reshape(numbers.shape)
        # Where the calendar has no year 0, a file that counts from it means a climatology.
        zero = {"has_year_zero": True} if _YEAR_ZERO.search(units) else {}
        if since and not (since[1].lower().startswith("mon") and calendar == "360_day"):
            start = cftime.num2date(
                0, f"days since {since[2]}", calendar, only_use_cftime_datetimes=True, **zero
            )
            step = 1 if since[1].lower().startswith("mon") else 12
            found = [_add_months(start, float(value) * step) for value in numbers.ravel()]
            return np.array(found, dtype=object).reshape(numbers.shape)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # CF has no year 0; the note says what is meant
            found = cftime.num2date(
                numbers, units, calendar, only_use_cftime_datetimes=True, **zero
            )
        return np.atleast_1d(found)
    except (ValueError, OverflowError, TypeError) as error:
        raise DataError(
            f"units {units!r} cannot be read: {error}", path=path, record="time"
        ) from error


def _absolute(value: float, form: str, calendar: str) -> Any:
    """Returns the date of a number such as 19850131.5 ("day as %Y%m%d.%f")."""
    import cftime

    whole = int(np.floor(value))
    part = value - whole
    if form == "%Y":
        year, month, day = whole, 1, 1
        start, scale = cftime.datetime(year, 1, 1, calendar=calendar), 12
        return _add_months(start, part * scale)
    if form == "%Y%m":
        year, month, day = whole // 100, whole % 100, 1
        return _add_months(cftime.datetime(year, month, 1, calendar=calendar), part)
    year, month, day = whole // 10000, whole // 100 % 100, whole % 100
    return cftime.datetime(year, month, day, calendar=calendar) + _days(part)


def _add_months(start: Any, count: float) -> Any:
    """Returns a date some calendar months later, a fraction being one of its month."""
    whole = int(np.floor(count + 1e-9))
    months = start.year * 12 + start.month - 1 + whole
    first = start.replace(year=months // 12, month=months % 12 + 1, day=1)
    days = min(start.day, int(first.daysinmonth)) - 1
    return first + _days(days + max(0.0, count - whole) * int(first.daysinmonth))


def _days(count: float) -> Any:
    from datetime import timedelta

    return timedelta(seconds=round(count * 86400))


def _check_order(numbers: np.ndarray, dates: np.ndarray, path: str | Path) -> None:
    steps = np.diff(numbers)
    if not np.any(steps <= 0):
        return
    where = int(np.flatnonzero(steps <= 0)[0]) + 1
    twice = steps[where - 1] == 0 or numbers[where] in numbers[:where]
    after = "" if twice else f" than {dates[where - 1]} before it"
    raise DataError(
        f"{dates[where]} {'occurs twice' if twice else 'is earlier'}{after}: times must ascend "
        f"strictly",
        path=path,
        record=f"time {where}",
        hint="sort the records and drop duplicates",
    )


def _points(bounds: np.ndarray) -> bool:
    """Returns whether all intervals are points, as of values at one time, or of one record."""
    edges = np.asarray(bounds)
    whole = edges.ndim == 2 and edges.shape[1] == 2 and edges.dtype.kind in "iuf"
    return whole and bool((edges[:, 0] == edges[:, 1]).all())


def _intervals(
    bounds: np.ndarray, units: str, calendar: str, count: int, path: str | Path
) -> np.ndarray:
    numbers = _numbers(bounds, path, "bounds")
    if numbers.shape != (count, 2):
        text = f"its bounds have the shape {numbers.shape}, ({count}, 2) is needed"
        raise DataError(text, path=path, record="time")
    bad = np.flatnonzero(numbers[:, 1] <= numbers[:, 0])
    if len(bad):
        first = tuple(numbers[bad[0]].tolist())
        text = f"its bounds {first} are no interval"
        raise DataError(text, path=path, record=f"time {bad[0]}", hint="correct or drop them")
    if np.any(np.diff(numbers[:, 0]) <= 0):
        raise DataError("its bounds do not ascend", path=path, record="time")
    return _dates(numbers, units, calendar, path)


def _middle(bounds: np.ndarray) -> np.ndarray:
    return np.array([start + (end - start) / 2 for start, end in bounds], dtype=object)


def interval_days(bounds: np.ndarray) -> np.ndarray:
    """Returns the lengths of intervals in days (T).

    Args:
        bounds: cftime dates (T, 2).
    """
    return np.array([(end - start).total_seconds() / 86400 for start, end in bounds])


def days_in_year(year: int, calendar: str) -> int:
    """Returns the number of days of a year in a calendar."""
    import cftime

    zero = {"has_year_zero": True} if year == 0 else {}
    start = cftime.datetime(year, 1, 1, calendar=calendar, **zero)
    return round((start.replace(year=year + 1) - start).total_seconds() / 86400)


def period_days(times: Times, period: str, start: int, stop: int) -> np.ndarray | None:
    """Returns the days of the months or years that records are or lie in; None for months of
    records that are not single months.

    Args:
        times: of all records.
        period: "month" or "year".
        start: the first record.
        stop: after the last.
    """
    dates, bounds = times.dates, times.bounds
    low, high = (27, 32) if period == "month" else (359, 367)
    if bounds is not None:
        days = interval_days(bounds[start:stop])
        if np.all((days > low) & (days < high)):
            return days
    if period == "year":
        return np.array([float(days_in_year(d.year, times.calendar)) for d in dates[start:stop]])
    months = np.array([date.year * 12 + date.month for date in dates])
    if bounds is None and len(dates) > 1 and np.all(np.diff(months) == 1):
        return np.array([float(date.daysinmonth) for date in dates[start:stop]])
    return None


def mid_years(years: np.ndarray, calendar: str) -> np.ndarray:
    """Returns 1 July of every year, as cftime dates.

    Args:
        years: whole numbers (T).
        calendar: CF name.
    """
    import cftime

    return np.array(
        [cftime.datetime(int(year), 7, 1, calendar=calendar) for year in years], dtype=object
    )


def year_bounds(years: np.ndarray, calendar: str) -> np.ndarray:
    """Returns the starts of every calendar year and of the next (T, 2), as cftime dates."""
    import cftime

    return np.array(
        [
            [cftime.datetime(int(year) + shift, 1, 1, calendar=calendar) for shift in (0, 1)]
            for year in years
        ],
        dtype=object,
    )
