"""Which latitudes and longitudes of a file are a variable's own: its axes, or two-dimensional."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from longseq.core.errors import DataError
from longseq.weather.data.coords import DEGREES, is_rotated, kind_of

# By these parts of its name a map projection is told that the file has lost.
_PROJECTIONS = ("rotat", "pole", "polar", "lambert", "mercator", "stereo", "projection", "albers")
_STEMS = {"latitude": r"latitude|lat|gphi", "longitude": r"longitude|long|lon|glam"}
# What names call the points of a staggered grid.
_POINTS = {*"tuvwfchqpsmne", "rho", "psi", "cu", "cv", "bu"}


def curvilinear_of(variable: Any, data: Any) -> tuple[str, str] | None:
    """Returns the names of the two-dimensional latitudes and longitudes of a variable; None if it
    has none, or if those of its dimensions say the same."""
    named = named_by(variable)
    found = _places(variable, data, named)
    if found is None:
        return None
    axes = {_degrees_of(str(dim), data) for dim in variable.dims}
    regular = {"latitude", "longitude"} <= axes and not mapping_of(variable, data)
    # The nominal axes of an ocean model are of its regular part; the file says which to take.
    own = set(found) <= set(named) and _apart(variable, data, found)
    return None if regular and not own else found


def named_by(variable: Any) -> list[str]:
    """Returns the names in a variable's attribute ``coordinates``."""
    return str(variable.attrs.get("coordinates", variable.encoding.get("coordinates", ""))).split()


def two_dimensional(variable: Any, data: Any) -> dict[str, list[str]]:
    """Returns the two-dimensional latitudes and longitudes on a variable's dimensions, by kind."""
    found: dict[str, list[str]] = {"latitude": [], "longitude": []}
    for name in map(str, data.variables):
        own = data.variables[name]
        if own.ndim != 2 or not set(own.dims) <= set(variable.dims):
            continue
        attrs = dict(own.attrs)
        # A name of rotated axes says nothing of what is two-dimensional.
        kind = kind_of("" if is_rotated(name, {}) else name, attrs)
        moving = any(
            kind_of(str(dim), dict(data[dim].attrs) if dim in data.variables else {}) == "time"
            for dim in own.dims
        )
        if kind in found and not moving:
            found[kind].append(name)
    return found


def _places(variable: Any, data: Any, named: list[str]) -> tuple[str, str] | None:
    """Returns two-dimensional latitudes and longitudes, those that the variable names first."""
    there = two_dimensional(variable, data)
    chosen = [
        min(names, key=lambda name: name not in named, default="") for names in there.values()
    ]
    if not all(chosen) or data[chosen[0]].dims != data[chosen[1]].dims:
        return None
    return chosen[0], chosen[1]


def _apart(variable: Any, data: Any, places: tuple[str, str]) -> bool:
    """Returns whether two-dimensional places differ from the variable's own axes."""
    for dim in map(str, variable.dims):
        kind = _degrees_of(dim, data)
        if kind is None:
            continue
        field = data[places[0] if kind == "latitude" else places[1]]
        gap = np.asarray(field.values - data[dim].broadcast_like(field).transpose(*field.dims))
        if kind == "longitude":
            gap = np.mod(gap + 180.0, 360.0) - 180.0
        if not np.abs(gap).max() <= 1e-3:  # missing ones are apart
            return True
    return False


def check_places(array: Any, data: Any, path: str | Path) -> None:
    """Checks that a variable says which of several latitudes and longitudes are its own.

    Raises:
        DataError: if it does not, and they differ.
    """
    named, there = named_by(array), two_dimensional(array, data)
    places = _places(array, data, named)
    said = {"latitude", "longitude"} <= {
        _degrees_of(name, data) for name in named if name in array.dims
    }
    hint = f"name the right ones: ncatted -a coordinates,{array.name},o,c,'LAT LON' in"
    if places is None or said:
        return
    if set(places) <= set(named):
        _check_one(array, data, named, there, path, hint)
        return
    lost = [name for name in named if name not in data.variables and _geographic(name)]
    if curvilinear_of(array, data) is not None and lost:
        text = f"names {' and '.join(lost)} as its coordinates, which the file lacks"
        hint = "add them from the grid's file: " + f"ncks -A -v {','.join(lost)} grid.nc in"
        raise DataError(text, path=path, record=str(array.name), hint=hint)
    several = [name for names in there.values() if len(names) > 1 for name in names]
    if curvilinear_of(array, data) is not None and several:
        text = f"does not say which of {', '.join(several)} are its own"
        raise DataError(text, path=path, record=str(array.name), hint=hint)
    if curvilinear_of(array, data) is None and _apart(array, data, places):
        text = f"{' and '.join(places)} differ from the latitudes and longitudes of its axes"
        raise DataError(text, path=path, record=str(array.name), hint=hint)


def _check_one(
    array: Any,
    data: Any,
    named: list[str],
    there: dict[str, list[str]],
    path: str | Path,
    hint: str,
) -> None:
    """Checks that a variable does not name several latitudes or longitudes that differ."""
    for kind, names in there.items():
        own = [name for name in named if name in names]
        first = np.asarray(data[own[0]].values)
        for name in own[1:]:
            other = data[name].transpose(*data[own[0]].dims)
            if not np.allclose(first, other.values, rtol=0.0, atol=1e-3, equal_nan=True):
                text = f"names {' and '.join(own)} as its coordinates, which are different {kind}s"
                raise DataError(text, path=path, record=str(array.name), hint=hint)
    lat, lon = (next(name for name in named if name in names) for names in there.values())
    if _mixed(lat, lon, there) and not _on_faces(array):
        text = f"names {lat} and {lon} as its coordinates, which are of different points"
        raise DataError(text, path=path, record=str(array.name), hint=hint)


def _mixed(lat: str, lon: str, there: dict[str, list[str]]) -> bool:
    """Returns whether a latitude and a longitude are those of different points of a staggered grid
    by their names, as ``TLAT`` and ``ULONG`` are."""
    north, east = _point(lat, "latitude"), _point(lon, "longitude")
    if north == east or north is None or east is None:
        return False
    # Names that differ for another reason (LATIXY, LONGXY) have no other partner.
    return {north, east} <= _POINTS or any(
        point in [_point(name, kind) for name in there[kind]]
        for point, kind in ((east, "latitude"), (north, "longitude"))
    )


def _point(name: str, kind: str) -> str | None:
    """Returns what a name says beside the word for its kind; None if that is not in it."""
    rest, found = re.subn(_STEMS[kind], "", name.lower(), count=1)
    return re.sub("[^a-z0-9]", "", rest) if found else None


def _on_faces(array: Any) -> bool:
    """Returns whether a variable of POP says that it is on faces of cells, whose longitudes are
    those of the one kind of points and latitudes those of the other."""
    return str(array.attrs.get("grid_loc", ""))[1:3] in ("12", "21")


def _geographic(name: str) -> bool:
    return any(part in name.lower() for part in ("lat", "lon"))


def _degrees_of(dim: str, data: Any) -> str | None:
    """Returns "latitude" or "longitude" for a coordinate that says so in its units."""
    if dim not in data.variables:
        return None
    attrs = dict(data.variables[dim].attrs)
    kind = kind_of(dim, attrs)
    units = str(attrs.get("units", "")).strip().lower()
    return kind if kind is not None and units in DEGREES.get(kind, ()) else None


def mapping_of(array: Any, data: Any) -> str:
    """Returns the name of a variable's map projection; empty for latitudes and longitudes. Of one
    that the variable names and the file lacks, the name alone tells."""
    name = str(array.attrs.get("grid_mapping", array.encoding.get("grid_mapping", "")))
    name = name.split(":")[0].strip()
    found = data.variables.get(name)
    if found is None:
        return name if any(part in name.lower() for part in _PROJECTIONS) else ""
    return str(found.attrs["grid_mapping_name"]) if is_projection(data, name) else ""


def is_projection(data: Any, name: str) -> bool:
    """Returns whether a variable describes a map projection, latitudes and longitudes apart."""
    kind = str(data.variables[name].attrs.get("grid_mapping_name", ""))
    return kind not in ("", "latitude_longitude")
