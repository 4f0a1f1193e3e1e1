"""Axes of a data set whose coordinates are variables of other names than their dimensions'."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from longseq.core.errors import DataError
from longseq.weather.data.attributes import bounds_of
from longseq.weather.data.coords import Kind, kind_of
from longseq.weather.data.places import named_by
from longseq.weather.data.times import decode_time

_AXES = ("time", "latitude", "longitude")


def with_axes(data: Any, variable: str | None = None) -> Any:
    """Returns a data set whose dimensions have the coordinates that lie along them.

    CF ties an axis to its dimension by the name they share, or by auxiliary coordinates, which say
    what they are in their attributes: ``ocean_time(time)``, ``lat(j)``, ``valid_time(time)`` beside
    the times at which forecasts began, ``XTIME(Time)``. Each of these becomes the dimension's
    coordinate where it is the only one of its kind along it; of several that one which the
    attribute ``coordinates`` of the variable names, or of all fields if they agree. It goes before
    a count (0, 1, 2, …) that has the dimension's name. Latitudes and longitudes of every record
    that do not change (WRF's XLAT) become those of the first.

    Args:
        data: an xarray data set, its times undecoded.
        variable: the one that is wanted, by name or standard name; None for all.
    """
    found = _resting(data)
    fields = _fields(found, variable)
    for dim in map(str, found.dims):
        if dim in found.variables and _says(found, dim):
            continue
        along = {
            name: kind
            for name in map(str, found.variables)
            if name != dim
            and found.variables[name].dims == (dim,)
            and (kind := _said(found, name)) in _AXES
        }
        if len(set(along.values())) != 1:  # none, or points, which have places and perhaps times
            continue
        kind = next(iter(along.values()))
        # A kind that another dimension of the same variables has already is not this one's.
        if any(kind in _kinds(found, array.dims, dim) for array in found.data_vars.values()):
            continue
        chosen = _chosen(list(along), [f for f in fields if dim in f.dims], found, str(kind))
        if chosen is not None:
            found = found.drop_vars(dim) if dim in found.variables else found
            found = found.swap_dims({dim: chosen})
    return found


def check_axes(array: Any, data: Any, path: str | Path) -> None:
    """Checks that no coordinate that a variable names says otherwise than its dimension's own.

    A dimension of the time at which forecasts began, or of the end of every step, has a coordinate
    of its name and beside it the one that holds (``valid_time``, ``time_centered``).

    Args:
        array: a variable of the data set.
        data: an xarray data set, its times undecoded.
        path: file, for messages.

    Raises:
        DataError: if one does.
    """
    for name in named_by(array):
        if name not in data.variables or len(data.variables[name].dims) != 1:
            continue
        dim = str(data.variables[name].dims[0])
        kind = _said(data, name)
        if name == dim or dim not in array.dims or dim not in data.variables or kind not in _AXES:
            continue
        if _kind(data, dim) == kind and not _same(data, dim, name, str(kind), path):
            text = f"its coordinates name {name}, and that differs from {dim}, its own dimension's"
            hint = f"drop the one that does not hold: ncks -x -v {dim} in out, or -v {name}"
            raise DataError(text, path=path, record=str(array.name), hint=hint)


def _same(data: Any, dim: str, name: str, kind: str, path: str | Path) -> bool:
    """Returns whether two coordinates along a dimension say the same; of times, whether the second
    ones lie inside the intervals of the first."""
    if kind != "time":
        own, other = (np.asarray(data[n].values, dtype=np.float64) for n in (dim, name))
        gap = np.abs(own - other)
        gap = np.minimum(gap, np.abs(360.0 - gap)) if kind == "longitude" else gap
        return bool(gap.max(initial=0.0) <= 1e-3)
    calendar = {k: v for k, v in data[dim].attrs.items() if k == "calendar"}
    own, other = (
        decode_time(data[n].values, {**calendar, **data[n].attrs}, path, *bounds_of(data, data[n]))
        for n in (dim, name)
    )
    if own.calendar != other.calendar and {own.calendar, other.calendar} != {
        "standard",
        "gregorian",
    }:
        return False
    if own.bounds is not None:
        inside = (own.bounds[:, 0] <= other.dates) & (other.dates <= own.bounds[:, 1])
        return bool(np.all(inside))
    gaps = [abs((one - two).total_seconds()) for one, two in zip(own.dates, other.dates)]
    return max(gaps, default=0.0) < 60.0


def why_none(array: Any, data: Any) -> str:
    """Returns why none of a variable's dimensions is time, where one of them looks like it, or
    which coordinates could be a dimension's."""
    dims = list(map(str, array.dims))
    bare = [dim for dim in dims if dim not in data.variables or _kind(data, dim) is None]
    for dim in bare:
        kinds = [along for kind in _AXES if (along := _along(data, dim, kind))]
        if len(kinds) == 1:  # points have places and perhaps times
            along = kinds[0]
            if len(along) > 1:
                return f" ({dim} has {' and '.join(along)}: name one in its attribute coordinates)"
            if named_by(array):
                return f" ({along[0]} along {dim} is none that its attribute coordinates names)"
    if any(dim in data.variables and _kind(data, dim) == "time" for dim in dims):
        return ""
    for dim in dims:
        if dim not in data.variables:
            continue
        attrs = dict(data.variables[dim].attrs)
        if attrs.get("standard_name") == "forecast_reference_time":
            return f" ({dim} is when forecasts began, not when values hold)"
        if "time" in dim.lower():
            units = str(attrs.get("units", "")).strip()
            what = f"units {units!r}" if units else "no units"
            return f" ({dim} has {what}: 'days since …' is needed)"
    return ""


def _kind(data: Any, name: str) -> Kind | None:
    return kind_of(name, dict(data.variables[name].attrs))


def _said(data: Any, name: str) -> Kind | None:
    """Returns the kind that a variable's attributes say; its name alone makes it no coordinate."""
    return kind_of("", dict(data.variables[name].attrs))


def _along(data: Any, dim: str, kind: str) -> list[str]:
    names = map(str, data.variables)
    return [n for n in names if data.variables[n].dims == (dim,) and _said(data, n) == kind]


def _is_time(data: Any, dim: str) -> bool:
    return bool(_along(data, dim, "time")) or kind_of(dim, {}) == "time"


def _kinds(data: Any, dims: tuple[Any, ...], without: str) -> set[Kind | None]:
    """Returns the kinds of the other dimensions of a variable on ``without``."""
    if without not in dims:
        return set()
    return {_kind(data, str(dim)) for dim in dims if dim != without and dim in data.variables}


def _says(data: Any, dim: str) -> bool:
    """Returns whether a dimension's own coordinate is more than a count that bears its name."""
    if _said(data, dim) is not None or str(data.variables[dim].attrs.get("units", "")).strip():
        return _kind(data, dim) is not None
    if data.variables[dim].dtype.kind not in "iuf":
        return _kind(data, dim) is not None
    values = np.asarray(data.variables[dim].values, dtype=np.float64)
    counts = bool(np.all(np.diff(values) == 1)) and values[:1].tolist() in ([0.0], [1.0])
    return _kind(data, dim) is not None and not counts


def _fields(data: Any, variable: str | None) -> list[Any]:
    """Returns the variable that is wanted, or all that may be fields."""
    wanted = [
        array
        for name, array in data.data_vars.items()
        if variable is not None
        and variable in (name, array.attrs.get("standard_name"), array.attrs.get("GRIB_shortName"))
    ]
    return wanted or [
        array
        for name, array in data.data_vars.items()
        if array.ndim > 2 and array.dtype.kind in "fiu" and _said(data, str(name)) is None
    ]


def _chosen(along: list[str], fields: list[Any], data: Any, kind: str) -> str | None:
    """Returns the one of several coordinates along a dimension that its fields name; None if they
    name none, several, or one that the file lacks."""
    picked = set()
    for field in fields:
        named = named_by(field)
        if own := [name for name in along if name in named]:
            picked.add(own[0] if len(own) == 1 else "")
        elif len(along) > 1 or any(
            name not in data.variables and kind[:3] in name.lower() for name in named
        ):
            picked.add("")
        else:
            picked.add(along[0])
    if not fields and len(along) == 1:
        picked.add(along[0])
    return next(iter(picked)) or None if len(picked) == 1 else None


def _resting(data: Any) -> Any:
    """Returns a data set whose latitudes and longitudes on a time and two more dimensions are those
    of the first record, where all are equal."""
    changed = {}
    for name in map(str, data.variables):
        own = data.variables[name]
        # A field may be named x or y.
        kind = _said(data, name) if name.lower() in ("x", "y") else _kind(data, name)
        if own.ndim != 3 or kind not in ("latitude", "longitude"):
            continue
        if not _is_time(data, str(own.dims[0])):  # the corners of cells
            continue
        first = np.asarray(own[0].values)
        if all(np.array_equal(first, own[n].values, equal_nan=True) for n in range(len(own))):
            changed[name] = (own.dims[1:], first, dict(own.attrs))
    if not changed:
        return data
    rest = data.drop_vars(list(changed))
    return rest.assign_coords(changed)
