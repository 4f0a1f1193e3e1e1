"""Scores of ensembles and of forecasts: CRPS, spread beside skill, anomaly correlation, RMSE."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from longseq.core.errors import ArgumentError


def _weights(shape: tuple[int, ...], weights: np.ndarray | None) -> np.ndarray:
    made = np.ones(shape) if weights is None else np.asarray(weights, dtype=np.float64)
    if made.shape != shape or not made.sum() > 0:
        raise ArgumentError(f"weights of the shape {shape} are needed, got {made.shape}")
    return made / made.sum()


def _mean(values: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    """Returns the weighted mean over the last two axes of those cells that weigh something, so that
    values that are missing where nothing weighs are left out."""
    own = _weights(values.shape[-2:], weights)
    kept = own > 0
    return np.asarray((values[..., kept] * own[kept]).sum(-1))


def crps(members: np.ndarray, truth: np.ndarray, fair: bool = True) -> np.ndarray:
    """Returns the continuous ranked probability score of every value.

    CRPS = mean_i |x_i - y| - Σ_ij |x_i - x_j| / (2 M (M - 1)), "fair": its mean does not depend on
    the number of members (https://doi.org/10.1002/qj.2270); M² in place of M (M - 1) scores the
    members' own step function.

    Args:
        members: (M, …), at least two if fair.
        truth: (…).
        fair: which of the two.
    """
    x, y = np.asarray(members, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    count = len(x)
    if x.shape[1:] != y.shape or count < (2 if fair else 1):
        raise ArgumentError(f"members {x.shape} do not fit the truth {y.shape}, or are too few")
    rank = 2.0 * np.arange(count) - count + 1
    # Σ_ij |x_i - x_j| = 2 Σ_k (2 k - M + 1) x_(k) over sorted members.
    spread = 2 * np.tensordot(rank, np.sort(x, 0), 1)
    pairs = count * (count - 1) if fair else count**2
    return np.asarray(np.abs(x - y).mean(0) - spread / (2 * pairs))


def mean_crps(
    members: np.ndarray, truth: np.ndarray, weights: np.ndarray | None = None, fair: bool = True
) -> float:
    """Returns the CRPS as a mean over the grid and all other axes.

    Args:
        members: (M, …, Y, X).
        truth: (…, Y, X).
        weights: (Y, X); None for equal ones. Cells that weigh nothing are left out.
        fair: as in ``crps``.
    """
    return float(_mean(crps(members, truth, fair), weights).mean())


def spread_skill(
    members: np.ndarray, truth: np.ndarray, weights: np.ndarray | None = None
) -> tuple[float, float]:
    """Returns spread and skill, which are equal where the truth could be one of the members.

    Spread is the root of the mean variance of members, times √((M + 1) / M); skill the root mean
    square error of their mean (https://doi.org/10.1175/JHM-D-14-0008.1).

    Args:
        members: (M, …, Y, X), M ≥ 2.
        truth: (…, Y, X).
        weights: (Y, X).
    """
    x = np.asarray(members, dtype=np.float64)
    if len(x) < 2:
        raise ArgumentError("the spread of an ensemble needs two members")
    variance = _mean(x.var(0, ddof=1), weights).mean() * (len(x) + 1) / len(x)
    error = _mean((x.mean(0) - truth) ** 2, weights).mean()
    return float(np.sqrt(variance)), float(np.sqrt(error))


def rmse(forecast: np.ndarray, truth: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Returns √⟨(x - y)²⟩ over the grid (…).

    Args:
        forecast: (…, Y, X).
        truth: likewise.
        weights: (Y, X).
    """
    gap = np.asarray(forecast, dtype=np.float64) - truth
    return np.sqrt(_mean(gap**2, weights))


def acc(
    forecast: np.ndarray,
    truth: np.ndarray,
    climatology: np.ndarray,
    weights: np.ndarray | None = None,
    centred: bool = False,
) -> np.ndarray:
    """Returns the anomaly correlation ⟨x'y'⟩ / √(⟨x'²⟩⟨y'²⟩) over the grid (…).

    Args:
        forecast: (…, Y, X).
        truth: likewise.
        climatology: that is subtracted from both, of a shape that can be subtracted.
        weights: (Y, X).
        centred: whether the area mean of the anomalies is taken off too (Pearson's correlation);
            WeatherBench does not.
    """
    x, y = (np.asarray(one, dtype=np.float64) - climatology for one in (forecast, truth))
    if centred:
        x, y = (one - _mean(one, weights)[..., None, None] for one in (x, y))
    size = np.sqrt(_mean(x**2, weights) * _mean(y**2, weights))
    product = _mean(x * y, weights)
    return np.divide(product, size, out=np.full_like(size, np.nan), where=size > 0)


def by_lead(scores: Sequence[np.ndarray]) -> np.ndarray:
    """Returns the mean over starts (n, L) of root mean square errors: the root comes last."""
    return np.sqrt((np.asarray(scores) ** 2).mean(0))
