"""Scores of quantile forecasts and of point forecasts: pinball, MASE, sMAPE, coverage."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import NormalDist

import numpy as np
import torch
from torch import Tensor

# The largest value over one that is as good as zero; up to here logarithms are taken of others.
_NEAR_ZERO = 1000.0


def pinball(quantiles: Tensor, target: Tensor, levels: Tensor) -> Tensor:
    """Returns twice the mean pinball loss over levels, the absolute error where the level is ½ (…).

    Args:
        quantiles: (…, Q).
        target: (…).
        levels: (Q,), between 0 and 1.
    """
    error = target.unsqueeze(-1) - quantiles
    return 2 * torch.maximum(levels * error, (levels - 1) * error).mean(-1)


def at_levels(quantiles: np.ndarray, known: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Returns quantiles at other levels (…, W): linear in the normal deviate, beyond both ends too.

    Args:
        quantiles: (…, Q), ascending.
        known: their levels (Q,).
        wanted: levels (W,), between 0 and 1.
    """
    normal = NormalDist()
    x = np.array([normal.inv_cdf(float(level)) for level in known])
    found = []
    for level in wanted:
        z = normal.inv_cdf(float(level))
        right = int(np.clip(np.searchsorted(x, z), 1, len(x) - 1))
        left = right - 1
        share = (z - x[left]) / (x[right] - x[left])
        value = quantiles[..., left] + share * (quantiles[..., right] - quantiles[..., left])
        found.append(value)
    return np.stack(found, -1)


def naive_error(history: np.ndarray, season: int) -> float:
    """Returns the mean |y_t - y_{t-season}| inside a history: the unit of MASE (Hyndman and Koehler
    2006); that of neighbours where the history is no longer than a season. NaN is left out.

    Args:
        history: known values (n,).
        season: rows.
    """
    lag = season if len(history) > season else 1
    steps = np.abs(history[lag:] - history[:-lag])
    steps = steps[~np.isnan(steps)]
    if len(steps) == 0 or steps.mean() == 0:
        return float("nan")
    return float(steps.mean())


def seasonal_naive(history: np.ndarray, season: int, horizon: int) -> np.ndarray:
    """Returns the values one season ago (h,); the last value where the history is shorter."""
    lag = season if len(history) >= season else 1
    return history[len(history) - lag + np.arange(horizon) % lag]


def smape(forecast: np.ndarray, target: np.ndarray) -> float:
    """Returns 200 · mean |y - ŷ| / (|y| + |ŷ|), in percent, 0/0 as 0; NaN targets are left out."""
    seen = ~np.isnan(target)
    y, f = target[seen], forecast[seen]
    size = np.abs(y) + np.abs(f)
    return float(200 * np.mean(np.abs(y - f) / np.where(size > 0, size, 1.0))) if len(y) else np.nan


def is_never_negative(values: np.ndarray) -> bool:
    """Returns whether values are of a kind that has no negatives: none is, and some are zero (or as
    good as, below a thousandth of the largest) or all are whole numbers."""
    known = values[np.isfinite(values)]
    if len(known) == 0 or known.min() < 0:
        return False
    return bool(known.min() <= known.max() / _NEAR_ZERO or (known == np.round(known)).all())


def floors(histories: Iterable[np.ndarray]) -> np.ndarray:
    """Returns the least value that a forecast of every series may have (N, 1): 0 where
    ``is_never_negative``, −∞ elsewhere.

    Args:
        histories: known values of every series (n,).
    """
    return np.array([0.0 if is_never_negative(one) else -np.inf for one in histories])[:, None]
