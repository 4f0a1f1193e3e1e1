"""Variables that cannot be negative: anomalies whose totals stay positive."""

from __future__ import annotations

import numpy as np

# Below this share of the climatology a total falls off exponentially instead of linearly.
KNEE = 0.1
# A cell's climatology counts as at least this share of the area's mean: some cells are dry.
_LEAST = 0.01


def reference(climatology: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns the scale of a cell's relative values (Y, X), above zero.

    Args:
        climatology: of the baseline (Y, X), at least zero.
        weights: (Y, X), summing to one.
    """
    level = float((climatology * weights).sum())
    return np.maximum(climatology, _LEAST * level if level > 0 else 1.0)


def keep_positive(anomalies: np.ndarray, climatology: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Returns anomalies whose totals are above zero.

    With r = (climatology + anomaly) / scale, the total is scale · r for r ≥ 0.1 and
    scale · 0.1 exp((r - 0.1) / 0.1) below, which is smooth: ordinary anomalies stay as they are, to
    the last digit.

    Args:
        anomalies: (…, Y, X).
        climatology: (Y, X).
        scale: of ``reference`` (Y, X).
    """
    share = (climatology + anomalies) / scale
    low = KNEE * np.exp((np.minimum(share, KNEE) - KNEE) / KNEE)
    return np.where(share < KNEE, scale * low - climatology, anomalies)
