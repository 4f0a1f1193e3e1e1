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
# Values at once: arrays of more are new pages each time, which cost more than the arithmetic.
_VALUES = 32768


class Walks(NamedTuple):
    """Series as random walks.

    Attributes:
        likeness: how much each looks like one (N,), from 1 (nothing speaks against it) to 0.
        drift: what each is to be expected to rise per row (N,).
    """

    likeness: np.ndarray
    drift: np.ndarray


def as_walks(series: np.ndarray, season: int = 0) -> Walks:
    """Returns how much series look like random walks, and their drifts.

    What speaks against it are standard errors of its differences: their autocorrelation at lag 1,
    at the season, and over the first lags together (Box and Pierce 1970), and the variance of long
    differences over that of short ones (Lo and MacKinlay 1988). A steady drift does not.
    Differences beyond four median deviations are cut off, so that neither outliers nor restless
    times decide. A short series has little to say against it, nor has one whose values have few
    neighbours: ask for the number of known differences too. A drift that is not twice its standard
    error is none; above, it is believed the more the surer it is.

    Args:
        series: values (N, L), NaN where none was observed; their scales and levels do not matter.
        season: rows of a season that the calendar suggests; 0 or 1 for none.
    """
    size = max(1, _VALUES // max(1, series.shape[1]))
    parts = [_as_walks(series[i : i + size], season) for i in range(0, len(series), size)]
    return Walks(*(np.concatenate(one) for one in zip(*parts))) if parts else _as_walks(series, 0)


def _as_walks(series: np.ndarray, season: int) -> Walks:
    change = np.diff(series, axis=1)
    # In units of a power of two near the largest, so that no square over- or underflows.
    power = np.frexp(np.where(np.isfinite(change), np.abs(change), 0.0).max(1, initial=0.0))[1]
    change = np.ldexp(change, -power[:, None])
    seen = np.isfinite(change)
    count = seen.sum(1)
    known = np.where(seen, change, 0.0)
    biggest = np.abs(known).max(1, initial=0.0)
    some = np.maximum(count, 1)
    mean = known.sum(1) / some
    middle = _median(change, seen)
    bound = _CLIP * _median(np.abs(change - middle[:, None]), seen)
    variance = (np.square(known - mean[:, None]) * seen).sum(1) / some
    often_zero = (seen & (known == 0)).sum(1) > 0.5 * count
    bound = np.where((bound <= 1e-12 * biggest) | often_zero, 3 * np.sqrt(variance), bound)[:, None]
    cut = np.where(seen, np.clip(known - middle[:, None], -bound, bound), 0.0)
    centre = cut.sum(1) / some
    cut = np.where(seen, cut - centre[:, None], 0.0)
    spread = np.sqrt(np.square(cut).sum(1) / some)
    # Of too few values nothing is known, and of a line nothing is surer than its drift.
    little = (count < 4) | (biggest == 0)
    line = ~little & (spread <= 1e-9 * biggest)
    plain = little | line
    spread = np.where(plain, 1.0, spread)
    against, together = _against(
        np.where(plain[:, None], 0.0, cut / spread[:, None]), series, count, season
    )
    likeness = np.exp(-against - np.maximum(together - _QUIET, 0.0) / _FALL_TOGETHER)
    sure = some * ((middle + centre) / spread) ** 2
    drift = mean * np.maximum(0.0, 1.0 - _DRIFT / np.maximum(sure, 1e-300))
    drift = np.where(little, 0.0, np.where(line, mean, drift))
    return Walks(np.where(plain, 1.0, likeness), np.ldexp(drift, power))


def after_two(values: np.ndarray, horizon: int, levels: np.ndarray) -> np.ndarray | None:
    """Returns quantiles (h, Q) after two known values, None after fewer or more.

    One difference d over g rows tells a network nothing of a series' scale. If all differences are
    independent Gaussian ones without a drift, the value k rows after the last one, less that one,
    over |d| √(k / g) follows Student's distribution of one degree, at any scale: its quantile at p
    is tan(π (p - ½)).

    Args:
        values: (n,), NaN where none was observed.
        horizon: rows h after them.
        levels: between 0 and 1 (Q,).
    """
    at = np.flatnonzero(np.isfinite(values))
    if len(at) != 2:
        return None
    first, last = values[at]
    ahead = len(values) - 1 - at[1] + np.arange(1, horizon + 1)
    spread = abs(last - first) * np.sqrt(ahead / (at[1] - at[0]))
    return np.asarray(last + spread[:, None] * np.tan(np.pi * (levels - 0.5)))


def _median(x: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Returns the medians of what was seen in each row (N,), 0 where nothing was."""
    count = seen.sum(1)
    if x.shape[1] == 0:
        return np.zeros(len(x))
    if (count == x.shape[1]).all():
        middle = [(x.shape[1] - 1) // 2, x.shape[1] // 2]
        return np.asarray(0.5 * np.partition(x, middle, axis=1)[:, middle].sum(1))
    ordered = np.sort(np.where(seen, x, np.inf), axis=1)
    rows = np.arange(len(x))
    both = ordered[rows, np.maximum(count - 1, 0) // 2], ordered[rows, count // 2 * (count > 0)]
    return np.where(count > 0, 0.5 * (both[0] + both[1]), 0.0)


def _against(
    cut: np.ndarray, series: np.ndarray, count: np.ndarray, season: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns what speaks against walks (N,), and the sum over lags in standard errors (N,).

    Args:
        cut: differences of unit variance (N, L - 1), 0 where there is none.
        series: the values (N, L).
        count: known differences (N,).
        season: rows; 0 or 1 for none.
    """
    length, some = cut.shape[1], np.maximum(count, 1)
    rest = length - np.isfinite(series).argmax(1)  # differences from the first value on
    root = np.sqrt(some)

    def correlation(lag: int) -> np.ndarray:
        return np.einsum("nl,nl->n", cut[:, lag:], cut[:, : max(length - lag, 0)]) / some

    lags = np.minimum(_LAGS, np.maximum(2, count // 4))
    found = np.stack([correlation(lag) for lag in range(1, _LAGS + 1)], 1)
    found *= np.arange(1, _LAGS + 1) <= lags[:, None]
    first = np.abs(found[:, 0]) * root
    together = (count * np.square(found).sum(1) - lags) / np.sqrt(2 * lags)
    seasonal = np.zeros(len(cut))
    if season > 1:
        seasonal = np.abs(correlation(season)) * root * (season < rest - 2)
    long = np.minimum(np.maximum(2, count // 6), _LONGEST)[:, None]
    walk = np.cumsum(cut, 1)
    at = np.arange(length)
    whole = at >= length - rest[:, None] + long
    moved = walk - np.take_along_axis(walk, np.maximum(at - long, 0), 1)
    ratio = (np.square(moved) * whole).sum(1) / np.maximum(whole.sum(1), 1) / long[:, 0]
    error = np.maximum(np.sqrt(4 * long[:, 0] / 3 / some), 0.2)
    ratio = np.abs(np.log(ratio + 1e-3)) / error
    parts = (np.maximum(one - _QUIET, 0.0) for one in (first, seasonal, ratio))
    return sum(parts, start=np.zeros(len(cut))) / _FALL, together
