"""Forecasts by short autoregressions of many series at once, of values and of differences."""

from __future__ import annotations

import numpy as np

_ORDER = 4
_LONGEST = 400
_TINY = 1e-300


def autoregressive_paths(series: np.ndarray, horizon: int) -> np.ndarray:
    """Returns forecasts (N, h): the mean of an autoregression of the values around their mean and
    of one of the differences around their drift, each by the inverse of its one-step variance.

    Weights are those of Burg (1967), orders up to 4, at most a third of the rows, by Akaike's
    corrected criterion (Hurvich and Tsai 1989). A drift counts by 1 - 1/t², t its number of
    standard errors, and not at all below one. No forecast is further outside what was seen than
    the whole range is wide.

    Args:
        series: values (N, L), NaN before the first one only, of which the last 400 are read; every
            series has at least three, and they are not all alike.
        horizon: rows h.
    """
    series = series[:, -_LONGEST:]
    seen = np.isfinite(series)
    low, high = np.nanmin(series, 1)[:, None], np.nanmax(series, 1)[:, None]
    x = np.where(seen, (series - low) / (high - low), 0.0)
    change, pairs = np.diff(x, axis=1), seen[:, 1:] & seen[:, :-1]
    change = np.where(pairs, change, 0.0)
    count = pairs.sum(1)
    drift = change.sum(1) / count
    centred = np.where(pairs, change - drift[:, None], 0.0)
    surely = count * drift**2 / np.maximum(np.square(centred).sum(1) / count, _TINY)
    drift *= np.maximum(0.0, 1.0 - 1.0 / np.maximum(surely, 1e-9))
    steps, missed = _burg(np.where(pairs, change - drift[:, None], 0.0), pairs, horizon)
    risen = x[:, -1:] + np.cumsum(steps + drift[:, None], 1)
    level = x.sum(1, keepdims=True) / seen.sum(1, keepdims=True)
    around, missed_too = _burg(np.where(seen, x - level, 0.0), seen, horizon)
    share = (missed / (missed + missed_too + _TINY))[:, None]
    path = (1 - share) * np.clip(risen, -1.0, 2.0) + share * np.clip(level + around, -1.0, 2.0)
    return low + (high - low) * path


def _burg(x: np.ndarray, seen: np.ndarray, horizon: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the next values (N, h) of autoregressions around 0, and their one-step variances
    (N,).

    Args:
        x: values (N, L), 0 before the first one.
        seen: where they are (N, L).
        horizon: rows h.
    """
    count = seen.sum(1)
    start = x.shape[1] - count
    at = np.arange(x.shape[1])
    forward, backward = x, x
    weights = np.zeros((len(x), _ORDER))
    variance = np.square(x).sum(1) / count
    best, chosen, missed = count * np.log(variance + _TINY) + 2.0, weights, variance
    for order in range(1, min(_ORDER, x.shape[1] - 1) + 1):
        inside = at[order:] >= start[:, None] + order
        ahead, before = forward[:, 1:] * inside, backward[:, :-1] * inside
        power = np.square(ahead).sum(1) + np.square(before).sum(1)
        k = 2 * (ahead * before).sum(1) / np.maximum(power, _TINY)
        weights = weights.copy()
        weights[:, : order - 1] -= k[:, None] * weights[:, : order - 1][:, ::-1]
        weights[:, order - 1] = k
        forward, backward = ahead - k[:, None] * before, before - k[:, None] * ahead
        variance = variance * np.maximum(1 - k**2, 0.0)
        penalty = 2 * (order + 1) * count / np.maximum(count - order - 2, 1)
        score = count * np.log(variance + _TINY) + penalty
        better = (score < best) & (order <= count // 3)
        best, missed = np.where(better, score, best), np.where(better, variance, missed)
        chosen = np.where(better[:, None], weights, chosen)
    known = [x[:, -k] if k <= x.shape[1] else np.zeros(len(x)) for k in range(_ORDER, 0, -1)]
    for _ in range(horizon):
        known.append(sum(chosen[:, k] * known[-1 - k] for k in range(_ORDER)))
    return np.stack(known[_ORDER:], 1), missed
