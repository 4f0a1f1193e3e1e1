"""Forecasts of a trained network as a frame, at any horizon: longer ones are forecast in turn."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from longseq.core.errors import ConfigError
from longseq.timeseries.baseline_frame import with_naive
from longseq.timeseries.data.panel import Panel
from longseq.timeseries.long_frame import with_forecasts

if TYPE_CHECKING:
    from longseq.timeseries.forecaster import Forecaster


def network_frame(
    forecaster: Forecaster, panel: Panel, horizon: int, cutoff: int | None
) -> pd.DataFrame:
    """Returns the forecasts of a forecaster's network.

    Args:
        forecaster: one that trains.
        panel: the series.
        horizon: rows h.
        cutoff: first unknown row; None for the end of every series.

    Raises:
        ConfigError: if it was not trained.
    """
    task = forecaster._task
    from longseq.timeseries.forecast import forecast_frame
    from longseq.timeseries.forecast_pairs import forecast_pairs

    if task is None:
        raise ConfigError("the forecaster was not trained: call fit first")
    if task.any_horizon:
        task.horizon = horizon
    h = task.horizon
    own = panel if cutoff is None else panel.before(cutoff)
    if cutoff is None and task.channel_independent:
        _, series = forecast_pairs(task, panel, None)
        if len(series) < len(panel.ids):
            own = panel = panel.select([panel.ids[c] for c in series])
    elif task.channel_independent:
        # As with every model, a series that has not begun has no rows there.
        begun = cutoff - own.starts >= max(task.least, 1)
        panel = panel.select([name for name, old in zip(panel.ids, begun) if old])
        own = panel.before(cutoff)
    levels = forecaster.levels if task.probabilistic else ()
    parts: dict[str, list[np.ndarray]] = {}
    known = own
    for done in range(h, horizon + h, h):
        part = forecast_frame(
            *(task, known, None, levels, 64, forecaster.season, False), grown=done > h
        )
        for column in part.columns[4:-1]:
            parts.setdefault(column, []).append(part[column].to_numpy().reshape(-1, h))
        if done < horizon:
            known = with_forecasts(known, part, forecaster.name)
    paths = {key: np.concatenate(many, axis=1)[:, :horizon] for key, many in parts.items()}
    rows = own.ends if task.channel_independent else np.full(len(own.ids), len(own))
    series = np.arange(len(own.ids))
    return with_naive(panel, rows, series, paths, forecaster.season)
