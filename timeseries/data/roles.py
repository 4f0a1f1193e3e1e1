"""Roles of a frame's columns: series' names, times, values, covariates; said or by usual names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import pandas as pd

from longseq.core.errors import ConfigError, did_you_mean
from longseq.timeseries.data.columns import holds_times
from longseq.timeseries.data.source import Source, say

TIME_NAMES = ("ds", "date", "datetime", "timestamp", "time", "datum", "zeit")
_CLOCK_NAMES = ("time", "zeit", "uhrzeit", "hour", "stunde")
ID_NAMES = ("unique_id", "item_id", "series_id")
TARGET_NAMES = ("y", "target")
Missing = Literal["ffill", "error"]


@dataclass(frozen=True)
class Roles:
    """What the columns of a frame are, and how its times are read; None: by the usual names.

    Args:
        id: column with the name of the series, of a long frame.
        time: column with the times.
        target: column with the values, of a long frame; or the one series to take of a wide one.
        zone: IANA name of the clock of the times, for example "Europe/Berlin".
        resample: step to average the values over, for example "1min", for times on no regular step.
        missing: "ffill": values that are missing are never a target, and contexts carry the last
            value forward; "error": they are refused.
        future: columns that are known for the future too: promotions, prices, the forecast weather.
        past: columns that are known up to the cutoff only.
        static: columns with one value a series, of a long frame.
        holidays: country whose public holidays are a future covariate: "DE", or "DE-BY".
        date_order: of dates like 01/02/24: "dmy", "mdy" or "ymd"; of whole numbers: "ymd" (stamps
            like 2024010112), "epoch" (time since 1970) or "number"; None: as the column tells.

    Raises:
        ConfigError: if ``missing`` is none of its two words.
    """

    id: str | None = None
    time: str | None = None
    target: str | None = None
    zone: str | None = None
    resample: str | None = None
    missing: Missing = "ffill"
    future: tuple[str, ...] = ()
    past: tuple[str, ...] = ()
    static: tuple[str, ...] = ()
    holidays: str | None = None
    date_order: str | None = None

    def __post_init__(self) -> None:
        # A word that is none of these would be taken for "ffill" in silence.
        if self.missing not in get_args(Missing):
            raise ConfigError(f"missing is {' or '.join(get_args(Missing))}, got {self.missing!r}")

    @property
    def covariates(self) -> tuple[str, ...]:
        """Columns of all covariates."""
        return (*self.future, *self.past, *self.static)


def names_of(columns: str | Sequence[str]) -> tuple[str, ...]:
    """Returns names of columns, of which one may stand alone."""
    return (columns,) if isinstance(columns, str) else tuple(columns)


def with_index(frame: pd.DataFrame, told: Roles, where: Source) -> pd.DataFrame:
    """Returns a frame with what its index holds in columns: times, or levels named as roles are."""
    if isinstance(frame.index, pd.DatetimeIndex | pd.PeriodIndex):
        return _with_times(frame, told, where)
    usual = (*ID_NAMES, *TIME_NAMES, told.id, told.time)
    columns, names = set(map(str, frame.columns)), frame.index.names
    twice = [i for i, name in enumerate(names) if str(name) in columns]
    rest = [name for i, name in enumerate(names) if i not in twice and name is not None]
    if twice:  # set_index(…, drop=False)
        frame = frame.reset_index(level=twice, drop=True)
    return frame.reset_index(drop=not any(str(n).lower() in usual or n in usual for n in rest))


def _with_times(frame: pd.DataFrame, told: Roles, where: Source) -> pd.DataFrame:
    """Returns a frame whose index holds times with them in a column, which has a name that tells
    it; without them where a column has them already."""
    own, usual = frame.index.name, (*TIME_NAMES,) if told.time is None else (told.time,)
    fold = str.lower if told.time is None else str
    named = next((name for name in map(str, frame.columns) if fold(name) in usual), None)
    if named is not None:
        where.notes.append(f"the index is not used: the column {named!r} has the times")
        return frame.reset_index(drop=True)
    if told.time is None and fold(str(own)) not in usual:
        own = None  # an index of times tells by itself what it is
    return frame.reset_index(names=[TIME_NAMES[0] if own is None else own])


def find_roles(
    frame: pd.DataFrame, told: Roles, where: Source
) -> tuple[str | None, str | None, str | None]:
    """Returns the columns of series' names, times and values; the first is None for a wide frame.

    Args:
        frame: of which only the columns are read.
        told: roles that are said; the others follow from the usual names.
        where: the frame.

    Raises:
        DataError: for a column that is not there, a long frame without values or times, or a frame
            without times.
    """
    for name in (told.id, told.time, told.target):
        if name is not None and name not in frame.columns:
            raise where.error(f"has no column {name!r}; {did_you_mean(name, frame.columns)}")
    lower = {name.lower(): name for name in reversed(frame.columns)}

    def find(given: str | None, usual: tuple[str, ...]) -> str | None:
        return given or next((lower[name] for name in usual if name in lower), None)

    id_, target = find(told.id, ID_NAMES), find(told.target, TARGET_NAMES)
    time = find(told.time, TIME_NAMES)
    hours = next((lower[name] for name in _CLOCK_NAMES if name in lower), None)
    if told.time is None and None not in (time, hours) and hours != time:
        assert time is not None and hours is not None
        first = frame[hours].dropna().astype(str).head(20)
        if len(first) and first.str.fullmatch(r"\s*\d{1,2}:\d{2}(:\d{2}(\.\d+)?)?\s*").all():
            raise where.error(
                f"{time!r} holds days and {hours!r} times of the day, like {first.iloc[0]}",
                hint="join both in one column: 2024-12-31 10:15",
            )
    if where.first_line == 1 and told.time is None:
        return None, None, told.target
    if id_ is not None and target is None:
        wanted = "y" if id_ == "unique_id" else "target"
        raise where.error(
            f"looks like a long frame (it has {id_!r}) but has no column {wanted!r}",
            hint=f"name the column of the values: {say('target', 'NAME')}",
        )
    if time is None:
        looks = next((name for name in frame.columns if holds_times(frame[name])), None)
        if looks == "Unnamed: 0":  # the index of a frame of pandas, written without a name
            return id_, looks, target
        seems = "" if looks is None else f" ({looks!r} looks like it)"
        raise where.error(
            f"has no time column among {', '.join(frame.columns[:5])}",
            hint=f"name it: {say('time', looks or 'NAME')}{seems}; or call it one of "
            f"{', '.join(TIME_NAMES[:5])}",
        )
    return id_, time, target
