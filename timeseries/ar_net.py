"""AR-Net (https://arxiv.org/abs/1911.12436): a long autoregression, its weights drawn to zero."""

from __future__ import annotations

import numpy as np
import torch

from longseq.core.checks import check_positive
from longseq.core.errors import ConfigError


def weight_error(found: np.ndarray, true: np.ndarray) -> float:
    """Returns the symmetric error of weights in percent, the paper's sTPE: 100 Σ|ŵ - w| over
    Σ(|ŵ| + |w|)."""
    return float(100 * np.abs(found - true).sum() / (np.abs(found) + np.abs(true)).sum())


def least_squares(series: np.ndarray, order: int, ridge: float = 1e-6) -> np.ndarray:
    """Returns the weights (p,) of an autoregression by least squares, that of lag 1 first.

    Args:
        series: (T,), T above 2 p, with mean 0.
        order: p.
        ridge: share of the variance that is added, so that a constant series is not singular.
    """
    gram, cross = _moments(series, order)
    scale = max(np.trace(gram) / order, 1e-300)
    return np.linalg.solve(gram + ridge * scale * np.eye(order), cross)


def sparse_weights(
    series: np.ndarray, order: int, sparsity: float = 0.2, steps: int = 1500
) -> np.ndarray:
    """Returns the weights (p,) of AR-Net, that of lag 1 first.

    Least is the mean squared one-step error over the series' variance, plus ``sparsity`` times the
    mean of 2 / (1 + exp(-3 |w|^(1/3))) - 1 (equation 7). Errors and their gradient follow from the
    p by p moments, so that a step costs p² whatever the series' length; Adam starts from least
    squares.

    Args:
        series: (T,), T above 2 p, with mean 0.
        order: p.
        sparsity: weight of the penalty; 0 gives least squares.
        steps: of Adam, its rate falling to 0.

    Raises:
        ConfigError: if the series is too short.
    """
    start = least_squares(series, order)
    if sparsity == 0 or not series.any():
        return start
    gram, cross = (torch.from_numpy(part) for part in _moments(series, order))
    variance = float((series**2).mean())
    w = torch.from_numpy(start).requires_grad_()
    optimizer = torch.optim.Adam([w], 3e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 1e-3, steps)
    for _ in range(steps):
        # |y - X w|² / n less what no weight changes.
        error = (w @ gram @ w - 2 * (w @ cross)) / variance
        size = (w.abs() + 1e-9) ** (1 / 3)
        penalty = (2 / (1 + torch.exp(-3 * size)) - 1).mean()
        optimizer.zero_grad()
        (error + sparsity * penalty).backward()
        optimizer.step()
        schedule.step()
    found = w.detach().numpy().copy()
    # What Adam's last steps hold near zero is zero; the rest is fitted without the penalty.
    kept = np.abs(found) > 0.05 * max(np.abs(found).max(), 1e-12)
    found[:] = 0
    inner, right = gram.numpy()[np.ix_(kept, kept)], cross.numpy()[kept]
    scale = max(np.trace(inner) / max(kept.sum(), 1), 1e-300)
    found[kept] = np.linalg.solve(inner + 1e-6 * scale * np.eye(len(right)), right)
    return found


def continue_series(series: np.ndarray, weights: np.ndarray, horizon: int) -> np.ndarray:
    """Returns the next values (h,) by the weights, each taken for known by the following."""
    known = list(series[-len(weights) :])
    for _ in range(horizon):
        known.append(float(weights[::-1] @ known[-len(weights) :]))
    return np.array(known[len(weights) :])


def _moments(series: np.ndarray, order: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns XᵀX / n (p, p) and Xᵀy / n (p,) of lagged values, lag 1 first."""
    check_positive("order", order)
    if len(series) <= 2 * order:
        raise ConfigError(
            f"{len(series)} values are too few for an autoregression of order {order}: more than "
            f"{2 * order} are needed"
        )
    lags = np.lib.stride_tricks.sliding_window_view(series[:-1], order)[:, ::-1]
    target = series[order:]
    return lags.T @ lags / len(target), lags.T @ target / len(target)
