"""Maps and curves as PNG, with matplotlib alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from longseq.core.figures import new_figure, save_png
from longseq.weather.data.writer import cell_bounds


def plot_maps(
    fields: Mapping[str, np.ndarray],
    lat: np.ndarray,
    lon: np.ndarray,
    image: str | Path,
    units: str,
    differences: Sequence[str] = (),
) -> None:
    """Draws maps side by side: those of fields on one colour scale, those of differences on one
    about zero.

    Args:
        fields: title → (Y, X).
        lat: degrees north (Y), ascending.
        lon: degrees east (X), ascending in [0, 360).
        image: PNG to write.
        units: of all fields.
        differences: titles that are differences.
    """
    from matplotlib.colors import Normalize

    edges_x, edges_y = cell_bounds(lon, 0, 360), cell_bounds(lat, -90, 90)
    aspect = 1 / max(0.2, float(np.cos(np.deg2rad(lat.mean()))))
    figure = new_figure(4.4 * len(fields) + 0.6, 4.2)
    axes = np.atleast_1d(figure.subplots(1, len(fields), sharey=True))
    scales: dict[bool, Any] = {}
    for wanted in (False, True):
        group = [value for title, value in fields.items() if (title in differences) == wanted]
        if group:
            low, high = min(map(np.min, group)), max(map(np.max, group))
            size = max(abs(low), abs(high)) or 1.0
            centred = wanted or low < 0 < high
            scales[wanted] = Normalize(
                -size if centred else low, size if centred else max(high, low + 1e-9)
            )
    for axis, (title, value) in zip(axes, fields.items()):
        difference = title in differences
        norm = scales[difference]
        colours = "RdBu_r" if norm.vmin < 0 else "YlOrRd"
        mesh = axis.pcolormesh(
            _joined(edges_x), _joined(edges_y), value, norm=norm, cmap=colours, rasterized=True
        )
        axis.set(title=title, xlabel="longitude (°E)", aspect=aspect)
        figure.colorbar(mesh, ax=axis, orientation="horizontal", label=units, shrink=0.85)
    axes[0].set_ylabel("latitude (°N)")
    save_png(figure, image)


def _joined(bounds: np.ndarray) -> np.ndarray:
    """Returns cell bounds (N, 2) as edges (N + 1)."""
    return np.concatenate([bounds[:, 0], bounds[-1:, 1]])


def plot_series(
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]],
    image: str | Path,
    ylabel: str,
    shaded: Sequence[tuple[float, float, str]] = (),
) -> None:
    """Draws curves over years.

    Args:
        curves: label → (years, values).
        image: PNG to write.
        ylabel: of the values.
        shaded: spans of years with their labels.
    """
    figure = new_figure(9, 4)
    axes = figure.add_subplot()
    for (first, last, label), colour in zip(shaded, ("0.9", "#dbe9f6", "#f6e6db")):
        axes.axvspan(first - 0.5, last + 0.5, color=colour, label=label, linewidth=0)
    for label, (years, values) in curves.items():
        axes.plot(years, values, label=label, linewidth=1.2)
    axes.set(xlabel="year", ylabel=ylabel)
    axes.legend(loc="upper left", fontsize="small")
    save_png(figure, image)
