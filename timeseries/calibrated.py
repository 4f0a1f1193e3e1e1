"""Intervals calibrated on a forecaster's errors at earlier cutoffs: of each series alone, by
conformal prediction, or of all series of a panel together."""

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
# Series that a panel has where its intervals are calibrated unasked, and that are asked at most.
PANEL, _ASKED = 50, 256
# A series is asked whose known values before the held-back ones are at least so many, and vary.
_LEAST = 4
# Of n series, factors count by n / (_SHOCKS n + _PRIOR): of many, two thirds of what the last
# horizon says will hold in the next one. The packaged network's card says what chose it.
_SHOCKS, _PRIOR = 1.5, 20.0
_NARROWEST, _WIDEST = 0.5, 2.0


def panel_intervals(
    forecast: Callable[[list[np.ndarray]], np.ndarray],
    contexts: Sequence[np.ndarray],
    found: np.ndarray,
    cutoffs: Sequence[int] | np.ndarray | None = None,
    wanted: bool | None = None,
) -> np.ndarray:
    """Returns quantile forecasts (N, h, Q) whose distances from the median are scaled by what the
    same forecaster missed one horizon earlier, all series of a cutoff together.

    What lies before a cutoff alone is read: the last h rows of each context are held back, forecast
    from the rest, and compared. Of more than 256 series of a cutoff, 256 are asked, evenly drawn.

    Args:
        forecast: returns the quantiles (n, h, Q) after contexts, for levels that lie evenly around
            the median.
        contexts: known values of every series (n,), NaN where none was observed.
        found: ``forecast(contexts)``.
        cutoffs: of the contexts (N,): those with the same number are pooled; all if None.
        wanted: scale; None where at least 50 series of a cutoff are long enough.
    """
    if wanted is False:
        return found
    horizon, out = found.shape[1], found.copy()
    groups = np.zeros(len(contexts), int) if cutoffs is None else np.asarray(cutoffs)
    for group in np.unique(groups):
        members = np.flatnonzero(groups == group).tolist()
        asked = [i for i in members if _can_be_asked(contexts[i], horizon)]
        if len(asked) < (1 if wanted else PANEL):
            continue
        if len(asked) > _ASKED:
            asked = [asked[i * len(asked) // _ASKED] for i in range(_ASKED)]
        earlier = forecast([contexts[i][:-horizon] for i in asked])
        factors = width_factors(earlier, np.stack([contexts[i][-horizon:] for i in asked]))
        middle = found[members][..., found.shape[2] // 2, None]
        # Factors of neighbouring levels may differ: sorted, quantiles do not cross.
        scaled = np.sort(middle + factors * (found[members] - middle), axis=-1)
        out[members] = np.maximum(scaled, floors(contexts[i] for i in members)[..., None])
    return out


def width_factors(forecasts: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Returns by what the distance of each quantile from the median is to be multiplied (Q,).

    The factor of least pinball loss, in units of each forecast's own width, between ½ and 2; drawn
    towards 1, the more the fewer series there are.

    Args:
        forecasts: quantiles of n series (n, h, Q), for levels that lie evenly around the median.
        targets: what came (n, h), NaN where it was not observed.
    """
    count = forecasts.shape[2]
    levels = np.arange(1, count + 1) / (count + 1)
    middle = forecasts[..., count // 2]
    miss = targets - middle
    width = (forecasts[..., -1] - forecasts[..., 0]).mean(1, keepdims=True)
    factors = np.ones(count)
    for k, level in enumerate(levels):
        distance = forecasts[..., k] - middle
        counted = (distance * (level - 0.5) > 0) & np.isfinite(miss) & (width > 0)
        if not counted.any():
            continue
        # The loss of c · distance is that of c as a quantile of the ratios, weighted by distance.
        ratio = (miss / np.where(counted, distance, 1.0))[counted]
        weight = (np.abs(distance) / np.where(width > 0, width, 1.0))[counted]
        order = np.argsort(ratio, kind="stable")
        total = np.cumsum(weight[order])
        at = np.searchsorted(total, max(level, 1 - level) * total[-1])
        best = np.clip(ratio[order[min(at, len(order) - 1)]], _NARROWEST, _WIDEST)
        factors[k] = best ** (len(targets) / (_SHOCKS * len(targets) + _PRIOR))
    return factors


def _can_be_asked(context: np.ndarray, horizon: int) -> bool:
    """Returns whether the last rows of a context can be held back and compared."""
    before, held = context[:-horizon], context[-horizon:]
    known = before[np.isfinite(before)]
    return len(known) >= _LEAST and bool(np.ptp(known) > 0) and bool(np.isfinite(held).any())


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
