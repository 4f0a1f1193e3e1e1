"""Rotated grids: which axes are rotated, and the latitudes and longitudes of their cells from the
pole where a file lacks them."""

from __future__ import annotations

from typing import Any

import numpy as np

from longseq.weather.data.coords import is_rotated, shortest
from longseq.weather.data.places import named_by, two_dimensional

FROM_POLE = "latitudes and longitudes of the cells are made from the rotated pole"
NO_UNITS = f"{FROM_POLE}; its axes have no units: taken to be in degrees"
_KIND = "rotated_latitude_longitude"
_AXES = ("latitude", "longitude")


def with_places(data: Any) -> Any:
    """Returns a data set whose fields on rotated axes have latitudes and longitudes of their cells.

    They are those of the file, or made from its pole: the variable that the field's attribute
    ``grid_mapping`` names, or, where that attribute or that variable is lost, the only pole of the
    file. A file without either stays as it is.

    Args:
        data: an xarray data set.
    """
    for array in list(data.data_vars.values()):
        rows, columns = (_axis(array, data, kind) for kind in _AXES)
        pole = _pole(array, data)
        if not rows or not columns or pole is None:
            continue
        there = two_dimensional(array, data)
        if any(there.values()):
            continue
        axes = [shortest(data[dim].values) for dim in (rows, columns)]
        if not all(np.isfinite(axis).all() for axis in axes) or np.abs(axes[0]).max() > 90:
            continue
        lost = [name for name in named_by(array) if name not in data.variables]
        told = all(str(data[dim].attrs.get("units", "")).strip() for dim in (rows, columns))
        named = {kind: [n for n in lost if kind[:3] in n.lower()] for kind in _AXES}
        edges = [_edges(data, dim, axis) for dim, axis in zip((rows, columns), axes)]
        centres = unrotate(*np.meshgrid(*axes, indexing="ij"), *pole)
        corners = None
        if edges[0] is not None and edges[1] is not None:
            (south, north), (west, east) = edges[0].T, edges[1].T
            grids = [np.meshgrid(a, b, indexing="ij") for a, b in _around(south, north, west, east)]
            corners = unrotate(*(np.stack(one, -1) for one in zip(*grids)), *pole)
        for number, kind in enumerate(_AXES):
            name = (named[kind] or [kind[:3]])[0]
            if name in data.variables:
                name = f"{name}_{rows}_{columns}"
            unit = "degrees_north" if kind == "latitude" else "degrees_east"
            attrs = {"units": unit, "standard_name": kind}
            attrs["comment"] = FROM_POLE if told else NO_UNITS
            if corners is not None:
                attrs["bounds"] = f"{name}_vertices"
                own = ((rows, columns, "vertices"), corners[number])
                data = data.assign_coords({attrs["bounds"]: own})
            data = data.assign_coords({name: ((rows, columns), centres[number], attrs)})
    return data


def unrotate(
    lat: np.ndarray, lon: np.ndarray, north: float, east: float, turn: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Returns degrees north and east of points of a rotated grid.

    Args:
        lat: grid latitudes in degrees, of any shape.
        lon: grid longitudes likewise.
        north: latitude of the grid's north pole.
        east: its longitude.
        turn: grid longitude of the true north pole.
    """
    phi, lam, tilt = np.deg2rad(lat), np.deg2rad(lon - turn), np.deg2rad(north)
    x, y, z = np.cos(phi) * np.cos(lam), np.cos(phi) * np.sin(lam), np.sin(phi)
    away = x * np.sin(tilt) - z * np.cos(tilt)
    up = x * np.cos(tilt) + z * np.sin(tilt)
    made = np.rad2deg(np.arctan2(y, away)) + east + 180.0
    return np.rad2deg(np.arcsin(np.clip(up, -1, 1))), np.mod(made, 360.0)


def _axis(array: Any, data: Any, kind: str) -> str:
    """Returns the rotated axis of a variable in degrees of a kind; empty if it has not just one."""
    found = [
        dim
        for dim in map(str, array.dims)
        if dim in data.variables
        and is_rotated(dim, dict(data[dim].attrs)) == kind
        and str(data[dim].attrs.get("units", "")).strip().lower().partition("_")[0]
        in ("degrees", "degree", "")
    ]
    return found[0] if len(found) == 1 else ""


def _pole(array: Any, data: Any) -> tuple[float, float, float] | None:
    """Returns latitude and longitude of a variable's pole, and the grid longitude of the true one;
    None if the file does not say."""
    named = str(array.attrs.get("grid_mapping", array.encoding.get("grid_mapping", "")))
    name = named.split(":")[0].strip()
    if name in data.variables:
        poles = [name]
    else:
        poles = [str(n) for n, one in data.variables.items() if _kind(one) == _KIND]
    if len(poles) != 1 or _kind(data.variables[poles[0]]) != _KIND:
        return None
    attrs = data.variables[poles[0]].attrs
    keys = ("grid_north_pole_latitude", "grid_north_pole_longitude", "north_pole_grid_longitude")
    try:
        north, east, turn = (float(attrs.get(k, 0.0 if k is keys[2] else "")) for k in keys)
    except (TypeError, ValueError):
        return None
    return (north, east, turn) if abs(north) <= 90 and np.isfinite([east, turn]).all() else None


def _kind(variable: Any) -> str:
    return str(variable.attrs.get("grid_mapping_name", ""))


def _edges(data: Any, dim: str, axis: np.ndarray) -> np.ndarray | None:
    """Returns the edges (N, 2) of the cells along an axis, from the file or halfway; None for one
    cell without."""
    own = data[dim]
    name = str(own.attrs.get("bounds", own.encoding.get("bounds", "")))
    if name in data.variables and data[name].shape == (len(axis), 2):
        return shortest(data[name].values)
    if len(axis) < 2:
        return None
    inner = (axis[1:] + axis[:-1]) / 2
    ends = [2 * axis[0] - inner[0]], [2 * axis[-1] - inner[-1]]
    edges = np.concatenate([ends[0], inner, ends[1]])
    return np.stack([edges[:-1], edges[1:]], -1)


def _around(
    south: np.ndarray, north: np.ndarray, west: np.ndarray, east: np.ndarray
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns the corners of cells one after the other, anticlockwise."""
    return [(south, west), (south, east), (north, east), (north, west)]
