"""Coastlines for maps: Natural Earth's land at 1:110 million, which is in the public domain."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

_FILE = Path(__file__).with_name("samples") / "coastlines.npz"


@lru_cache(maxsize=1)
def coastlines() -> list[np.ndarray]:
    """Returns lines of points (N, 2), degrees east in [-180, 180] and degrees north."""
    with np.load(_FILE, allow_pickle=False) as data:
        points, ends = data["points"].astype(np.float64) / 100, data["ends"]
    return np.split(points, ends[:-1])


def draw_coastlines(axis: Any, west: float, east: float) -> None:
    """Draws the coasts between two meridians on a map in degrees.

    Args:
        axis: of matplotlib.
        west: western edge, degrees east in any turn.
        east: eastern edge.
    """
    from matplotlib.collections import LineCollection

    lines = []
    for turn in (-360.0, 0.0, 360.0):
        for line in coastlines():
            moved = line + np.array([turn, 0.0])
            if moved[:, 0].max() >= west and moved[:, 0].min() <= east:
                lines.append(moved)
    axis.add_collection(
        LineCollection(lines, colors="0.25", linewidths=0.6, zorder=3), autolim=False
    )
