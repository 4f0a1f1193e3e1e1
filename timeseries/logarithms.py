"""Copies of series in logarithms, where those are of use, and forecasts of them as such of the
series."""

from __future__ import annotations

import numpy as np

from longseq.timeseries.models.plain_forecasts import BLOCK

# Logarithms are taken of positive series whose largest value is at most so many times the least.
LOG_RATIO = 1000.0
# So many values say how a series grows beyond 64 steps.
_ENOUGH = 32


def logarithms(rows: np.ndarray) -> np.ndarray:
    """Returns rows (N, L) with logarithms in the place of those where they are of use."""
    taken, positive = rows.copy(), _positive(rows)[2]
    taken[positive] = np.log(rows[positive])
    return taken


def from_logarithms(found: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Returns forecasts (N, h, …) of ``logarithms(rows)`` as such of the rows: a quantile of
    logarithms is the logarithm of the quantile."""
    low, high, positive = _positive(rows)
    if positive.any():
        own, length = found[positive], np.isfinite(rows[positive]).sum(1)
        least, most = _bounds(low[positive], high[positive], length, own.shape[1])
        if own.ndim == 3:
            least, most = least[..., None], most[..., None]
        found[positive] = np.exp(np.clip(own, least, most))
    return found


def _positive(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the least and the largest value of every row (N,), and whether logarithms are of
    use."""
    low, high = np.nanmin(rows, axis=1), np.nanmax(rows, axis=1)
    return low, high, (low > 0) & (high <= LOG_RATIO * np.where(low > 0, low, 1.0))


def _bounds(
    low: np.ndarray, high: np.ndarray, length: np.ndarray, horizon: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the logarithms of the values (N, h) beyond which there is no forecast but an
    overflow: further outside than the whole range; more than 64 steps after enough values, than a
    growth through the range that goes on, up to ``LOG_RATIO`` times.

    Args:
        low: least values (N,), above 0.
        high: largest values (N,).
        length: known values (N,).
        horizon: steps h.
    """
    least, most = np.log(low)[:, None], np.log(high)[:, None]
    size = most - least
    longer = np.arange(1, horizon + 1) / np.maximum(length, BLOCK)[:, None]
    longer = np.where(length[:, None] >= _ENOUGH, np.maximum(longer, 1.0), 1.0)
    reach = np.maximum(np.minimum(size * longer, np.log(LOG_RATIO)), 1.0)
    return least - reach, most + reach
