"""Pictures of forecasts: what was known, what came, what the model said with its interval."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from longseq.core.errors import DataError
from longseq.core.figures import new_figure, save_png
from longseq.timeseries.data.panel import Panel
from longseq.timeseries.frame_types import to_pandas
from longseq.timeseries.long_frame import BASELINE_COLUMN


def plot_forecast(
    panel: Panel,
    frame: Any,
    model: str,
    path: str | Path,
    level: int | None = None,
    unit: str = "",
) -> None:
    """Draws the forecasts of one series over its last known rows, as PNG.

    Args:
        panel: the series, its first one is drawn.
        frame: of ``forecast_frame``, with one or more cutoffs; pandas or polars.
        model: the model's column.
        path: the file.
        level: percentage of the interval to shade; None for none.
        unit: of the values, for the axis.
    """
    name = panel.ids[0]
    frame, _ = to_pandas(frame)
    rows = frame[frame["unique_id"] == name]
    times = np.asarray(panel.ds)
    first = max(
        0,
        int(np.searchsorted(times, np.asarray(rows["ds"]).min()))
        - 3 * len(rows["ds"].unique()) // 4,
    )
    figure = new_figure(10, 3.6)
    axes = figure.add_subplot()
    axes.plot(times[first:], panel.values[first:, 0], color="black", lw=1, label="measured")
    for i, (_, part) in enumerate(rows.groupby("cutoff")):
        labels = (model, "seasonal naive", f"{level}% interval") if i == 0 else (None, None, None)
        if level is not None:
            low, high = part[f"{model}-lo-{level}"], part[f"{model}-hi-{level}"]
            axes.fill_between(
                part["ds"], low, high, color="tab:blue", alpha=0.2, lw=0, label=labels[2]
            )
        axes.plot(
            part["ds"], part[BASELINE_COLUMN], color="tab:orange", lw=1, ls=":", label=labels[1]
        )
        axes.plot(part["ds"], part[model], color="tab:blue", lw=1.4, label=labels[0])
        axes.axvline(part["cutoff"].iloc[0], color="grey", lw=0.6)
    axes.set_title(name, loc="left")
    axes.set_ylabel(unit)
    figure.legend(loc="outside upper right", ncols=4, fontsize=8)
    figure.autofmt_xdate()
    save_png(figure, path)


def plot_lead_error(frame: Any, model: str, path: str | Path) -> None:
    """Draws the mean absolute error by step ahead beside the seasonal naive forecast's, as PNG, in
    units of what that one misses over all steps.

    Args:
        frame: of a cross-validation, with known ``y``; pandas or polars.
        model: the model's column.
        path: the file.

    Raises:
        DataError: if no target is known.
    """
    frame, _ = to_pandas(frame)
    known = frame[frame["y"].notna()]
    if known.empty:
        raise DataError("no target of the forecasts is known: nothing to compare with")
    lead = known.groupby(["unique_id", "cutoff"]).cumcount() + 1
    figure = new_figure(7, 3.2)
    axes = figure.add_subplot()
    unit = (known[BASELINE_COLUMN] - known["y"]).abs().groupby(known["unique_id"]).mean()
    size = known["unique_id"].map(unit.where(unit > 0, 1.0))
    for column, colour, style in ((BASELINE_COLUMN, "tab:orange", ":"), (model, "tab:blue", "-")):
        error = ((known[column] - known["y"]).abs() / size).groupby(lead).mean()
        axes.plot(error.index, error.to_numpy(), color=colour, ls=style, label=column)
    axes.set_xlabel("rows ahead")
    axes.set_ylabel("error")
    axes.set_ylim(bottom=0)
    figure.legend(loc="outside upper right", ncols=2, fontsize=8)
    save_png(figure, path)
