"""Coordinates of CF files: found by their attributes, checked, and brought to one convention."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np

from longseq.core.errors import DataError

Kind = Literal["time", "latitude", "longitude", "member"]
_NAMES = {
    "time": ("time", "year"),
    "latitude": ("latitude", "lat", "nav_lat", "y"),
    "longitude": ("longitude", "lon", "nav_lon", "x"),
    "member": ("member", "realization", "realisation", "ensemble", "number", "member_id"),
}
_DEGREES = {
    "latitude": ("degrees_north", "degree_north", "degrees_n", "degree_n", "degreesn", "degreen"),
    "longitude": ("degrees_east", "degree_east", "degrees_e", "degree_e", "degreese", "degreee"),
}
_AXES = {"time": "T", "latitude": "Y", "longitude": "X", "member": "E"}
_DECIMALS = 5
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


def kind_of(name: str, attrs: dict[str, Any]) -> Kind | None:
    """Returns what a coordinate is, by standard name, units, axis, or its own name; None if nothing
    says.

    Args:
        name: of the coordinate variable or dimension.
        attrs: its attributes.
    """
    standard, units = (
        str(attrs.get("standard_name", "")),
        str(attrs.get("units", "")).strip().lower(),
    )
    if standard in ("time", "latitude", "longitude"):
        return standard  # type: ignore[return-value]
    if standard == "realization":
        return "member"
    for kind in ("latitude", "longitude"):
        if units in _DEGREES[kind]:
            return kind
    if " since " in units:
        return "time"
    for kind, axis in _AXES.items():
        if attrs.get("axis") == axis:
            return kind  # type: ignore[return-value]
    for kind, names in _NAMES.items():
        if name.lower() in names:
            return kind  # type: ignore[return-value]
    return None


def decode_time(
    values: np.ndarray, attrs: dict[str, Any], path: str | Path
) -> tuple[np.ndarray, str]:
    """Returns the dates (T) and the calendar of a time coordinate, checked to ascend strictly.

    Integers without units, as ClimateBench has them, are years.

    Args:
        values: of the coordinate.
        attrs: its attributes: units, calendar.
        path: file, for messages.

    Raises:
        DataError: for missing or unknown units or calendars, duplicate or unsorted times.
    """
    import cftime

    units, calendar = (
        str(attrs.get("units", "")).strip(),
        str(attrs.get("calendar", "standard")).lower(),
    )
    if calendar not in CALENDARS:
        known = ", ".join(CALENDARS)
        raise DataError(f"unknown calendar {calendar!r} (known: {known})", path=path, record="time")
    if not len(values):
        raise DataError("has no records", path=path, record="time")
    numbers = (
        np.asarray(values, dtype=np.float64) if np.asarray(values).dtype.kind in "iuf" else None
    )
    if numbers is None or not np.isfinite(numbers).all():
        raise DataError("times are not all numbers", path=path, record="time")
    if units.lower() in ("", "year", "years", "1", "common_year"):
        whole = (
            np.all(numbers == np.round(numbers)) and numbers.min() >= 1 and numbers.max() <= 9999
        )
        if not whole:
            hint = 'write units such as "days since 1850-01-01"'
            raise DataError(
                "has no units, and its values are no years", path=path, record="time", hint=hint
            )
        calendar = str(attrs.get("calendar", "noleap")).lower()
        dates = np.array(
            [cftime.datetime(int(n), 7, 1, calendar=calendar) for n in numbers], dtype=object
        )
    else:
        try:
            dates = np.atleast_1d(
                cftime.num2date(numbers, units, calendar, only_use_cftime_datetimes=True)
            )
        except (ValueError, OverflowError, TypeError) as error:
            raise DataError(
                f"units {units!r} cannot be read: {error}", path=path, record="time"
            ) from error
    steps = np.diff(numbers)
    if np.any(steps <= 0):
        where = int(np.flatnonzero(steps <= 0)[0]) + 1
        what = (
            "occurs twice"
            if steps[where - 1] == 0 or numbers[where] in numbers[:where]
            else "is earlier"
        )
        after = "" if what == "occurs twice" else f" than {dates[where - 1]} before it"
        raise DataError(
            f"{dates[where]} {what}{after}: times must ascend strictly",
            path=path,
            record=f"time {where}",
            hint="sort the records and drop duplicates",
        )
    return dates, calendar


def check_latitude(
    values: np.ndarray, attrs: dict[str, Any], path: str | Path
) -> tuple[np.ndarray, bool]:
    """Returns latitudes in degrees north, ascending, and whether they were turned round.

    Args:
        values: (Y).
        attrs: of the coordinate.
        path: file, for messages.

    Raises:
        DataError: for wrong units, values outside [-90, 90], or no monotonic order.
    """
    lat = _degrees(values, attrs, path, "latitude")
    if np.abs(lat).max() > 90:
        raise DataError(
            f"{lat[np.abs(lat).argmax()]:g} lies outside [-90, 90]", path=path, record="latitude"
        )
    steps = np.diff(lat)
    if not (np.all(steps > 0) or np.all(steps < 0)):
        raise DataError("does not ascend or descend strictly", path=path, record="latitude")
    turned = len(lat) > 1 and bool(steps[0] < 0)
    return (lat[::-1].copy() if turned else lat), turned


def check_longitude(
    values: np.ndarray, attrs: dict[str, Any], path: str | Path
) -> tuple[np.ndarray, np.ndarray]:
    """Returns longitudes in degrees east, ascending in [0, 360), and the order of columns that
    gives them.

    Args:
        values: (X), in any range within [-360, 720].
        attrs: of the coordinate.
        path: file, for messages.

    Raises:
        DataError: for wrong units, values out of range, or a meridian that occurs twice.
    """
    lon = _degrees(values, attrs, path, "longitude")
    if lon.min() < -360 or lon.max() > 720:
        raise DataError("lies outside [-360, 720]", path=path, record="longitude")
    turned = np.round(np.mod(np.round(lon, _DECIMALS), 360.0), _DECIMALS)
    turned[turned >= 360.0] = 0.0
    order = np.argsort(turned, kind="stable")
    turned = turned[order]
    twice = np.flatnonzero(np.diff(turned) == 0)
    if len(twice):
        text = f"the meridian {turned[twice[0]]:g} occurs twice"
        raise DataError(text, path=path, record="longitude", hint="drop the repeated column")
    return turned, order


def _degrees(values: np.ndarray, attrs: dict[str, Any], path: str | Path, kind: str) -> np.ndarray:
    units = str(attrs.get("units", "")).strip()
    plain = ("degrees", "degree")  # tolerated where the standard name says which
    named = attrs.get("standard_name") == kind
    if units.lower() not in (*_DEGREES[kind], *(plain if named else ())):
        found = f"units {units!r}" if units else "no units"
        raise DataError(f"has {found}, {_DEGREES[kind][0]} is needed", path=path, record=kind)
    numbers = np.asarray(values)
    if numbers.dtype == np.float32:
        # By way of the shortest text: 359.9, which float32 holds as 359.899993896484, is that of
        # -0.1 + 360.
        numbers = numbers.astype(str)
    numbers = numbers.astype(np.float64)
    if numbers.ndim != 1 or not len(numbers):
        raise DataError("must be one-dimensional (a regular grid)", path=path, record=kind)
    if not np.isfinite(numbers).all():
        raise DataError("has missing values", path=path, record=kind)
    return np.round(numbers, _DECIMALS)
