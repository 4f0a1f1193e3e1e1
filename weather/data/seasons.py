"""Which part of every year is taken: all of it, a month or a season."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from typing import Any

import numpy as np

from longseq.core.errors import ConfigError, DataError
from longseq.weather.data.times import interval_days

_INITIALS = "JFMAMJJASOND"
_NAMES = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")


class IncompleteYears(DataError):
    """Records that do not fill their years or seasons; with those of the next file they may."""


@dataclass(frozen=True)
class Part:
    """The part of every year that a yearly value stands for.

    Args:
        months: that follow each other, such as (12, 1, 2); empty for whole years.
        whole: whether incomplete years at the ends of a file are left out instead of refused.
    """

    months: tuple[int, ...] = ()
    whole: bool = False

    @property
    def wraps(self) -> bool:
        """Whether the months go over the turn of the year."""
        return bool(self.months) and self.months[0] > self.months[-1]

    def span(self, year: int, calendar: str) -> tuple[Any, Any]:
        """Returns the start and the end of the months, cftime dates.

        Args:
            year: in which they begin.
            calendar: CF name.
        """
        import cftime

        first, count = self.months[0], len(self.months)
        after = first - 1 + count
        return (
            cftime.datetime(year, first, 1, calendar=calendar),
            cftime.datetime(year + after // 12, after % 12 + 1, 1, calendar=calendar),
        )

    def axis(self, years: np.ndarray, calendar: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns the middles (T) and the bounds (T, 2) of the months, cftime dates.

        Args:
            years: in which they begin (T).
            calendar: CF name.
        """
        edges = np.array([self.span(int(year), calendar) for year in years], dtype=object)
        middle = [start + (end - start) / 2 for start, end in edges]
        return np.array(middle, dtype=object), edges


WHOLE = Part()


def parse_months(text: str | None) -> tuple[int, ...]:
    """Returns months of "7", "jul", "6-8", "12-2" or "JJA"; none for None, which is whole years.

    Raises:
        ConfigError: for anything else.
    """
    if text is None:
        return ()
    plain = str(text).strip()
    if len(plain) >= 3 and plain.isalpha() and plain.lower() not in _NAMES:
        at = (_INITIALS * 2).find(plain.upper())
        if at >= 0 and len(plain) < 12:
            return tuple((at + step) % 12 + 1 for step in range(len(plain)))
    numbers = []
    for part in plain.split("-"):
        name = part.strip().lower()
        numbers.append(_NAMES.index(name) + 1 if name in _NAMES else _whole(name))
    if len(numbers) not in (1, 2) or not all(1 <= number <= 12 for number in numbers):
        text = f"months such as 7, 6-8, 12-2 or JJA are needed, got {plain!r}"
        raise ConfigError(text)
    first, last = numbers[0], numbers[-1]
    count = (last - first) % 12 + 1
    return () if count == 12 else tuple((first - 1 + step) % 12 + 1 for step in range(count))


def _whole(text: str) -> int:
    return int(text) if text.isdecimal() else 0


@dataclass(frozen=True)
class Season:
    """The records of the months of one year.

    Args:
        year: in which the months begin.
        records: their numbers.
        weights: of the records, summing to one.
        problem: what is incomplete; empty if nothing is.
    """

    year: int
    records: np.ndarray
    weights: np.ndarray
    problem: str


def seasons_of(
    time: np.ndarray, calendar: str, bounds: np.ndarray | None, part: Part, path: str
) -> list[Season]:
    """Returns the months of every year that has records in them.

    Args:
        time: cftime dates (T).
        calendar: CF name.
        bounds: of the records (T, 2), or None.
        part: the months.
        path: file, for messages.

    Raises:
        DataError: for records that are longer than a month.
    """
    if bounds is not None and (own := _own_seasons(bounds, calendar, part)):
        return own
    lengths = None if bounds is None else interval_days(bounds)
    steps = [(after - one).total_seconds() / 86400 for one, after in pairwise(time)]
    longest = float(lengths.max()) if lengths is not None else float(np.median(steps or [0.0]))
    if longest > 32 or (lengths is None and len(time) == 1):
        text = f"its records cover {longest:g} days: months cannot be taken from them"
        raise (DataError if longest > 32 else IncompleteYears)(text, path=path)
    chosen = np.array([date.month in part.months for date in time])
    # A season that goes over the turn of the year belongs to the year that it begins in.
    year = np.array(
        [date.year - (part.wraps and date.month <= part.months[-1]) for date in time], dtype=int
    )
    found = []
    for number in np.unique(year[chosen]):
        records = np.flatnonzero(chosen & (year == number))
        start, end = part.span(int(number), calendar)
        needed = (end - start).total_seconds() / 86400
        weights = np.ones(len(records))
        if lengths is not None:
            weights = lengths[records]
            there = float(weights.sum())
            whole = abs(there - needed) < 0.5
            problem = "" if whole else f"its records cover {there:g} of {needed:g} days"
        else:
            months = {time[at].month for at in records}
            days = {(time[at].month, time[at].day) for at in records}
            monthly = len(records) == len(part.months) == len(months)
            daily = len(days) == needed and len(records) % int(needed) == 0
            if monthly:
                weights = np.array([float(time[at].daysinmonth) for at in records])
            problem = "" if monthly or daily else f"has {len(records)} records in these months"
        found.append(Season(int(number), records, weights / weights.sum(), problem))
    return found


def _own_seasons(bounds: np.ndarray, calendar: str, part: Part) -> list[Season]:
    """Returns the seasons of records each of which is the mean of these months; none otherwise.

    Of months without bounds cdo writes intervals from the first stamp to the last one, so these
    need only begin and end in the first and the last month.
    """
    found = []
    for at, (start, end) in enumerate(bounds):
        first, after = part.span(start.year, calendar)
        begins = start.month == first.month
        ends = after - timedelta(days=28) <= end <= after + timedelta(days=0.5)
        if not begins or not ends or (len(part.months) == 1 and end - start < timedelta(days=27)):
            return []
        found.append(Season(start.year, np.array([at]), np.ones(1), ""))
    return found


def months_text(months: Sequence[int]) -> str:
    """Returns months in words: "jun-aug"."""
    ends = dict.fromkeys((months[0], months[-1]))
    return "-".join(_NAMES[month - 1] for month in ends)
