"""Axes of a data set whose coordinates are variables of other names than their dimensions'."""

from __future__ import annotations

from typing import Any

import numpy as np

from longseq.weather.data.coords import Kind, kind_of

_AXES = ("time", "latitude", "longitude")


def with_axes(data: Any) -> Any:
    """Returns a data set whose dimensions have the coordinates that lie along them.

    CF ties an axis to its dimension by the name they share, or by auxiliary coordinates, which say
    what they are in their attributes: ``ocean_time(time)``, ``lat(j)``, ``valid_time(time)`` beside
    the times at which forecasts began, ``XTIME(Time)``. Each of these becomes the dimension's
    coordinate where it is the only one of its kind along it; of several that one which the
    variables' attributes ``coordinates`` name. Latitudes and longitudes of every record that do not
    change (WRF's XLAT) become those of the first.

    Args:
        data: an xarray data set, its times undecoded.
    """
    found = _resting(data)
    named = _named(found)
    for dim in map(str, found.dims):
        if dim in found.variables and _kind(found, dim) is not None:
            continue
        along = {
            name: kind
            for name in map(str, found.variables)
            if found.variables[name].dims == (dim,) and (kind := _said(found, name)) in _AXES
        }
        if len(set(along.values())) != 1:  # none, or points, which have places and perhaps times
            continue
        kind = next(iter(along.values()))
        # A kind that another dimension of the same variables has already is not this one's.
        if any(kind in _kinds(found, array.dims, dim) for array in found.data_vars.values()):
            continue
        chosen = list(along) if len(along) == 1 else [name for name in along if name in named]
        if len(chosen) == 1:
            found = found.swap_dims({dim: chosen[0]})
    return found


def no_time(array: Any, data: Any) -> str:
    """Returns why none of a variable's dimensions is time, where one of them looks like it."""
    dims = list(map(str, array.dims))
    if any(dim in data.variables and _kind(data, dim) == "time" for dim in dims):
        return ""
    for dim in dims:
        several = _times_along(data, dim)
        if len(several) > 1:
            return f" ({dim} has {' and '.join(several)}: name one in its attribute coordinates)"
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


def _times_along(data: Any, dim: str) -> list[str]:
    names = map(str, data.variables)
    return [n for n in names if data.variables[n].dims == (dim,) and _said(data, n) == "time"]


def _is_time(data: Any, dim: str) -> bool:
    return bool(_times_along(data, dim)) or kind_of(dim, {}) == "time"


def _kinds(data: Any, dims: tuple[Any, ...], without: str) -> set[Kind | None]:
    """Returns the kinds of the other dimensions of a variable on ``without``."""
    if without not in dims:
        return set()
    return {_kind(data, str(dim)) for dim in dims if dim != without and dim in data.variables}


def _named(data: Any) -> set[str]:
    """Returns all names in attributes ``coordinates``."""
    texts = (
        str(array.attrs.get("coordinates", array.encoding.get("coordinates", "")))
        for array in data.variables.values()
    )
    return {name for text in texts for name in text.split()}


def _resting(data: Any) -> Any:
    """Returns a data set whose latitudes and longitudes on a time and two more dimensions are those
    of the first record, where all are equal."""
    changed = {}
    for name in map(str, data.variables):
        own = data.variables[name]
        if own.ndim != 3 or _kind(data, name) not in ("latitude", "longitude"):
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
