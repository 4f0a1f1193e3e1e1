"""How far up values that are mostly zero, and come at no regular times, may reach."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from longseq.timeseries.quantiles import is_never_negative

# Weight of the newest row in the share of rows with a value (Croston's and TSB's usual range is
# 0.01 to 0.1; the docs say on what it was chosen).
_NEWEST = 0.02
# Values come regularly if the autocorrelation of whether there is one exceeds so many standard
# errors, or this, at any lag up to half the length; they have ended if so few zeros in a row as at
# the end would come by chance this seldom.
_ERRORS, _MOST, _SELDOM = 4.0, 0.5, 0.01


def reach_of_intermittent(histories: Iterable[np.ndarray], level: float) -> np.ndarray:
    """Returns what a quantile of every series is at least (N, 1): −∞ for all but intermittent ones.

    Of more than half zeros, no negative value, and values at no regular times, the quantile is that
    of a mixture: a value comes with the probability p, the exponentially smoothed share of rows
    that had one, and is then one of those that came before. Below 1 - p it is 0. A network of nine
    quantiles, most of which are 0 then, says nothing of what lies above them.

    Args:
        histories: known values of every series (n,), NaN where none was observed.
        level: of the quantile, between ½ and 1.
    """
    return np.array([_reach(one[np.isfinite(one)], level) for one in histories])[:, None]


def _reach(values: np.ndarray, level: float) -> float:
    on = values > 0
    if not is_never_negative(values) or on.mean() >= 0.5 or not on.any() or not _at_random(on):
        return -np.inf
    weight = (1 - _NEWEST) ** np.arange(len(on))[::-1]
    share = float((weight * on).sum() / weight.sum())
    if share <= 1 - level:
        return 0.0
    return float(np.quantile(values[on], 1 - (1 - level) / share, method="higher"))


def _at_random(on: np.ndarray) -> bool:
    """Returns whether rows with a value (n,) come at random, and have not ended."""
    size, share = len(on), on.mean()
    if (1 - share) ** int(on[::-1].argmax()) < _SELDOM:
        return False
    around = on - share
    power = np.abs(np.fft.rfft(around, 2 * size)) ** 2
    correlation = np.fft.irfft(power)[: size // 2 + 1]
    most = np.abs(correlation[1:] / correlation[0]).max(initial=0.0)
    return bool(most <= min(_ERRORS / np.sqrt(size), _MOST))
