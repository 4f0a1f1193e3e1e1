"""Forecasts as a long frame: one row per series, cutoff and step ahead."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from longseq.timeseries.data.panel import Panel

BASELINE_COLUMN = "SeasonalNaive"


def long_frame(
    extended: Panel, rows: np.ndarray, series: np.ndarray, values: dict[str, np.ndarray]
) -> pd.DataFrame:
    """Returns forecasts as a frame, series by series, the seasonal naive column last.

    Args:
        extended: the panel, with rows for all that is forecast.
        rows: first unknown row of every forecast (P,).
        series: its series (P,).
        values: forecasts by column, (P, h) each.
    """
    horizon = next(iter(values.values())).shape[1]
    ahead = rows[:, None] + np.arange(horizon)
    order = [key for key in values if key != BASELINE_COLUMN]
    columns = {
        "unique_id": np.repeat(np.asarray(extended.ids, dtype=object)[series], horizon),
        "ds": extended.ds[ahead.ravel()],
        "cutoff": extended.ds[np.repeat(rows - 1, horizon)],
        "y": extended.values[ahead, series[:, None]].ravel(),
        **{key: values[key].ravel() for key in (*order, BASELINE_COLUMN)},
    }
    return pd.DataFrame(columns)


def with_forecasts(panel: Panel, frame: pd.DataFrame, name: str) -> Panel:
    """Returns a panel with forecasts after the end of every series, as if they had been observed.

    Args:
        panel: the series.
        frame: of ``long_frame``, h rows of every series.
        name: column of the forecasts.
    """
    horizon = len(frame) // len(panel.ids)
    longer = panel.extended(horizon)
    values = longer.values.copy()
    path = frame[name].to_numpy().reshape(-1, horizon)
    at = longer.ds.get_indexer(pd.Index(frame["ds"])).reshape(-1, horizon)
    values[at, np.arange(len(panel.ids))[:, None]] = path
    return replace(longer, values=values)
