"""Curvilinear grids: cells with two-dimensional latitudes and longitudes, and their corners."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from longseq.core.errors import DataError
from longseq.weather.data.coords import DEGREES
from longseq.weather.data.grid import Grid, Weighting
from longseq.weather.data.rotated import FROM_POLE, NO_UNITS

# Centres nearer than this, on the unit sphere, are one cell that a halo repeats (6 m).
_SAME = 1e-6
# A halo repeats a cell at a corner of the grid this often at most.
_HALO = 4


@dataclass(frozen=True)
class CurvilinearGrid(Grid):
    """A grid of rows and columns that are no parallels and meridians, in the order of the file.

    Args:
        lat: centres, degrees north (Y, X).
        lon: centres, degrees east in [0, 360) (Y, X).
        lat_bounds: corners of the cells in order round them (Y, X, V), V ≥ 3.
        lon_bounds: likewise (Y, X, V).
        areas: of the cells (Y, X), as the file has them; None to take them from the corners.
    """

    areas: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return self.lat.shape[0], self.lat.shape[1]

    @property
    def periodic(self) -> bool:
        return False

    @property
    def global_(self) -> bool:
        return bool(abs(float(self.cell_areas().sum()) / (4 * np.pi) - 1) < 0.02)

    def cell_areas(self) -> np.ndarray:
        """Returns the areas of the polygons between great circles on the unit sphere (Y, X); a cell
        that occurs again, as in the halo of an ocean model, has none."""
        points = sphere(self.lat_bounds, self.lon_bounds)
        found = np.zeros(self.shape)
        first = points[..., 0, :]
        for corner in range(1, points.shape[-2] - 1):
            found += _triangle(first, points[..., corner, :], points[..., corner + 1, :])
        return np.where(self.repeated(), 0.0, np.abs(found))

    def repeated(self) -> np.ndarray:
        """Returns which cells lie where an earlier one lies (Y, X), bool."""
        keys = np.round(sphere(self.lat, self.lon).reshape(-1, 3) / _SAME).astype(np.int64)
        _, first = np.unique(keys, axis=0, return_index=True)
        again = np.ones(len(keys), dtype=bool)
        again[first] = False
        return again.reshape(self.shape)

    def weights(self, kind: Weighting = "area", mask: np.ndarray | None = None) -> np.ndarray:
        """Returns the cells' areas (Y, X), summing to one.

        Args:
            kind: "area"; cosines are of regular grids.
            mask: bool (Y, X), cells that count; None for all.

        Raises:
            DataError: for another kind, and if no cell counts.
        """
        if kind != "area":
            raise DataError("weights by the cosine of the latitude need a regular grid")
        made = self.cell_areas() if self.areas is None else self.areas
        made = np.where(self.repeated(), 0.0, made)
        if mask is not None:
            made = np.where(mask, made, 0.0)
        if not made.sum() > 0:
            raise DataError("no grid cell holds values")
        return made / made.sum()

    def outlines(self) -> np.ndarray:
        """Returns the cells' corners for pictures (Y, X, V, 2), degrees east and north, every cell
        in one piece about its centre, and all centres within one turn that begins in the widest
        gap between them."""
        order = np.sort(np.unique(np.round(self.lon, 3)))
        gaps = np.diff(order, append=order[0] + 360.0)
        west = order[(int(np.argmax(gaps)) + 1) % len(order)] - 1e-3
        centre = west + np.mod(self.lon - west, 360.0)
        if centre.min() >= 180.0:
            centre = centre - 360.0
        turn = np.mod(self.lon_bounds - self.lon[..., None] + 180.0, 360.0) - 180.0
        return np.stack([centre[..., None] + turn, self.lat_bounds], -1)

    def edges(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the outermost edges in degrees north (2) and east (2)."""
        corners = self.outlines()
        low, high = corners.min((0, 1, 2)), corners.max((0, 1, 2))
        # A cell over a pole goes round the globe.
        plain = corners[np.ptp(corners[..., 0], axis=-1) < 90]
        if plain.size:
            low[0], high[0] = plain[..., 0].min(), plain[..., 0].max()
        return np.array([low[1], high[1]]), np.array([low[0], high[0]])

    def same(self, other: Grid, tolerance: float = 1e-4) -> bool:
        """Returns whether another grid has the same centres, to 1e-4 degrees of a great circle."""
        if not isinstance(other, CurvilinearGrid) or self.shape != other.shape:
            return False
        apart = np.linalg.norm(sphere(self.lat, self.lon) - sphere(other.lat, other.lon), axis=-1)
        return bool(apart.max() <= np.deg2rad(tolerance))

    def facts(self) -> dict[str, Any]:
        areas = None if self.areas is None else self.areas.tolist()
        return {**super().facts(), "areas": areas}

    def __str__(self) -> str:
        rows, columns = self.shape
        return (
            f"{rows} × {columns} curvilinear cells from {self.lat[0, 0]:g}°N {self.lon[0, 0]:g}°E"
        )


def sphere(lat: np.ndarray, lon: np.ndarray) -> np.ndarray:
    """Returns points on the unit sphere (…, 3) of degrees north and east (…)."""
    phi, lam = np.deg2rad(lat), np.deg2rad(lon)
    return np.stack([np.cos(phi) * np.cos(lam), np.cos(phi) * np.sin(lam), np.sin(phi)], -1)


def _triangle(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Returns the signed solid angles of spherical triangles (Van Oosterom and Strackee 1983,
    https://doi.org/10.1109/TBME.1983.325207)."""
    # Differences keep the digits of small triangles.
    volume = np.einsum("...i,...i->...", a, np.cross(b - a, c - a))
    dot = [np.einsum("...i,...i->...", x, y) for x, y in ((a, b), (b, c), (c, a))]
    return 2 * np.arctan2(volume, 1 + dot[0] + dot[1] + dot[2])


def _twisted(lat: np.ndarray, lon: np.ndarray, north: np.ndarray, east: np.ndarray) -> bool:
    """Returns whether the corners of more than a hundredth of the cells cross each other, or lie
    elsewhere than their cells."""
    points, centre = sphere(north, east), sphere(lat, lon)
    after = np.roll(points, -1, axis=-2)
    parts = _triangle(np.broadcast_to(centre[..., None, :], points.shape), points, after)
    # Round a convex cell all triangles with its centre have one sign.
    whole, sizes = np.abs(parts.sum(-1)), np.abs(parts).sum(-1)
    return bool((whole < 0.9 * sizes).mean() > 0.01)


def _corners(lat: np.ndarray, lon: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns corners (Y, X, 4) halfway between the centres; outer ones as far out as inner ones
    are in."""
    points = np.pad(sphere(lat, lon), ((1, 1), (1, 1), (0, 0)), mode="reflect", reflect_type="odd")
    middle = points[:-1, :-1] + points[1:, :-1] + points[:-1, 1:] + points[1:, 1:]
    middle /= np.linalg.norm(middle, axis=-1, keepdims=True)
    around = np.stack([middle[:-1, :-1], middle[:-1, 1:], middle[1:, 1:], middle[1:, :-1]], -2)
    north = np.rad2deg(np.arcsin(np.clip(around[..., 2], -1, 1)))
    return north, np.rad2deg(np.arctan2(around[..., 1], around[..., 0]))


def read_curvilinear(
    data: Any, array: Any, names: tuple[str, str], dims: tuple[str, str], path: str | Path
) -> tuple[CurvilinearGrid, list[str]]:
    """Returns the grid of two two-dimensional coordinates and what was taken for granted.

    Args:
        data: an xarray data set.
        array: the variable on it, whose ``cell_measures`` may name the cells' areas.
        names: of the latitudes and the longitudes.
        dims: rows and columns.
        path: file, for messages.

    Raises:
        DataError: for missing values, values out of range, and rows or columns of one cell without
            corners.
    """
    lat, lon = (np.asarray(data[name].transpose(*dims).values, dtype=np.float64) for name in names)
    for kind, name in zip(("latitude", "longitude"), names):
        units = str(data[name].attrs.get("units", "")).strip()
        if units.lower() not in (*DEGREES[kind], "degrees", "degree", ""):
            text = f"has units {units!r}, {DEGREES[kind][0]} is needed"
            raise DataError(text, path=path, record=kind)
    for kind, values, most in (("latitude", lat, 90.0 + 1e-6), ("longitude", lon, 720.0)):
        if not np.isfinite(values).all():
            hint = _from_the_grid_file(names)
            raise DataError("has missing values", path=path, record=kind, hint=hint)
        if np.abs(values).max() > most:
            text = f"values from {values.min():g} to {values.max():g} are no degrees"
            raise DataError(text, path=path, record=kind)
    notes = []
    corners = [_bounds(data, name, dims) for name in names]
    if corners[0] is None or corners[1] is None:
        _check_stacked(lat, lon, names, path)
        if min(lat.shape) < 2:
            text = f"its cells ({lat.shape[0]} × {lat.shape[1]}) have no bounds"
            raise DataError(text, path=path, record="latitude")
        corners = list(_corners(lat, lon))
        notes.append("cells without corners: these lie halfway between the centres")
    elif _twisted(lat, lon, corners[0], corners[1]):
        text = "its bounds do not go round the centres of their cells"
        raise DataError(text, path=path, record="latitude", hint="correct or drop them")
    comment = data[names[0]].attrs.get("comment")
    if comment in (FROM_POLE, NO_UNITS):
        notes.append(comment)
    areas = _areas(data, array, dims)
    if areas is not None:
        notes.append("areas of the cells are the file's own")
    made = CurvilinearGrid(np.clip(lat, -90, 90), np.mod(lon, 360.0), corners[0], corners[1], areas)
    again = int(made.repeated().sum())
    if again:
        notes.append(f"{again:,} cells occur again (a halo) and weigh nothing")
    return made, notes


def _check_stacked(
    lat: np.ndarray, lon: np.ndarray, names: tuple[str, str], path: str | Path
) -> None:
    """Checks that no point stands for more cells than the halo of a grid repeats: land that a model
    leaves out has zeros as coordinates, from which the corners of its neighbours would be made.

    Raises:
        DataError: if one does.
    """
    keys = np.round(sphere(lat, lon).reshape(-1, 3) / _SAME).astype(np.int64)
    keys = keys[np.abs(lat).ravel() < 90 - 1e-4]  # all meridians meet in a pole
    points, counts = np.unique(keys, axis=0, return_counts=True)
    if counts.size and counts.max() > _HALO:
        north, east = (round(float(x), 3) + 0.0 for x in _degrees(points[counts.argmax()] * _SAME))
        raise DataError(
            f"{' and '.join(names)} place {counts.max():,} cells at {north:g}°N {east:g}°E",
            path=path,
            record="latitude",
            hint=_from_the_grid_file(names),
        )


def _from_the_grid_file(names: tuple[str, str]) -> str:
    return f"copy those of the model's grid file: ncks -A -v {','.join(names)} grid.nc in"


def _degrees(point: np.ndarray) -> tuple[float, float]:
    """Returns degrees north and east of a point on the unit sphere (3)."""
    north = np.rad2deg(np.arcsin(np.clip(point[2], -1, 1)))
    return float(north), float(np.mod(np.rad2deg(np.arctan2(point[1], point[0])), 360.0))


def _bounds(data: Any, name: str, dims: tuple[str, str]) -> np.ndarray | None:
    own = data[name]
    bounds = str(own.attrs.get("bounds", own.encoding.get("bounds", "")))
    if bounds not in data.variables or data[bounds].ndim != 3:
        return None
    found = data[bounds]
    if not set(dims) <= set(found.dims):
        return None
    vertices = next(dim for dim in found.dims if dim not in dims)
    values = np.asarray(found.transpose(*dims, vertices).values, dtype=np.float64)
    return values if values.shape[-1] >= 3 and np.isfinite(values).all() else None


def _areas(data: Any, array: Any, dims: tuple[str, str]) -> np.ndarray | None:
    text = str(array.attrs.get("cell_measures", array.encoding.get("cell_measures", "")))
    parts = text.split()
    name = parts[parts.index("area:") + 1] if "area:" in parts[:-1] else ""
    if name not in data.variables or set(data[name].dims) != set(dims):
        return None
    values = np.asarray(data[name].transpose(*dims).values, dtype=np.float64)
    return np.nan_to_num(values) if np.nanmin(values) >= 0 and np.nansum(values) > 0 else None
