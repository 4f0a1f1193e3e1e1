"""Dates as text: each must say its year and month, and the order of its numbers must be certain."""

from __future__ import annotations

import datetime as dt
import re
import warnings

import numpy as np
import pandas as pd

from longseq.core.errors import ConfigError, DataError
from longseq.timeseries.data.source import Source, say

ORDERS = ("dmy", "mdy", "ymd")
COUNTED = ("epoch", "number")  # of whole numbers
READINGS = (*ORDERS, *COUNTED)
# A time of day and the name of a zone behind it.
_ZONE = r"\d:\d\d\S* +(?!(?:AM|PM|UTC|GMT|Z)$)[A-Z]{1,5}$"
# The same before an offset, which pandas subtracts there: as a rule of POSIX, UTC+1 is west.
_AHEAD = r"(?i)(?<=\d)\s*(?:UTC|GMT)(?=[+-]\d{1,2}(?::?\d\d)?$)"
_ZONE_AHEAD = r"\d:\d\d[\d:.,]*\s*(?!AM|PM|am|pm)[A-Za-z]{1,5}[+-]\d"
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_NAME = r"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]*\.?"
_END = r"(?=[T\s,]|$)"  # of the date: a time or nothing follows
# Every date of a column is of the kind of the first one. None of these lacks a year or a month:
# what does (Jan, 1/3, 10:00) a parser would fill in from today.
_KINDS = {
    "iso": r"\d{4}(?P<mark>[-/. ])(?:0?[1-9]|1[0-2])(?!\d)(?:(?P=mark)\d{1,2}(?!\d))?+(?!/)|\d{8}"
    + _END,
    "span": r"(?P<first>\d{4}-\d\d-\d\d)/\d{4}-\d\d-\d\d$",  # a week, as pandas writes periods
    "week": r"(?P<year>\d{4})-?W(?P<week>\d\d)(?:-?(?P<day>[1-7]))?$",
    "quarter": r"(?P<year>\d{4})[- ]?Q(?P<q>[1-4])$|Q(?P<q2>[1-4])[- /]?(?P<year2>\d{4})$",
    "numbers": r"(?P<a>\d{1,2})(?P<mark>[-/. ])(?P<b>\d{1,2})(?P=mark)(?P<c>\d{4}|\d{2})" + _END,
    "short": rf"(?P<a>\d{{1,2}})(?P<mark>[-/. ]?)(?P<b>{_NAME})(?P=mark)(?P<c>\d{{2}})" + _END,
    "name": rf"(?=.*\b{_NAME}(?![a-z]))(?=.*(?<!\d)\d{{4}}(?!\d))",
}
_PATTERNS = {kind: re.compile(rf"\s*(?:{text})", re.IGNORECASE) for kind, text in _KINDS.items()}
_OFFSET = r"\d{2}:\d{2}.*?(Z|[+-]\d{2}:?\d{2})$"
_HINT = (
    "a date says its year and month: 2024-12-31, 2024-12, 20241231, 31.12.2024, 31 Dec 2024, "
    "2024Q4, 2024-W52; without dates, number the rows 0, 1, 2, …"
)
SERIALS = 30_000, 60_000  # days of a spreadsheet from 1982 to 2064
_SERIAL = "days of a spreadsheet? format the column as dates and times there, and save it anew"
_FIRST_OF_1900 = 69  # two digits below it are years from 2000 on, as POSIX reads them


def check_reading(reading: str | None) -> None:
    """Checks what a user says of dates.

    Raises:
        ConfigError: for an unknown order.
    """
    if reading not in (None, *READINGS):
        raise ConfigError(f"date_order is {', '.join(READINGS)}, got {reading!r}")


def parse_dates(
    column: pd.Series,
    source: Source,
    order: str | None = None,
    groups: np.ndarray | None = None,
) -> tuple[pd.DatetimeIndex, pd.Series | None]:
    """Returns a column of texts as times, and their offsets from UTC (``+02:00``) where they have
    them; the times are then instants.

    Args:
        column: dates as text, or as objects whose text is a date.
        source: of the frame.
        order: of numbers like 01/02/24: "dmy", "mdy" or "ymd"; None where the column must tell it;
            "epoch" and "number" are of whole numbers.
        groups: number of the series of every row; None for one series.

    Raises:
        DataError: at the first value that is no date or lacks a year or a month, or for an order
            that cannot be told.
        ConfigError: for an unknown order.
    """
    check_reading(order)
    if order in COUNTED:
        value = column.iloc[0]
        value = repr(value) if isinstance(value, str) else value
        text = f"{column.name!r} is {value}, no whole number as date_order {order} needs"
        raise source.error(text, 0)
    if pd.api.types.is_numeric_dtype(column):  # of 2024.10 floats have left 2024.1, January
        value = column.to_numpy(np.float64, na_value=np.nan)
        at = int(np.flatnonzero(~(value % 1 == 0))[:1].sum())
        text = f"{column.name!r} is {column.iloc[at]}, a date and time (or an integer) is needed"
        serial = bool(((value >= SERIALS[0]) & (value < SERIALS[1])).all())
        raise source.error(text, at, hint=_SERIAL if serial else _HINT)
    # A panel repeats its times in every series: each is parsed once.
    codes, unique = pd.factorize(column.astype(str).fillna("nan"))
    given = pd.Series(unique, dtype=str)

    def row(bad: np.ndarray) -> int:
        return int(np.flatnonzero(bad[codes])[0])

    def none(at: int) -> DataError:
        value = column.iloc[at]
        value = repr(value) if isinstance(value, str) else value
        text = f"{column.name!r} is {value}, a date and time (or an integer) is needed"
        return source.error(text, at, hint=_HINT)

    kind = _kind(given.iloc[0])
    other = ~given.str.match(_PATTERNS[kind]).to_numpy(bool) if kind else np.ones(len(given), bool)
    if other.any():
        at = row(other)
        if not (kind and _kind(str(column.iloc[at]))):
            raise none(at)
        text = f"{column.name!r} is {column.iloc[at]!r}, and {given.iloc[0]!r} in its first row"
        raise source.error(text, at, hint="write all dates in one way, as 2024-12-31")
    offsets = given.str.extract(_OFFSET, expand=False)
    if offsets.notna().any() and offsets.isna().any():
        at = row(offsets.isna().to_numpy())
        raise source.error(f"the time {column.iloc[at]!r} has no offset, and others have", at)
    plain = given
    if kind == "quarter":
        parts = given.str.extract(_PATTERNS[kind])
        year, quarter = parts["year"].fillna(parts["year2"]), parts["q"].fillna(parts["q2"])
        plain = year + "-" + (quarter.astype(int) * 3 - 2).astype(str).str.zfill(2)
    elif kind == "span":
        plain = given.str.extract(_PATTERNS[kind])["first"]
    elif kind == "week":
        plain = given.str.extract(_PATTERNS[kind]).apply(_of_week, axis=1)
    elif kind == "iso":
        _refuse_fiscal_years(given, source)
    elif kind in ("numbers", "short"):
        plain = _year_first(given, kind, source, order, codes, groups)
    times = _parsed(plain, source, bool(offsets.notna().any()))
    bad = np.asarray(times.isna())
    if bad.any():
        raise none(row(bad))
    if not offsets.notna().any():
        return times[codes], None
    return times[codes], pd.Series(offsets.str.replace("Z", "+00:00").to_numpy()[codes])


def _kind(text: str) -> str | None:
    return next((kind for kind, pattern in _PATTERNS.items() if pattern.match(text)), None)


def _of_week(parts: pd.Series) -> str:
    """Returns the day of an ISO week, Monday where none is named; "" if there is no such week."""
    day = 1 if pd.isna(parts["day"]) else int(parts["day"])
    try:
        return dt.date.fromisocalendar(int(parts["year"]), int(parts["week"]), day).isoformat()
    except ValueError:
        return ""


def _refuse_fiscal_years(given: pd.Series, source: Source) -> None:
    """Refuses 2009/10, 2010/11, …: October 2009 and November 2010 thirteen months later, as such
    would be read.

    Raises:
        DataError: if all texts are of two years in a row.
    """
    years = given.str.extract(r"^\s*(\d{4})[-/](\d\d)\s*$")
    if len(given) < 2 or years.isna().any(axis=None):
        return
    first, second = (years[i].astype(int) for i in (0, 1))
    if ((first + 1) % 100 == second).all():
        raise source.error(
            f"its dates, like {given.iloc[0]!r} and {given.iloc[1]!r}, are years that begin in one "
            "calendar year and end in the next, or months thirteen months apart",
            hint="write the year it begins in, 2009, or a date, 2009-04-01",
        )


def _parsed(text: pd.Series, source: Source, utc: bool) -> pd.DatetimeIndex:
    """Returns texts that begin with the year, or name the month, as times; NaT for what is none."""
    text = text.str.replace(_AHEAD, "", regex=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a format is slow or its zone unknown: it is NaT then
        try:
            times = pd.DatetimeIndex(
                pd.to_datetime(text, errors="coerce", format="ISO8601", utc=utc)
            )
            if times.isna().any():
                times = pd.DatetimeIndex(
                    pd.to_datetime(text, errors="coerce", format="mixed", utc=utc)
                )
        except ValueError as error:  # of two zones in one column
            raise source.error(f"its times cannot be read: {error}") from error
    if times.isna().all():
        return times
    # pandas before 3 leaves out the names of zones that it does not know, CET among them.
    return times.where(~text.str.contains(f"{_ZONE}|{_ZONE_AHEAD}", na=False).to_numpy(bool))


def _year_first(
    given: pd.Series,
    kind: str,
    source: Source,
    order: str | None,
    codes: np.ndarray,
    groups: np.ndarray | None,
) -> pd.Series:
    """Returns dates like 31.12.2024, 12/31/24 or 31-Dec-24 as 2024-12-31; what the numbers are must
    follow from all of them."""
    parts = given.str.extract(_PATTERNS[kind])
    rest = given.str.replace(_PATTERNS[kind], "", regex=True)
    named, shown = kind == "short", given.iloc[0]
    if named:
        parts["b"] = [_MONTHS.index(one[:3].lower()) + 1 for one in parts["b"]]
    numbers = {name: pd.to_numeric(parts[name]).to_numpy() for name in "abc"}
    digits = parts["c"].str.len().to_numpy()
    if (digits != digits[0]).any():
        at = int(np.flatnonzero((digits != digits[0])[codes])[0])
        raise source.error("some years have four digits, and others two", at)
    orders = ("dmy", "mdy", "ymd") if digits[0] == 2 else ("dmy", "mdy")
    possible = [one for one in orders if _fits(numbers, one) and not (named and one == "mdy")]
    if order is not None:
        if order not in possible:
            raise source.error(f"its dates, like {shown!r}, are not all in the order {order}")
        possible = [order]
    elif parts["mark"].iloc[0] == "." and "mdy" in possible:
        possible.remove("mdy")  # a point makes an ordinal of the number before it
    if "ymd" in possible and len(possible) > 1:
        possible = _told_by_rows(numbers, possible, codes, groups)
    if not possible:
        raise source.error(
            f"its dates, like {shown!r}, are in no one order of day, month and year",
            hint="write dates as 2024-12-31",
        )
    if len(possible) > 1 and not named:
        what = f"is in the order {' or '.join(possible)}"
        if "ymd" not in possible:
            what = "begins with the day or the month"
        raise source.error(
            f"it cannot be told whether {shown!r} {what}",
            hint=f"say it: {say('date_order', possible[0])}; or write dates as 2024-12-31",
        )
    # 31-Dec-24 is a common way to write the day first, 24-Dec-31 none to begin with the year.
    place = dict(zip(possible[0], "abc"))
    year = numbers[place["y"]]
    if digits[0] == 2:
        year = year + np.where(year < _FIRST_OF_1900, 2000, 1900)
        words = ", ".join({"d": "day", "m": "month", "y": "year"}[one] for one in possible[0])
        source.notes.append(f"dates like {shown} are read as {words}")
    month, day = (
        pd.Series(numbers[place[one]]).astype(str).str.zfill(2).to_numpy() for one in "md"
    )
    return pd.Series(year).astype(str) + "-" + month + "-" + day + rest.to_numpy()


def _fits(numbers: dict[str, np.ndarray], order: str) -> bool:
    """Returns whether all months and days of an order are ones."""
    place = dict(zip(order, "abc"))
    month, day = numbers[place["m"]], numbers[place["d"]]
    return bool(month.min() >= 1 and month.max() <= 12 and day.min() >= 1 and day.max() <= 31)


def _told_by_rows(
    numbers: dict[str, np.ndarray],
    possible: list[str],
    codes: np.ndarray,
    groups: np.ndarray | None,
) -> list[str]:
    """Returns which of some orders, "ymd" among them, are left if the rows stand in order of time,
    and if of the outer numbers the one that never changes, and stands last, is the year."""
    group = np.zeros(len(codes), int) if groups is None else groups
    sort = np.argsort(group, kind="stable")
    same = np.diff(group[sort]) == 0
    left = []
    for order in possible:
        place = dict(zip(order, "abc"))
        day = (numbers[place["y"]] * 100 + numbers[place["m"]]) * 100 + numbers[place["d"]]
        step = np.diff(day[codes][sort])[same]
        if (step >= 0).all() or (step <= 0).all():
            left.append(order)
    if not {"dmy", "mdy"} & set(left) or "ymd" not in left:
        # That year-last dates stand in order tells nothing of day and month.
        only = [one for one in possible if (one == "ymd") == ("ymd" in left)]
        return only if left else possible
    if len(np.unique(numbers["c"])) == 1 < len(np.unique(numbers["a"])):
        return [one for one in possible if one != "ymd"]
    return possible
