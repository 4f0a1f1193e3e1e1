"""What a column of times says (dates, offsets, zones, epochs, numbers), and its regular step."""

from __future__ import annotations

import datetime as dt
import math
import zoneinfo
from typing import Any

import numpy as np
import pandas as pd

from longseq.core.errors import ConfigError, DataError
from longseq.timeseries.data.dates import COUNTED, check_reading, parse_dates
from longseq.timeseries.data.source import Source, say
from longseq.timeseries.data.stamps import parse_integers, whole_numbers

_ZONES = (
    *("Europe/Berlin", "Europe/London", "Europe/Athens", "Europe/Lisbon"),
    *("America/New_York", "America/Chicago", "America/Denver", "America/Los_Angeles"),
    *("America/Halifax", "America/St_Johns", "America/Anchorage", "America/Santiago"),
    *("Australia/Sydney", "Australia/Adelaide", "Pacific/Auckland", "Africa/Cairo"),
    *("Asia/Jerusalem", "Asia/Beirut"),
)
ZONE_HINT = f"say its zone: {say('zone', 'Europe/Berlin')}"
_SPARSE = 4  # an axis may have so many times as many rows as there are times


def parse_times(
    column: pd.Series,
    source: Source,
    zone: str | None = None,
    groups: np.ndarray | None = None,
    order: str | None = None,
) -> pd.Index:
    """Returns a column of dates, epochs or whole numbers as an index.

    - with offsets (``+02:00``): instants; the zone is ``zone``, or the one offset, or the zone
      whose clock changes fit all rows, or UTC;
    - without: the clock of ``zone``, or a clock of no zone;
    - periods: their first instant;
    - whole numbers: dates (20240131, 202401, 2024013112), epochs in s, ms, µs or ns, or numbers.

    Args:
        column: as read.
        source: of the frame.
        zone: IANA name of the zone of the clock, for example "Europe/Berlin".
        groups: number of the series of every row, where the frame has several.
        order: of day, month and year in dates like 01/02/24: "dmy", "mdy" or "ymd"; what whole
            numbers are: "ymd" (2024010112), "epoch" or "number"; None where the column must tell
            it.

    Raises:
        DataError: at the first value that is no time, or does not exist in the zone.
        ConfigError: for an unknown zone.
    """
    check_reading(order)
    if zone is not None:
        _check_zone(zone)
    if column.dtype == object and pd.api.types.infer_dtype(column) == "period":
        column = pd.Series(pd.PeriodIndex(column), name=column.name)
    if isinstance(column.dtype, pd.PeriodDtype):
        column = column.dt.to_timestamp(how="start")
    if pd.api.types.is_datetime64_any_dtype(column):
        if order in COUNTED:
            text = f"{column.name!r} holds dates and times, no whole numbers as date_order {order}"
            raise source.error(f"{text} needs", hint="leave it out")
        times = pd.DatetimeIndex(column)
        _check_all(times, column, source)
    else:
        whole = whole_numbers(column)
        if whole is not None:
            found = parse_integers(whole, str(column.name), source, order)
            if not isinstance(found, pd.DatetimeIndex):
                if zone is not None:
                    raise source.error(f"{column.name!r} holds whole numbers, which have no zone")
                return found
            times = found
        else:
            times, offsets = parse_dates(column, source, order, groups)
            if offsets is not None and zone is None:
                times = _zone_of(times, offsets, source)
    if zone is None:
        return times
    if times.tz is not None:
        return times.tz_convert(zone)
    return _localise(times, zone, source, groups)


def _check_zone(zone: str) -> None:
    try:
        zoneinfo.ZoneInfo(zone)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ConfigError(
            f"no time zone {zone!r}; give an IANA name, for example Europe/Berlin"
        ) from error


def _check_all(times: pd.DatetimeIndex, column: pd.Series, source: Source) -> None:
    if times.isna().any():
        row = int(np.flatnonzero(times.isna())[0])
        text = f"{column.name!r} is {column.iloc[row]}, a date and time (or an integer) is needed"
        raise source.error(text, row)


def _zone_of(times: pd.DatetimeIndex, offsets: pd.Series, source: Source) -> pd.DatetimeIndex:
    """Returns instants in the zone that their offsets tell."""
    codes, texts = pd.factorize(offsets)
    minutes = np.array([_minutes(one) for one in texts])[codes]
    if len(set(minutes.tolist())) == 1:
        shift = int(minutes[0])
        fixed = dt.timezone(dt.timedelta(minutes=shift)) if shift else dt.UTC
        return times.tz_convert(fixed)
    for name in _ZONES:
        there = times.tz_convert(name)
        found = (there.tz_localize(None) - times.tz_localize(None)) / pd.Timedelta(minutes=1)
        if (np.asarray(found) == minutes).all():
            source.notes.append(f"the offsets are those of {name}, which is taken (or say --zone)")
            return there
    source.notes.append("the offsets fit no zone that is known: the calendar is that of UTC")
    return times


def _minutes(offset: str) -> int:
    sign = -1 if offset[0] == "-" else 1
    digits = offset[1:].replace(":", "")
    return sign * (int(digits[:2]) * 60 + int(digits[2:]))


def _localise(
    times: pd.DatetimeIndex, zone: str, source: Source, groups: np.ndarray | None
) -> pd.DatetimeIndex:
    """Reads a local clock: of an hour that comes twice, the first pass is summer time."""
    key = pd.DataFrame({"time": times, "group": 0 if groups is None else groups})
    first = ~key.duplicated().to_numpy()
    # Where a day begins at one o'clock, its date is its first instant.
    dates = len(times) > 0 and bool((times == times.normalize()).all())
    gone = "shift_forward" if dates else "NaT"
    found = times.tz_localize(zone, ambiguous=first, nonexistent=gone)  # type: ignore[arg-type]
    lost = np.flatnonzero(found.isna() & times.notna())
    if len(lost):
        text = f"the time {times[lost[0]]} does not exist in {zone}, where clocks go forward"
        hint = "is it another zone, or standard time all year?"
        raise source.error(text, int(lost[0]), hint)
    return found


# Steps that people sample at, in seconds; what a jittered sensor was meant to have is one of them.
_ROUND = (
    *(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 20, 30),
    *(60 * n for n in (1, 2, 5, 10, 15, 20, 30, 60, 120, 180, 240, 360, 480, 720)),
    *(86400, 7 * 86400),
)


def _step_hint(ds: pd.DatetimeIndex | pd.Index) -> str:
    """Returns the way out for irregular times, with the round step nearest to the usual one."""
    step = "1min"
    if isinstance(ds, pd.DatetimeIndex):
        usual = pd.Timedelta(np.median(np.diff(ds.asi8)), ds.unit).total_seconds()
        days = np.unique(np.diff(ds.asi8)) / (pd.Timedelta(days=1) / pd.Timedelta(1, ds.unit))
        if set(days.tolist()) == {28.0, 35.0}:
            return "months of 4 and 5 weeks? number the rows 0, 1, 2, …, and say --season 12"
        parts = ds.day.nunique()
        # The 1st and 15th; the 1st, 11th and 21st.
        if parts in (2, 3) and days.min() > 7 and days.max() < 18:
            return f"parts of months? number the rows 0, 1, 2, …, and say --season {12 * parts}"
        months = usual / (365.25 / 12 * 86400)
        if months > 0.9 and abs(months - round(months)) < 0.04:
            return "give every row its month (2024-01) in place of a day: months have no fixed step"
        nearest = min(_ROUND, key=lambda one: abs(math.log(one / max(usual, 1e-9))))
        step = _tick(pd.Timedelta(seconds=nearest)).freqstr
    return f"bring the times to one regular step: {say('resample', step)}"


def _goes_back(times: np.ndarray, groups: np.ndarray) -> np.ndarray:
    return (times[1:] <= times[:-1]) & (groups[1:] == groups[:-1])


def check_order(times: pd.Index, groups: np.ndarray, names: pd.Index, source: Source) -> None:
    """Checks that times ascend strictly within every series.

    Args:
        times: of all rows.
        groups: number of the series of every row.
        names: of the series.
        source: of the frame.

    Raises:
        DataError: at the first duplicate or step back.
    """
    instants = times.asi8 if isinstance(times, pd.DatetimeIndex) else np.asarray(times)
    if (groups[1:] >= groups[:-1]).all():  # series by series, as most files are
        order, back = None, _goes_back(instants, groups)
    else:
        order = np.argsort(groups, kind="stable")
        back = _goes_back(instants[order], groups[order])
    if not back.any():
        return
    places = np.flatnonzero(back) + 1
    if order is None:
        row, before = int(places[0]), int(places[0]) - 1
    else:
        at = int(places[np.argmin(order[places])])
        row, before = int(order[at]), int(order[at - 1])
    time, previous = times[row], times[before]
    what = "is a duplicate" if time == previous else f"comes after {previous}"
    series = f" ({names[groups[row]]})" if len(names) > 1 else ""
    hint = "sort by time and keep one row a time"
    if isinstance(times, pd.DatetimeIndex) and times.tz is None:
        step_back = previous - time
        days = bool((times == times.normalize()).all())
        if (
            not days
            and step_back < pd.Timedelta(hours=1)
            and time.hour <= 3
            and time.month in (4, 9, 10, 11)
        ):
            hint = f"do not sort: it looks like the hour that comes twice; {ZONE_HINT}"
    raise DataError(
        f"the time {time} {what}",
        path=source.file,
        record=f"{source.where(row)}{series}",
        hint=hint,
    )


def regular_axis(ds: pd.Index, source: Source) -> tuple[pd.Index, Any]:
    """Returns the regular axis that times lie on, and its step.

    Args:
        ds: distinct times in order.
        source: of the frame.

    Raises:
        DataError: if there is none, or almost all of its rows would be empty.
    """
    if len(ds) < 3:
        raise source.error(f"has {len(ds)} times, at least 3 are needed")
    if not isinstance(ds, pd.DatetimeIndex):
        step = math.gcd(*np.diff(ds.to_numpy()).tolist())
        _check_density(len(ds), (int(ds[-1]) - int(ds[0])) // step + 1, ds, source)
        return pd.Index(np.arange(ds[0], ds[-1] + 1, step)), step
    gaps = np.diff(ds.asi8)
    if ds.tz is not None and pd.Timedelta(gaps.min(), ds.unit) >= pd.Timedelta(hours=22):
        # Days of a zone have 23 to 25 hours: its own clock is what is regular.
        axis, freq = regular_axis(_clock(ds), source)
        return axis.tz_localize(ds.tz, ambiguous=True, nonexistent="shift_forward"), freq  # type: ignore[attr-defined]
    equal = bool((gaps == gaps[0]).all())
    # Three months in a row may have 31 days each, three years 365: they are months and years.
    if equal and pd.Timedelta(gaps[0], ds.unit) < pd.Timedelta(days=28):
        return ds, _tick(pd.Timedelta(gaps[0], ds.unit))
    for offset in _calendar_steps(ds):
        axis = pd.date_range(ds[0], ds[-1], freq=offset)
        if len(axis) <= _SPARSE * len(ds) and ds.isin(axis).all():
            return axis, offset
    if equal:
        return ds, _tick(pd.Timedelta(gaps[0], ds.unit))
    smallest = gaps.min()
    off = gaps % smallest != 0
    if off.any():
        at = int(np.flatnonzero(off)[0])
        least = pd.Timedelta(smallest, ds.unit)
        raise source.error(
            f"the step from {ds[at]} to {ds[at + 1]} is no multiple of the smallest step, {least}",
            hint=_step_hint(ds),
        )
    step = pd.Timedelta(smallest, ds.unit)
    _check_density(len(ds), (ds.asi8[-1] - ds.asi8[0]) // smallest + 1, ds, source)
    return pd.date_range(ds[0], ds[-1], freq=step), _tick(step)


def times_after(ds: pd.DatetimeIndex, freq: Any, count: int) -> pd.DatetimeIndex:
    """Returns the times that follow a regular axis.

    Args:
        ds: the axis.
        freq: its step.
        count: number of times.
    """
    # Before pandas 3 a day is a Tick too, of 24 hours.
    fixed = isinstance(freq, pd.offsets.Tick) and not isinstance(freq, pd.offsets.Day)
    if ds.tz is None or fixed:
        return pd.date_range(ds[-1], periods=count + 1, freq=freq)[1:]
    # Days, months and years are those of the zone's own clock, which may skip or repeat a time.
    beyond = pd.date_range(_clock(ds[-3:])[-1], periods=count + 1, freq=freq)[1:]
    return beyond.tz_localize(ds.tz, ambiguous=True, nonexistent="shift_forward")  # type: ignore[arg-type]


def _clock(ds: pd.DatetimeIndex) -> pd.DatetimeIndex:
    """Returns what the zone's clock shows, for days and longer steps: the usual time of the day
    also where a day did not have it and the time after the change of clocks stands in its place."""
    local = ds.tz_localize(None)
    clocks, counts = np.unique(local - local.normalize(), return_counts=True)
    usual = local.normalize() + clocks[counts.argmax()]
    moved = usual.tz_localize(ds.tz, ambiguous=True, nonexistent="shift_forward") == ds  # type: ignore[arg-type]
    return local.where(~moved, usual)


def _tick(step: pd.Timedelta) -> Any:
    """Returns a step of fixed length as an offset; days are days of the calendar."""
    day = pd.Timedelta(days=1)
    if step % day == pd.Timedelta(0):
        return pd.offsets.Day(step // day)
    return pd.tseries.frequencies.to_offset(step)


def _calendar_steps(ds: pd.DatetimeIndex) -> list[Any]:
    """Returns the steps of no fixed length that may fit."""
    month, day, offsets = ds[0].month, ds[0].day, pd.offsets
    # The greatest number of months that all times lie on.
    count = math.gcd(*np.diff(ds.year.to_numpy() * 12 + ds.month.to_numpy()).tolist())
    years, quarters = (count // n if count % n == 0 else 0 for n in (12, 3))
    found: list[Any] = []
    if count == 0:
        pass  # within one month
    elif (ds.day == 1).all():
        if years:
            found.append(offsets.YearBegin(years, month=month))
        elif quarters:
            found.append(offsets.QuarterBegin(quarters, startingMonth=month))
        else:
            found.append(offsets.MonthBegin(count))
    elif (ds.day == day).all() and day <= 28:
        found.append(pd.DateOffset(months=count))
    elif ds.is_month_end.all():
        if years:
            found.append(offsets.YearEnd(years, month=month))
        elif quarters:
            found.append(offsets.QuarterEnd(quarters, startingMonth=month))
        else:
            found.append(offsets.MonthEnd(count))
    workdays = (ds.day_of_week < 5).all() and (ds == ds.normalize()).all()
    if workdays and count:
        # The last or first working days of months, which no other step has.
        if years:
            found += [offsets.BYearEnd(years, month=month), offsets.BYearBegin(years, month=month)]
        elif quarters:
            found.append(offsets.BQuarterEnd(quarters, startingMonth=month))
            found.append(offsets.BQuarterBegin(quarters, startingMonth=month))
        else:
            found += [offsets.BMonthEnd(count), offsets.BMonthBegin(count)]
    if workdays:
        found.append(offsets.BusinessDay())
    return found


def _check_density(times: int, rows: int, ds: pd.Index, source: Source) -> None:
    if rows > _SPARSE * times + 1000 or (times > 50 and rows > 10 * _SPARSE * times):
        raise source.error(
            f"its {times:,} times from {ds[0]} to {ds[-1]} are irregular: at their smallest step "
            f"there would be {rows:,} rows",
            hint=_step_hint(ds),
        )
