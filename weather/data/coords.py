"""Coordinates of CF files: found by their attributes, checked, and brought to one convention."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np

from longseq.core.errors import DataError
from longseq.weather.data.grid import Grid, make_grid

Kind = Literal["time", "latitude", "longitude", "member"]
_NAMES = {
    "time": ("time", "year"),
    "latitude": ("latitude", "lat", "nav_lat", "y"),
    "longitude": ("longitude", "lon", "nav_lon", "x"),
    "member": (
        *("member", "members", "member_id", "realization", "realisation", "ensemble", "number"),
        *("ens", "mem", "ensemble_member", "realization_index", "nmember", "nens"),
    ),
}
# By these names a coordinate without any units is taken to be in degrees, as ClimateBench's are.
_PLAIN_NAMES = ("latitude", "lat", "longitude", "lon")
DEGREES = {
    "latitude": ("degrees_north", "degree_north", "degrees_n", "degree_n", "degreesn", "degreen"),
    "longitude": ("degrees_east", "degree_east", "degrees_e", "degree_e", "degreese", "degreee"),
}
_AXES = {"time": "T", "latitude": "Y", "longitude": "X", "member": "E"}
_PROJECTED = (
    "grid_latitude",
    "grid_longitude",
    "projection_x_coordinate",
    "projection_y_coordinate",
)
# Times at which no value holds: when a forecast began, and how long it ran.
_OTHER_TIMES = ("forecast_reference_time", "forecast_period")
# Axes of a rotated grid by name: whatever their units say, they are no latitudes and longitudes.
_ROTATED = {
    "latitude": ("rlat", "rotlat", "rot_lat", "rotated_lat", "rotated_latitude", "grid_latitude"),
    "longitude": (
        "rlon",
        "rotlon",
        "rot_lon",
        "rotated_lon",
        "rotated_longitude",
        "grid_longitude",
    ),
}
_DECIMALS = 5


def kind_of(name: str, attrs: dict[str, Any]) -> Kind | None:
    """Returns what a coordinate is, by standard name, units, axis, or its own name; None if nothing
    says.

    Args:
        name: of the coordinate variable or dimension.
        attrs: its attributes.
    """
    standard = str(attrs.get("standard_name", ""))
    units = str(attrs.get("units", "")).strip().lower()
    if is_rotated(name, attrs):
        return None
    if standard in ("time", "latitude", "longitude"):
        return standard  # type: ignore[return-value]
    if standard == "realization":
        return "member"
    if standard in (*_PROJECTED, *_OTHER_TIMES):
        return None
    for kind in ("latitude", "longitude"):
        if units in DEGREES[kind]:
            return kind  # type: ignore[return-value]
    if " since " in units or " as %y" in units:
        return "time"
    for kind, axis in _AXES.items():
        if attrs.get("axis") == axis:
            return kind  # type: ignore[return-value]
    for kind, names in _NAMES.items():
        if name.lower() in names:
            return kind  # type: ignore[return-value]
    return None


def is_rotated(name: str, attrs: dict[str, Any]) -> str:
    """Returns "latitude" or "longitude" for an axis of a rotated grid, by standard name or its own
    name; empty for any other.

    Args:
        name: of the coordinate variable or dimension.
        attrs: its attributes.
    """
    standard = str(attrs.get("standard_name", ""))
    for kind, names in _ROTATED.items():
        if standard == f"grid_{kind}" or name.lower() in names:
            return kind
    return ""


def read_grid(
    data: Any, latitude: str, longitude: str, path: str | Path
) -> tuple[Grid, bool, np.ndarray, list[str]]:
    """Returns the grid of two coordinates, whether rows were turned, the order of columns, and what
    was changed.

    Args:
        data: an xarray data set.
        latitude: name of the coordinate.
        longitude: likewise.
        path: file, for messages.

    Raises:
        DataError: for wrong units, values, order or bounds.
    """
    attrs = [dict(data[name].attrs) for name in (latitude, longitude)]
    notes = [
        f"{name} has no units: taken to be in degrees"
        for name, own in zip((latitude, longitude), attrs)
        if not str(own.get("units", "")).strip()
    ]
    lat, flipped = check_latitude(data[latitude].values, attrs[0], path, latitude)
    raw = check_longitude(data[longitude].values, attrs[1], path, longitude)
    bounds = [_bounds(data, name, own) for name, own in zip((latitude, longitude), attrs)]
    if flipped and bounds[0] is not None:
        bounds[0] = bounds[0][::-1]
    grid, order = make_grid(lat, raw, bounds[0], bounds[1], path)
    if flipped:
        notes.append("latitude turned to run from south to north")
    if not np.allclose(raw, grid.lon):
        where = "in [0, 360)" if grid.periodic else "from its western edge"
        notes.append(f"longitude turned to ascend {where}")
    return grid, flipped, order, notes


def _bounds(data: Any, name: str, attrs: dict[str, Any]) -> np.ndarray | None:
    """Returns the bounds (N, 2) that an attribute names, if the file has them."""
    bounds = str(attrs.get("bounds", ""))
    if bounds not in data.variables or data[bounds].shape != (data.sizes[name], 2):
        return None
    return shortest(data[bounds].values)


def check_latitude(
    values: np.ndarray, attrs: dict[str, Any], path: str | Path, name: str = "latitude"
) -> tuple[np.ndarray, bool]:
    """Returns latitudes in degrees north, ascending, and whether they were turned round.

    Args:
        values: (Y).
        attrs: of the coordinate.
        path: file, for messages.
        name: of the coordinate.

    Raises:
        DataError: for wrong units, values outside [-90, 90], or no monotonic order.
    """
    lat = _degrees(values, attrs, path, "latitude", name)
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
    values: np.ndarray, attrs: dict[str, Any], path: str | Path, name: str = "longitude"
) -> np.ndarray:
    """Returns longitudes in degrees east as the file has them, rounded to 1e-5.

    Args:
        values: (X), in any range within [-360, 720].
        attrs: of the coordinate.
        path: file, for messages.
        name: of the coordinate.

    Raises:
        DataError: for wrong units, values out of range, or a meridian that occurs twice.
    """
    lon = _degrees(values, attrs, path, "longitude", name)
    if lon.min() < -360 or lon.max() > 720:
        raise DataError("lies outside [-360, 720]", path=path, record="longitude")
    turned = np.sort(np.round(np.mod(lon, 360.0), _DECIMALS) % 360.0)
    twice = np.flatnonzero(np.diff(turned) == 0)
    if len(twice):
        text = f"the meridian {turned[twice[0]]:g} occurs twice"
        raise DataError(text, path=path, record="longitude", hint="drop the repeated column")
    return lon


def _degrees(
    values: np.ndarray, attrs: dict[str, Any], path: str | Path, kind: str, name: str
) -> np.ndarray:
    units = str(attrs.get("units", "")).strip()
    # "degrees" is tolerated where the standard name or the name says which.
    named = attrs.get("standard_name") == kind or name.lower() in _PLAIN_NAMES
    plain = ("degrees", "degree", "") if named else ()
    if units.lower() not in (*DEGREES[kind], *plain):
        found = f"units {units!r}" if units else "no units"
        raise DataError(f"has {found}, {DEGREES[kind][0]} is needed", path=path, record=kind)
    numbers = shortest(values)
    if numbers.ndim != 1 or not numbers.size:
        raise DataError("must be one-dimensional (a regular grid)", path=path, record=kind)
    if not np.isfinite(numbers).all():
        raise DataError("has missing values", path=path, record=kind)
    return np.round(numbers, _DECIMALS)


def shortest(values: np.ndarray) -> np.ndarray:
    """Returns float64; float32 by way of its shortest text: 359.9, which float32 holds as
    359.899993896484, is that of -0.1 + 360."""
    numbers = np.asarray(values)
    if numbers.dtype == np.float32:
        numbers = numbers.astype(str)
    return numbers.astype(np.float64)
