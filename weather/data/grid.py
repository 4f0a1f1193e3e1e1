"""The grid of a file: cell centres and edges, periodic or regional."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from longseq.core.errors import DataError

Weighting = Literal["area", "cos"]
# Without bounds, columns go round the globe if no gap between neighbours is much wider than usual.
_PERIODIC_GAP = 1.5


@dataclass(frozen=True)
class Grid:
    """A regular latitude-longitude grid in one convention.

    Latitudes ascend from south to north. Longitudes ascend eastwards without a jump: in [0, 360) if
    the columns go round the globe, else from the western edge of the region, which may be negative
    (-10 … 40).

    Args:
        lat: centres, degrees north (Y).
        lon: centres, degrees east (X).
        lat_bounds: edges of the rows (Y, 2), within [-90, 90].
        lon_bounds: edges of the columns (X, 2), west then east.
    """

    lat: np.ndarray
    lon: np.ndarray
    lat_bounds: np.ndarray
    lon_bounds: np.ndarray

    @classmethod
    def of(cls, lat: np.ndarray, lon: np.ndarray) -> Grid:
        """Returns the grid of centres alone; edges lie halfway between them.

        Args:
            lat: degrees north, ascending (Y).
            lon: degrees east, ascending without a jump (X).
        """
        lat, lon = np.asarray(lat, dtype=np.float64), np.asarray(lon, dtype=np.float64)
        return cls(lat, lon, _row_edges(lat), _column_edges(lon, _goes_round(lon)))

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns (Y, X)."""
        return len(self.lat), len(self.lon)

    @property
    def global_(self) -> bool:
        """Whether the cells cover the globe."""
        return self.periodic and self.lat_bounds[0, 0] < -80 and self.lat_bounds[-1, 1] > 80

    @property
    def periodic(self) -> bool:
        """Whether the columns go round the globe."""
        return bool(abs(float(np.diff(self.lon_bounds, axis=1).sum()) - 360.0) < 1e-3)

    def weights(self, kind: Weighting = "area", mask: np.ndarray | None = None) -> np.ndarray:
        """Returns weights (Y, X) that sum to one.

        Args:
            kind: "area", the cells' areas on a sphere, (sin φ₂ - sin φ₁)(λ₂ - λ₁), as cdo, iris and
                WeatherBench 2 have it; "cos", the cosine of the centre's latitude, as ClimateBench
                has it.
            mask: bool (Y, X), cells that count; the others weigh nothing. None for all.

        Raises:
            DataError: if no cell counts.
        """
        if kind == "cos":
            made = np.repeat(np.cos(np.deg2rad(self.lat))[:, None], len(self.lon), 1)
        else:
            rows = np.diff(np.sin(np.deg2rad(self.lat_bounds)), axis=1)
            made = rows * np.diff(self.lon_bounds, axis=1).T
        if mask is not None:
            made = np.where(mask, made, 0.0)
        if not made.sum() > 0:
            raise DataError("no grid cell holds values")
        return made / made.sum()

    def edges(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the edges of rows (Y + 1) and columns (X + 1), for pictures."""
        return (
            np.concatenate([self.lat_bounds[:, 0], self.lat_bounds[-1:, 1]]),
            np.concatenate([self.lon_bounds[:, 0], self.lon_bounds[-1:, 1]]),
        )

    def same(self, other: Grid, tolerance: float = 1e-4) -> bool:
        """Returns whether another grid has the same centres, to 1e-4 degrees."""
        return self.shape == other.shape and all(
            np.allclose(a, b, rtol=0, atol=tolerance)
            for a, b in ((self.lat, other.lat), (self.lon, other.lon))
        )

    def facts(self) -> dict[str, Any]:
        """Returns plain lists, for checkpoints; ``from_facts`` reads them."""
        return {
            "lat": self.lat.tolist(),
            "lon": self.lon.tolist(),
            "lat_bounds": self.lat_bounds.tolist(),
            "lon_bounds": self.lon_bounds.tolist(),
        }

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> Grid:
        """Returns the grid of ``facts``; earlier checkpoints have centres alone."""
        lat, lon = np.array(facts["lat"], dtype=float), np.array(facts["lon"], dtype=float)
        if lat.ndim == 2:
            from longseq.weather.data.curvilinear import CurvilinearGrid

            corners = np.array(facts["lat_bounds"]), np.array(facts["lon_bounds"])
            areas = None if facts["areas"] is None else np.array(facts["areas"])
            return CurvilinearGrid(lat, lon, *corners, areas)
        if "lon_bounds" not in facts:
            order = column_order(lon)[0]
            return cls.of(lat, order)
        return cls(lat, lon, np.array(facts["lat_bounds"]), np.array(facts["lon_bounds"]))

    def __str__(self) -> str:
        rows, columns = self.shape
        return f"{rows} × {columns} cells from {self.lat[0]:g}°N {self.lon[0]:g}°E"


def column_order(
    lon: np.ndarray, bounds: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns longitudes that ascend without a jump, and the order of columns that gives them.

    Args:
        lon: degrees east in any range (X), no meridian twice.
        bounds: edges of the columns (X, 2), if the file has them; they decide whether the columns
            go round the globe.
    """
    # Rounded, because -0.1 + 360 is not 359.9.
    turned = np.round(np.mod(lon, 360.0), 5)
    turned = np.where(turned >= 360.0, 0.0, turned)
    order = np.argsort(turned, kind="stable")
    turned = turned[order]
    gaps = np.diff(turned, append=turned[0] + 360.0)
    if bounds is not None:
        widths = np.mod(bounds[:, 1] - bounds[:, 0], 360.0)
        round_globe = abs(float(widths.sum()) - 360.0) < 1e-3 or len(lon) == 1
    else:
        round_globe = _gaps_go_round(gaps)
    if round_globe:
        return turned, order
    first = (int(np.argmax(gaps)) + 1) % len(turned)
    turned, order = np.roll(turned, -first), np.roll(order, -first)
    turned = np.where(np.arange(len(turned)) >= len(turned) - first, turned + 360.0, turned)
    if turned[-1] >= 360.0:  # over Greenwich: from the west, -10 … 40
        turned = turned - 360.0
    return turned, order


def _gaps_go_round(gaps: np.ndarray) -> bool:
    """Returns whether columns go round the globe, from all gaps between neighbours, which sum to
    360°."""
    if len(gaps) == 1:
        return True  # one column without bounds is a zonal mean
    return bool(gaps.max() <= _PERIODIC_GAP * np.median(np.delete(gaps, np.argmax(gaps))))


def _goes_round(lon: np.ndarray) -> bool:
    return _gaps_go_round(np.diff(lon, append=lon[0] + 360.0))


def _row_edges(lat: np.ndarray) -> np.ndarray:
    if len(lat) == 1:
        return np.array([[-90.0, 90.0]])
    middle = (lat[1:] + lat[:-1]) / 2
    first, last = 2 * lat[0] - middle[0], 2 * lat[-1] - middle[-1]
    edges = np.clip(np.concatenate([[first], middle, [last]]), -90.0, 90.0)
    return np.stack([edges[:-1], edges[1:]], 1)


def _column_edges(lon: np.ndarray, round_globe: bool) -> np.ndarray:
    if len(lon) == 1:
        return np.array([[lon[0] - 180.0, lon[0] + 180.0]])
    middle = (lon[1:] + lon[:-1]) / 2
    if round_globe:
        wrap = (lon[-1] + lon[0] + 360.0) / 2
        edges = np.concatenate([[wrap - 360.0], middle, [wrap]])
    else:
        edges = np.concatenate([[2 * lon[0] - middle[0]], middle, [2 * lon[-1] - middle[-1]]])
    return np.stack([edges[:-1], edges[1:]], 1)


def make_grid(
    lat: np.ndarray,
    lon: np.ndarray,
    lat_bounds: np.ndarray | None,
    lon_bounds: np.ndarray | None,
    path: str | Path,
) -> tuple[Grid, np.ndarray]:
    """Returns the grid of a file and the order of its columns.

    Args:
        lat: centres, ascending (Y).
        lon: centres as the file has them (X), no meridian twice.
        lat_bounds: edges of the rows (Y, 2) in the order of ``lat``; None where the file has none.
        lon_bounds: edges of the columns (X, 2), as the file has them; None likewise.
        path: file, for messages.

    Raises:
        DataError: for bounds that do not surround their centre, or overlap.
    """
    if lat_bounds is None:
        rows = _row_edges(lat)
    else:
        rows = np.sort(np.asarray(lat_bounds, dtype=np.float64), axis=1)
        rows = np.clip(rows, -90.0, 90.0)
        outside = (lat < rows[:, 0] - 1e-4) | (lat > rows[:, 1] + 1e-4)
        overlap = np.flatnonzero(np.diff(rows[:, 0]) <= 0)
        _refuse(outside, lat, rows, "latitude", path)
        if len(overlap) or np.any(rows[1:, 0] < rows[:-1, 1] - 1e-3):
            raise DataError("its bounds overlap", path=path, record="latitude")
    if lon_bounds is None:
        centres, order = column_order(lon)
        return Grid(lat, centres, rows, _column_edges(centres, _goes_round(centres))), order
    west, east = np.asarray(lon_bounds, dtype=np.float64).T
    swapped = (east < west) & (west - east < 180.0)
    west, east = np.where(swapped, east, west), np.where(swapped, west, east)
    # Widths and the way from the western edge to the centre, whatever turn each number is in.
    whole = np.abs(np.abs(east - west) - 360.0) < 1e-6
    width = np.where(whole, 360.0, np.mod(east - west, 360.0))
    inner = np.mod(lon - west, 360.0)
    share = np.divide(inner, width, out=np.full_like(inner, np.inf), where=width > 0)
    # A centre at the very edge of its cell comes from bounds that were torn apart at Greenwich.
    _refuse((share < 0.05) | (share > 0.95), lon, np.stack([west, east], 1), "longitude", path)
    if width.sum() > 360.0 + 1e-2:
        raise DataError("its bounds overlap", path=path, record="longitude")
    centres, order = column_order(lon, np.stack([np.zeros_like(width), width], 1))
    inner, width = inner[order], width[order]
    start = centres - inner
    return Grid(lat, centres, rows, np.stack([start, start + width], 1)), order


def _refuse(
    bad: np.ndarray, centres: np.ndarray, bounds: np.ndarray, kind: str, path: str | Path
) -> None:
    if bad.any():
        at = int(np.flatnonzero(bad)[0])
        raise DataError(
            f"the bounds {bounds[at, 0]:g} … {bounds[at, 1]:g} do not surround {centres[at]:g}",
            path=path,
            record=kind,
            hint="correct or drop its bounds",
        )
