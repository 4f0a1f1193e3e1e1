"""Conformal intervals around any forecaster's forecasts, from its errors at earlier cutoffs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from longseq.core.errors import ConfigError, DataError
from longseq.timeseries.conformal import needed, radii
from longseq.timeseries.data.panel import Panel
from longseq.timeseries.long_frame import BASELINE_COLUMN
from longseq.timeseries.quantiles import floors

Make = Callable[[Panel, int, "int | None"], pd.DataFrame]


def conformal_frame(
    make: Make,
    panel: Panel,
    horizon: int,
    cutoff: int | None,
    levels: Sequence[int],
    windows: int,
    name: str,
) -> pd.DataFrame:
    """Returns forecasts whose intervals are calibrated on back-tests before their cutoff.

    A score is how far a value lay from the forecast, or outside of the model's own interval where
    it has one (Romano, Patterson and Candès 2019); a half-width is the split-conformal quantile of
    a series' scores at one step ahead.

    Args:
        make: forecasts a panel: its arguments are the panel, the rows h and the cutoff.
        panel: the series.
        horizon: rows h.
        cutoff: first unknown row; where every series ends if None.
        levels: percentages of the intervals.
        windows: back-tests n; an interval of p% needs p / (100 - p).
        name: the model's column.

    Raises:
        ConfigError: for too few back-tests.
        DataError: if the series are too short for them, or observed too rarely.
    """
    if windows < needed(levels):
        raise ConfigError(
            f"an interval of {max(levels)}% needs {needed(levels)} back-tests: conformal="
            f"{needed(levels)}"
        )
    frame = make(panel, horizon, cutoff)
    end = int(panel.ends.max()) if cutoff is None else cutoff
    first = end - horizon
    step = min(horizon, (first - 2) // max(1, windows - 1)) if windows > 1 else 1
    if first < 2 or step < 1:
        raise DataError(
            f"has {end} rows before the cutoff, {windows} back-tests {horizon} rows ahead need "
            f"{horizon + windows + 1}",
            path=panel.source,
        )
    # Nothing from the cutoff on is seen, so that it cannot be scored.
    past = panel if cutoff is None else panel.before(cutoff)
    place = {one: i for i, one in enumerate(panel.ids)}
    scores = np.full((len(levels), windows, len(panel.ids), horizon), np.nan)
    for i in range(windows):
        test = make(past, horizon, first - i * step)
        series = [place[one] for one in test["unique_id"].to_numpy()[::horizon]]
        y = test["y"].to_numpy().reshape(-1, horizon)
        for k, level in enumerate(levels):
            low, high = _ends(test, name, level, horizon)
            scores[k, i, series] = np.maximum(low - y, y - high)
    found = np.stack([radii(one, [level])[0] for one, level in zip(scores, levels)])
    series = [place[one] for one in frame["unique_id"].to_numpy()[::horizon]]
    if np.isinf(found[:, series]).any():
        at = int(np.flatnonzero(np.isinf(found[:, series]).any((0, 2)))[0])
        raise DataError(
            f"too few values of {panel.ids[series[at]]!r} are observed for an interval of "
            f"{max(levels)}% by {windows} back-tests",
            path=panel.source,
        )
    naive = frame.pop(BASELINE_COLUMN)
    # Counts have no negative end, nor a negative middle of the two.
    floor = floors(past.values[:, one] for one in series)
    for level, width in zip(levels, found):
        low, high = _ends(frame, name, level, horizon)
        half = np.maximum(width[series], -(high - low) / 2)
        frame[f"{name}-lo-{level}"] = np.maximum(low - half, floor).ravel()
        frame[f"{name}-hi-{level}"] = np.maximum(high + half, floor).ravel()
    frame[name] = np.maximum(frame[name].to_numpy().reshape(-1, horizon), floor).ravel()
    frame[BASELINE_COLUMN] = naive
    return frame


def _ends(
    frame: pd.DataFrame, name: str, level: int, horizon: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the ends (n, h) of the model's own interval; the forecast twice where it has none."""
    low, high = (
        frame.get(f"{name}-{side}-{level}", frame[name]).to_numpy().reshape(-1, horizon)
        for side in ("lo", "hi")
    )
    return low, high
