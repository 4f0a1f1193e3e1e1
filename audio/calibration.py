"""From a model's log-odds to a probability and a cautious verdict, settled on validation songs
alone."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

SYNTHETIC, UNCERTAIN, NO_SIGN = "synthetic", "uncertain", "no sign"
# Of a file that decodes, but to nothing that has a score; and of one that does not decode.
UNSCORABLE, UNREADABLE = "unscorable", "unreadable"
# The narrowest band of probabilities that is called uncertain, and the error that each side of it
# may make.
_NARROWEST, _ERROR = (0.35, 0.65), 0.05


@dataclass(frozen=True)
class Segment:
    """A stretch of a song and its score.

    Args:
        start: s.
        end: s.
        logit: mean log-odds that it is synthetic, before calibration.
        weight: of this segment in the song's mean, for example its number of frames.
    """

    start: float
    end: float
    logit: float
    weight: float


@dataclass(frozen=True)
class Calibration:
    """p = σ(slope · logit + offset); between ``low`` and ``high`` the verdict is "uncertain".

    Args:
        slope: at least 0.
        offset: added.
        low: at most 5% of the synthetic validation windows lie below.
        high: at most 5% of the real validation windows lie above.
        windows: number of validation windows that it was settled on; 0 for an uncalibrated model.
    """

    slope: float = 1.0
    offset: float = 0.0
    low: float = 0.0
    high: float = 1.0
    windows: int = 0

    def probability(self, logit: float) -> float:
        """Returns the calibrated probability of being synthetic; NaN for a log-odds of NaN."""
        z = self.slope * logit + self.offset
        if math.isnan(z):
            return math.nan
        return 1 / (1 + math.exp(-z)) if z > -700 else 0.0

    def verdict(self, probability: float) -> str:
        """Returns the verdict on a probability; always "uncertain" for an uncalibrated model.

        What has no probability is "unscorable", whatever the calibration.
        """
        if math.isnan(probability):
            return UNSCORABLE
        if not self.windows or self.low <= probability <= self.high:
            return UNCERTAIN
        return SYNTHETIC if probability > self.high else NO_SIGN

    def to_dict(self) -> dict[str, Any]:
        """Returns the plain values, for a checkpoint."""
        return asdict(self)


def calibrate(logits: np.ndarray, targets: np.ndarray) -> Calibration:
    """Fits a calibration by logistic regression on the log-odds, both classes weighing the same
    (Platt 1999).

    Args:
        logits: of validation windows (N,).
        targets: 1 for synthetic (N,).

    Returns:
        The uncalibrated one if a class is missing; slope 0, and so "uncertain" everywhere, if
        higher logits do not go with the synthetic class.
    """
    from sklearn.linear_model import LogisticRegression

    fake = targets > 0.5
    if fake.all() or not fake.any() or not np.isfinite(logits).all():
        return Calibration()
    scale = max(float(np.std(logits)), 1e-6)
    fit = LogisticRegression(class_weight="balanced", C=1.0).fit(logits[:, None] / scale, fake)
    slope, offset = float(fit.coef_[0, 0]) / scale, float(fit.intercept_[0])
    if slope <= 0:
        slope, offset = 0.0, 0.0
    p = 1 / (1 + np.exp(-(slope * logits + offset)))
    low = min(_NARROWEST[0], float(np.quantile(p[fake], _ERROR)))
    high = max(_NARROWEST[1], float(np.quantile(p[~fake], 1 - _ERROR)))
    return Calibration(slope, offset, low, high, len(logits))
