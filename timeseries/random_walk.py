"""How much a series looks like a random walk, of which nothing but the last value can be known."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

# A statistic below _QUIET standard errors says nothing; from there on the likeness falls by e with
# every _FALL of them (_FALL_TOGETHER for the sum over lags, which is less sure).
_QUIET, _FALL, _FALL_TOGETHER = 2.0, 2.0, 4.0
_LAGS, _LONGEST = 32, 64
_CLIP = 4.0
# The believed share of a drift is 1 less this over its squared number of standard errors.
_DRIFT = 4.0


class Walk(NamedTuple):
    """A series as a random walk.

    Attributes:
        likeness: how much it looks like one, from 1 (nothing speaks against it) to 0.
        drift: what it is to be expected to rise per row.
    """

    likeness: float
    drift: float


def as_walk(series: np.ndarray, season: int = 0) -> Walk:
    """Returns how much a series looks like a random walk, and its drift.

    What speaks against it are standard errors of its differences: their autocorrelation at lag 1,
    at the season, and over the first lags together (Box and Pierce 1970), and the variance of long
    differences over that of short ones (Lo and MacKinlay 1988). A steady drift does not.
    Differences beyond four median deviations are cut off, so that neither outliers nor restless
    times decide. A short series has little to say against it, nor has one whose values have few
    neighbours: ask for the number of known differences too. A drift that is not twice its standard
    error is none; above, it is believed the more the surer it is.

    Args:
        series: values (n,), NaN where none was observed; its scale and level do not matter.
        season: rows of a season that the calendar suggests; 0 or 1 for none.
    """
    change = np.diff(series)
    seen = np.isfinite(change)
    count = int(seen.sum())
    if count < 4 or not change[seen].any():
        return Walk(1.0, 0.0)
    known = change[seen]
    middle = np.median(known)
    bound = _CLIP * np.median(np.abs(known - middle))
    if bound <= 1e-12 * np.abs(known).max() or (known == 0).mean() > 0.5:
        bound = 3 * known.std()
    cut = np.clip(np.where(seen, change, middle) - middle, -bound, bound)
    centre = cut[seen].mean()
    cut = np.where(seen, cut - centre, 0.0)
    spread = np.sqrt(np.square(cut).sum() / count)
    if spread <= 1e-9 * np.abs(known).max():  # a line: nothing is surer than its drift
        return Walk(1.0, known.mean())
    cut /= spread

    def correlation(lag: int) -> float:
        return float(cut[lag:] @ cut[:-lag]) / count

    lags = int(min(_LAGS, max(2, count // 4)))
    found = np.array([correlation(lag) for lag in range(1, lags + 1)])
    first = abs(found[0]) * np.sqrt(count)
    together = (count * np.square(found).sum() - lags) / np.sqrt(2 * lags)
    seasonal = abs(correlation(season)) * np.sqrt(count) if 1 < season < len(cut) - 2 else 0.0
    long = min(max(2, count // 6), _LONGEST)
    walk = np.cumsum(cut)
    ratio = np.square(walk[long:] - walk[:-long]).mean() / long
    error = max(np.sqrt(4 * long / 3 / count), 0.2)
    ratio = abs(np.log(ratio + 1e-3)) / error
    against = sum(max(one - _QUIET, 0.0) for one in (first, seasonal, ratio)) / _FALL
    likeness = float(np.exp(-against - max(together - _QUIET, 0.0) / _FALL_TOGETHER))
    sure = count * ((middle + centre) / spread) ** 2
    return Walk(likeness, known.mean() * max(0.0, 1.0 - _DRIFT / max(sure, 1e-300)))
