"""Whole numbers as times: calendar stamps (20240131), the time since 1970, or plain numbers."""

from __future__ import annotations

import math
import re

import numpy as np
import pandas as pd

from longseq.timeseries.data.dates import SERIALS, check_reading, parse_dates
from longseq.timeseries.data.source import Source, say

# A unit's smallest value is the year 1980, its largest 2100: no two ranges meet.
_EPOCHS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_FROM, _TO = 315_532_800, 4_102_444_800
_YEARS = 1900, 2100
# Digits of a stamp that begins with the year: how they are read, and what they are called.
_STAMPS = {
    6: ("%Y%m", "months", "YYYYMM"),
    8: ("%Y%m%d", "dates", "YYYYMMDD"),
    10: ("%Y%m%d%H", "hours", "YYYYMMDDHH"),
    12: ("%Y%m%d%H%M", "minutes", "YYYYMMDDHHMM"),
    14: ("%Y%m%d%H%M%S", "seconds", "YYYYMMDDHHMMSS"),
    17: ("%Y%m%d%H%M%S%f", "milliseconds", "YYYYMMDDHHMMSSmmm"),
}


_MOST = 0.9  # of a column's numbers are stamps: then the others are mistakes


def whole_numbers(column: pd.Series) -> np.ndarray | None:
    """Returns a column of whole numbers, or of texts that are ones, as int64 (N,); seconds since
    1970 with a fraction as microseconds; None for any other column."""
    if pd.api.types.is_integer_dtype(column) and not column.isna().any():
        if len(column) and column.max() > np.iinfo(np.int64).max:
            return None
        return column.to_numpy(np.int64)
    if pd.api.types.is_float_dtype(column) and len(column):
        return _whole(column.to_numpy(np.float64, na_value=np.nan))
    if not pd.api.types.is_numeric_dtype(column) and len(column):
        text = column.astype(str).fillna("nan")
        if re.fullmatch(r"-?\d{1,19}", text.iloc[0]) and text.str.fullmatch(r"-?\d{1,19}").all():
            try:
                return text.astype(np.int64).to_numpy()
            except (OverflowError, ValueError):
                return None
    return None


def _whole(values: np.ndarray) -> np.ndarray | None:
    """Returns floats as int64 (N,); None if they have fractions, or too many digits to have any."""
    if (values == np.rint(values)).all() and (np.abs(values) < 2**53).all():
        return values.astype(np.int64)
    if (values >= _FROM).all() and (values < _TO).all():
        return np.rint(values * _EPOCHS["us"]).astype(np.int64)
    return None


def parse_integers(
    values: np.ndarray, name: str, source: Source, reading: str | None = None
) -> pd.Index:
    """Returns whole numbers as dates where they can be nothing else, else as they are.

    Args:
        values: int64 (N,).
        name: of their column.
        source: of the frame.
        reading: "ymd": stamps that begin with the year; "dmy", "mdy": dates of 6 or 8 digits;
            "epoch": time since 1970; "number": numbers; None where the column must tell it.

    Raises:
        DataError: if they can be two of these, or are not what they are said to be.
        ConfigError: for an unknown reading.
    """
    check_reading(reading)
    if reading == "number":
        return pd.Index(values)
    unique, codes = np.unique(values, return_inverse=True)
    unit = _unit(unique)
    if reading == "epoch":
        if unit is None:
            text = f"{name!r}, like {values[0]}, is no time since 1970 in s, ms, µs or ns"
            raise source.error(text, hint="such times are read from 1980 to 2100")
        return _epochs(values, unit, name, source)
    stamps = None if reading in ("dmy", "mdy") else _stamps(unique)
    if stamps is not None:
        times, what, form = stamps
        bad = np.asarray(times.isna())
        if bad.any():
            at = int(np.flatnonzero(bad[codes])[0])
            raise source.error(
                f"{name!r} is {values[at]}, and others are stamps {form}",
                at,
                f"mend it; if these are no dates, say it: {say('date_order', 'number')}",
            )
        if unit is not None and reading is None:
            # Both fit 2024010100: what it is shows where a day, a month or a year ends.
            seconds = pd.DatetimeIndex(pd.to_datetime(unique, unit=unit))
            if _filled(times) <= _filled(seconds):
                raise source.error(
                    f"it cannot be told whether {name!r}, like {values[0]}, is a stamp {form} or "
                    f"the time since 1970 in {unit}",
                    hint=f"say it: {say('date_order', 'ymd')}; or epoch",
                )
        source.notes.append(f"{name}: whole numbers like {values[0]} are read as {what}")
        return times[codes]
    if reading is not None:
        return _short_dates(values, name, source, reading)
    if unit is not None:
        return _epochs(values, unit, name, source)
    _refuse_short(unique, name, source)
    if _between(unique, *SERIALS):
        day = pd.Timestamp("1899-12-30") + pd.Timedelta(days=int(values[0]))
        source.notes.append(
            f"{name}: {values[0]} is read as a number; if it is the day of a spreadsheet, "
            f"{day.date()}, format the column as dates there, and save it anew"
        )
    return pd.Index(values)


def _unit(values: np.ndarray) -> str | None:
    """Returns the unit in which ascending numbers are times since 1970; None if there is none."""
    low, high = int(values[0]), int(values[-1])
    fits = (unit for unit, n in _EPOCHS.items() if low >= _FROM * n and high < _TO * n)
    return next(fits, None)


def _epochs(values: np.ndarray, unit: str, name: str, source: Source) -> pd.DatetimeIndex:
    source.notes.append(f"{name}: read as the time since 1970 in {unit}, UTC")
    return pd.DatetimeIndex(pd.to_datetime(values, unit=unit, utc=True))  # type: ignore[call-overload]


def _stamps(values: np.ndarray) -> tuple[pd.DatetimeIndex, str, str] | None:
    """Returns numbers as stamps that begin with the year (NaT for one that is none), what they are
    and how they are written; None if they are no stamps."""
    digits = len(str(int(np.median(values))))
    if digits not in _STAMPS:
        return None
    form, what, written = _STAMPS[digits]
    one = 10 ** (digits - 4)
    within = (values >= _YEARS[0] * one) & (values < (_YEARS[1] + 1) * one)
    if within.mean() < _MOST:
        return None
    text = pd.Series(values).astype(str).where(within)
    times = pd.DatetimeIndex(pd.to_datetime(text, format=form, errors="coerce"))
    return (times, what, written) if times.notna().mean() >= _MOST else None


def _filled(times: pd.DatetimeIndex) -> float:
    """Returns the part of their own regular axis, of months where it can be, that times fill."""
    axes = [times.as_unit("ns").asi8]
    clock = times.time
    if (clock == clock[0]).all() and (
        (times.day == times[0].day).all() or times.is_month_end.all()
    ):
        axes.append(np.asarray(times.year * 12 + times.month, np.int64))
    return max(_density(one) for one in axes)


def _density(times: np.ndarray) -> float:
    gaps = np.diff(times)
    if not len(gaps):
        return 1.0
    return len(times) / ((int(times[-1]) - int(times[0])) // math.gcd(*gaps.tolist()) + 1)


def _short_dates(values: np.ndarray, name: str, source: Source, order: str) -> pd.DatetimeIndex:
    """Returns numbers like 31122024 or 311224 as dates; a number has lost a zero in front."""
    eight = int(values.max()) > 999_999
    low, high = (1_010_000, 31_129_999) if eight else (101, 999_999)
    fits = _between(values, low, high) and not (eight and order == "ymd")
    if not fits or not _fits(values, order, 10**4 if eight else 100):
        text = f"{name!r}, like {values[0]}, is not all of dates in the order {order}"
        raise source.error(text, hint="write dates as 2024-12-31")
    text = pd.Series(values, name=name).astype(str).str.zfill(8 if eight else 6)
    source.notes.append(f"{name}: whole numbers like {values[0]} are read as dates")
    return parse_dates(text.str[:2] + "-" + text.str[2:4] + "-" + text.str[4:], source, order)[0]


def _thirds(values: np.ndarray, last: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns what stands in front, the two digits after it, and the last ones, below ``last``."""
    return values // last // 100, values // last % 100, values % last


def _refuse_short(values: np.ndarray, name: str, source: Source) -> None:
    """Refuses numbers all of which could be dates of a kind that is not read unless it is said.

    Raises:
        DataError: if they could.
    """
    low, high = int(values[0]), int(values[-1])
    orders: dict[str, str] = {}
    form = ""
    for digits, most, text in ((5, 4, "YYYYQ"), (6, 53, "YYYYWW"), (7, 366, "YYYYDDD")):
        year, part = np.divmod(values, 10 ** (digits - 4))
        if _between(year, *_YEARS) and _between(part, 1, most):
            form = text
    if not form and low >= 1_011_900 and high <= 31_122_100:
        if _between(values % 10**4, *_YEARS):
            orders = {"dmy": "DDMMYYYY", "mdy": "MMDDYYYY"}
    elif not form and low >= 10_101 and high <= 991_231:
        orders = {"ymd": "YYMMDD", "dmy": "DDMMYY", "mdy": "MMDDYY"}
    last = 10**4 if high > 999_999 else 100
    fits = [order for order in orders if _fits(values, order, last)]
    if form:
        number = say("date_order", "number")
        hint = f"write dates as 2024-12-31, or say that they are numbers: {number}"
    elif fits:
        form = " or ".join(orders[one] for one in fits)
        hint = f"say it: {say('date_order', fits[0])}; or {', '.join([*fits[1:], 'number'])}"
    else:
        return
    text = f"it cannot be told whether {name!r}, like {low}, is a date {form} or a number"
    raise source.error(text, hint=hint)


def _fits(values: np.ndarray, order: str, last: int) -> bool:
    """Returns whether all days and months of numbers are ones; ``last`` as of ``_thirds``."""
    first, second, third = _thirds(values, last)
    days = {"ymd": (third, second), "dmy": (first, second), "mdy": (second, first)}
    day, month = days[order]
    return _between(day, 1, 31) and _between(month, 1, 12)


def _between(values: np.ndarray, low: int, high: int) -> bool:
    return bool(values.min() >= low and values.max() <= high)
