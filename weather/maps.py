"""Maps and curves as PNG, with matplotlib alone."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from longseq.core.figures import new_figure, save_png
from longseq.weather.coastlines import draw_coastlines
from longseq.weather.data.grid import Grid


def plot_maps(
    fields: Mapping[str, np.ndarray],
    grid: Grid,
    image: str | Path,
    units: str,
    differences: Sequence[str] = (),
) -> None:
    """Draws maps side by side: those of fields on one colour scale, those of differences on one
    about zero.

    Args:
        fields: title → (Y, X); NaN in cells without values, which stay grey.
        grid: of all fields.
        image: PNG to write.
        units: of all fields.
        differences: titles that are differences.
    """
    from matplotlib.colors import Normalize

    edges_y, edges_x = grid.edges()
    width, height = float(np.ptp(edges_x)), float(np.ptp(edges_y))
    # Away from the equator a degree of longitude is shorter; a map of the whole globe is equal in
    # degrees, as all are used to.
    middle = float(edges_y.mean())
    aspect = 1.0 if height > 120 else 1 / max(0.2, float(np.cos(np.deg2rad(middle))))
    size = 5.2
    titles = {title: textwrap.wrap(title, 44) for title in fields}
    # The bar, the labels and every line of a title need room of their own.
    room = 1.8 + 0.3 * max(map(len, titles.values()))
    figure = new_figure(size * len(fields) + 0.6, min(9.0, size * height / width * aspect + room))
    axes = np.atleast_1d(figure.subplots(1, len(fields), sharey=True))
    scales: dict[bool, Any] = {}
    for wanted in (False, True):
        group = [value for title, value in fields.items() if (title in differences) == wanted]
        if group:
            low, high = min(map(np.nanmin, group)), max(map(np.nanmax, group))
            most = max(abs(low), abs(high)) or 1.0
            centred = wanted or low < 0 < high
            scales[wanted] = Normalize(
                -most if centred else low, most if centred else max(high, low * (1 + 1e-9))
            )
    for axis, (title, value) in zip(axes, fields.items()):
        difference = title in differences
        norm = scales[difference]
        colours = "RdBu_r" if norm.vmin < 0 else "YlOrRd"
        axis.set_facecolor("0.88")
        masked = np.ma.masked_invalid(value)
        mesh = _draw_cells(axis, grid, masked, norm, colours)
        draw_coastlines(axis, edges_x[0], edges_x[-1])
        axis.set(
            xlabel="longitude (°E)",
            aspect=aspect,
            xlim=(edges_x[0], edges_x[-1]),
            ylim=(edges_y[0], edges_y[-1]),
        )
        axis.set_title("\n".join(titles[title]), fontsize="medium")
        figure.colorbar(mesh, ax=axis, orientation="horizontal", label=units, shrink=0.85)
    axes[0].set_ylabel("latitude (°N)")
    save_png(figure, image)


def _draw_cells(axis: Any, grid: Grid, values: Any, norm: Any, colours: str) -> Any:
    """Draws the cells of a grid and returns what a colour bar takes."""
    if grid.lat.ndim == 1:
        edges_y, edges_x = grid.edges()
        return axis.pcolormesh(edges_x, edges_y, values, norm=norm, cmap=colours, rasterized=True)
    from matplotlib.collections import PolyCollection

    corners = grid.outlines().reshape(values.size, -1, 2)  # type: ignore[attr-defined]
    # Over a pole a cell has no outline in degrees.
    drawn = ~np.ma.getmaskarray(values).ravel() & (np.ptp(corners[..., 0], axis=1) < 90)
    cells = PolyCollection(
        corners[drawn], array=values.ravel()[drawn], norm=norm, cmap=colours, edgecolors="face"
    )
    cells.set(linewidth=0.2, rasterized=True)
    return axis.add_collection(cells, autolim=False)


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


def plot_hysteresis(
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]],
    years: np.ndarray,
    image: str | Path,
    xlabel: str,
    ylabel: str,
    title: str,
) -> None:
    """Draws paths through a plane, their years marked on the first.

    Args:
        curves: label → (x, y), one value a year.
        years: of the values.
        image: PNG to write.
        xlabel: of x.
        ylabel: of y.
        title: of the picture.
    """
    figure = new_figure(7, 5)
    axes = figure.add_subplot()
    styles = ({"color": "0.2", "linewidth": 2.2}, {"linestyle": "--"}, {"linestyle": ":"}, {})
    for (label, (x, y)), style in zip(curves.items(), styles):
        axes.plot(x, y, label=label, **style)
    x, y = next(iter(curves.values()))
    for year in range(int(years[0]) // 20 * 20, int(years[-1]) + 1, 20):
        at = np.flatnonzero(years == year)
        if len(at):
            axes.plot(x[at], y[at], "o", color="0.2", markersize=4)
            axes.annotate(
                str(year), (x[at[0]], y[at[0]]), textcoords="offset points", xytext=(6, -3)
            )
    axes.set(xlabel=xlabel, ylabel=ylabel, title=title)
    axes.legend(loc="upper left", fontsize="small")
    save_png(figure, image)
