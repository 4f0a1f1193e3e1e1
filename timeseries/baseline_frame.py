"""Forecasts of baselines and local models as a frame, from the end of every series or a cutoff."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from longseq.core.errors import DataError
from longseq.timeseries.baselines import make_baseline
from longseq.timeseries.data.panel import Panel
from longseq.timeseries.data.protocols import Part
from longseq.timeseries.data.windows import Scaler, Windows
from longseq.timeseries.local import BASELINES, LocalModel
from longseq.timeseries.long_frame import BASELINE_COLUMN, long_frame
from longseq.timeseries.quantiles import seasonal_naive

_TOGETHER = 128  # series that a local model forecasts at once: a matter of memory


def baseline_frame(
    name: str,
    panel: Panel,
    horizon: int,
    cutoff: int | None = None,
    season: int | None = None,
    levels: Sequence[int] = (),
    context: int | None = None,
) -> pd.DataFrame:
    """Forecasts every series by a baseline or a local model.

    Args:
        name: one of ``local.BASELINES``.
        panel: the series.
        horizon: rows h.
        cutoff: first unknown row; where every series ends if None.
        season: rows of a season; the calendar's usual one if None.
        levels: percentages of intervals, where the model gives any.
        context: known rows of a ridge regression's windows; as the panel allows if None.

    Returns:
        Columns as of ``forecast.forecast_frame``. A series that has not begun has no rows.

    Raises:
        DataError: if a series has no value, or too few for a ridge regression.
    """
    lag = season or panel.season()
    rows = panel.ends if cutoff is None else np.full(len(panel.ids), cutoff)
    series = np.flatnonzero(panel.starts < rows)
    if cutoff is None and len(series) < len(panel.ids):
        empty = sorted(set(range(len(panel.ids))) - set(series.tolist()))[0]
        raise DataError(f"the series {panel.ids[empty]!r} has no value", path=panel.source)
    rows, made = rows[series], BASELINES[name]
    column = made.__name__
    values: dict[str, np.ndarray] = {}
    if issubclass(made, LocalModel):
        model = made(horizon, lag)
        own = tuple(levels) if hasattr(model, "quantiles") else ()
        histories = _histories(panel, rows, series)
        if own:
            found = [model.quantiles(one, own) for one in histories]
        else:
            found = [(path,) for path in _paths(model, histories)]
        values[column] = np.stack([one[0] for one in found])
        for i, level in enumerate(own):
            for j, side in enumerate(("lo", "hi")):
                ends = np.stack([one[1 + 2 * i + j] for one in found])
                values[f"{column}-{side}-{level}"] = ends
    elif name in ("repeat", "seasonal_naive"):
        usual = 1 if name == "repeat" else lag
        histories = _histories(panel, rows, series)
        values[column] = np.stack([seasonal_naive(one, usual, horizon) for one in histories])
    else:
        values[column] = _ridge(name, panel, rows, series, horizon, context, season)
    return with_naive(panel, rows, series, values, season)


def _paths(model: LocalModel, histories: list[np.ndarray]) -> np.ndarray:
    """Returns a local model's forecasts (P, h); histories of one length go together."""
    found = np.empty((len(histories), model.horizon))
    lengths = np.array([len(one) for one in histories])
    for length in np.unique(lengths):
        members = np.flatnonzero(lengths == length)
        for start in range(0, len(members), _TOGETHER):
            chosen = members[start : start + _TOGETHER]
            found[chosen] = model.paths(np.stack([histories[i] for i in chosen]))
    return found


def _histories(panel: Panel, rows: np.ndarray, series: np.ndarray) -> list[np.ndarray]:
    carried = panel.carried()
    return [carried[panel.starts[c] : row, c] for row, c in zip(rows, series)]


def with_naive(
    panel: Panel,
    rows: np.ndarray,
    series: np.ndarray,
    values: dict[str, np.ndarray],
    season: int | None,
) -> pd.DataFrame:
    """Returns forecasts by column (P, h) as a frame, beside the seasonal naive one."""
    horizon = next(iter(values.values())).shape[1]
    naive = naive_paths(panel, rows, series, season or panel.season(), horizon)
    found = {**values, BASELINE_COLUMN: naive}
    return long_frame(panel.extended(horizon), rows, series, found)


def naive_paths(
    panel: Panel, rows: np.ndarray, series: np.ndarray, season: int, horizon: int
) -> np.ndarray:
    """Returns the values one season ago, of each series the last one where it is shorter (P, h).

    Args:
        panel: the series; gaps are carried forward.
        rows: first unknown row of every forecast (P,).
        series: its series (P,).
        season: rows.
        horizon: rows h.
    """
    found = np.empty((len(rows), horizon))
    for part, carried in panel.carried_parts():
        for i in np.flatnonzero((series >= part.start) & (series < part.stop)):
            history = carried[panel.starts[series[i]] : rows[i], series[i] - part.start]
            found[i] = seasonal_naive(history, season, horizon)
    return found


def _ridge(
    name: str,
    panel: Panel,
    rows: np.ndarray,
    series: np.ndarray,
    horizon: int,
    context: int | None,
    season: int | None,
) -> np.ndarray:
    """Returns forecasts (P, h) of a ridge regression on all that is known before the last cutoff.

    Cutoffs differ only where they are the ends of the series: then all rows are known. A context
    that is longer than its series is padded with the first value, as everywhere.
    """
    end = int(rows.max())
    length = context or max(2, min(336, (end - horizon) // 3))
    if end < length + horizon:
        raise DataError(
            f"has {end} rows, a ridge regression with a context of {length} and a horizon of "
            f"{horizon} needs {length + horizon}",
            path=panel.source,
        )
    known = panel.before(end)
    scaler = Scaler.fit(known, Part(0, end))
    model = make_baseline(name, horizon, season or panel.season())
    cutoffs = range(length, end - horizon + 1)
    model.fit(Windows(known, scaler, cutoffs, length, horizon))
    scaled = scaler.transform(panel.carried())
    near = np.maximum(rows[:, None] + np.arange(-length, 0), 0)
    x = scaled[near, series[:, None]]
    y = model.forecast(torch.from_numpy(x)[..., None])[..., 0].numpy()
    return y * scaler.std[series, None] + scaler.mean[series, None]
