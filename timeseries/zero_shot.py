"""The zero-shot forecaster: forecasts of any series with the packaged weights, and no training."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch

from longseq.core.checks import check_positive
from longseq.core.errors import ConfigError, DataError
from longseq.timeseries.calibrated import panel_intervals
from longseq.timeseries.conformal import check_levels
from longseq.timeseries.data.panel import Panel
from longseq.timeseries.intermittent import reach_of_intermittent
from longseq.timeseries.logarithms import from_logarithms, logarithms
from longseq.timeseries.long_frame import BASELINE_COLUMN, long_frame
from longseq.timeseries.models.plain_forecasts import BLOCK
from longseq.timeseries.models.zero_shot import (
    MAX_CONTEXT,
    QUANTILES,
    MeanOfNetworks,
    ZeroShot,
)
from longseq.timeseries.packaged import packaged_network
from longseq.timeseries.quantiles import at_levels, floors, is_never_negative, seasonal_naive
from longseq.timeseries.random_walk import after_two, as_walks

LEVELS = np.array(QUANTILES)
NAME = "ZeroShot"
_MEDIAN = QUANTILES.index(0.5)


# Patches that go through the network at once: more do not stay in the caches.
_PATCHES = 8192
# What the packaged forecaster makes of a series that looks like a random walk; the card says what
# chose it. Of a long one the median goes by _PULL to the walk's forecast: not at all at 2^7 known
# values with neighbours, wholly from 2^8 on. Of a short one, wholly to 2^5 values, less to 2^8, not
# from there on, the logarithm of the intervals' width changes by _SPREAD, and by _WIDENED times
# the likeness.
_PULL, _PULLED = 0.5, (7.0, 8.0)
_SPREAD, _WIDENED, _SHORT = 0.05, 0.2, (5.0, 8.0)


class Quantiles:
    """Quantile forecasts of any number of series by a network, or the mean of several.

    Args:
        model: of ``models.zero_shot``; ``packaged_network()`` if None.
        copies: forecast two copies of a series and average: one of its logarithms (where all values
            are positive), with the season that the calendar suggests; and one turned upside down,
            whose season the network finds itself. False forecasts the series alone.
        calibrated: let the number of known values, and how much they look like a random walk, move
            medians towards the last value and change the widths of intervals; of the packaged
            network if None.
        device: that a copy of the network is moved to; None for the network's own.
    """

    def __init__(
        self,
        model: ZeroShot | MeanOfNetworks | None = None,
        copies: bool = True,
        calibrated: bool | None = None,
        device: str | None = None,
    ) -> None:
        self.calibrated = model is None if calibrated is None else calibrated
        own = packaged_network() if model is None else model
        kind = next(own.parameters()).device.type if device is None else device
        # In float32 a batch's size would change forecasts by 1e-5 of a series' deviation. Apple's
        # GPUs have no other type.
        dtype = torch.float32 if str(kind).startswith("mps") else torch.float64
        self.model = copy.deepcopy(own).eval().to(device, dtype)
        self.copies = copies

    def forecast(
        self,
        contexts: Sequence[np.ndarray],
        horizon: int,
        season: int = 0,
        batch_size: int = 64,
        progress: Callable[[int], None] | None = None,
    ) -> np.ndarray:
        """Returns the quantiles 0.1 … 0.9 of the rows after every context, float64 (N, h, 9).

        Steps beyond 64 are forecast in turn from the medians of those before; the spread of a
        forecast that has grown until there is kept and added. A context of counts or of other
        values that are never negative and sometimes zero (or below a thousandth of the largest) has
        no negative quantile. Calibrated, two known values are followed by a random walk: see
        ``random_walk.after_two``.

        Args:
            contexts: known values of every series (n,), at least one of them a number; the last
                2,048 are read, NaN is what was not observed.
            horizon: rows h.
            season: rows of a season that the calendar suggests; 0 or 1 for none.
            batch_size: series at once; the result does not depend on it beyond rounding.
            progress: called with the number of series that are done.

        Raises:
            ConfigError: for a context without values, or a horizon below 1.
        """
        check_positive("horizon", horizon)
        check_positive("batch_size", batch_size)
        out = np.empty((len(contexts), horizon, len(QUANTILES)))
        recent = [np.asarray(one, np.float64)[-MAX_CONTEXT:] for one in contexts]
        for i, one in enumerate(recent):
            if not np.isfinite(one).any():
                raise ConfigError(f"context {i} holds no number")
        # After a gap of a block and more the network would see nothing: what follows the last value
        # is forecast, through the gap.
        gaps = [int(np.isfinite(one[::-1]).argmax()) for one in recent]
        done = sum(gap >= BLOCK for gap in gaps)
        for i in np.flatnonzero(np.array(gaps) >= BLOCK):
            before = recent[i][: -gaps[i]]
            out[i] = self.forecast([before], gaps[i] + horizon, season)[0, gaps[i] :]
        # Series of about one length go together, so that little is padding.
        width = np.array([_padded(len(one), self.model.patch) for one in recent], int)
        for size in np.unique(width):
            members = np.flatnonzero((width == size) & (np.array(gaps) < BLOCK))
            for start in range(0, len(members), batch_size):
                chosen = members[start : start + batch_size]
                rows = np.full((len(chosen), size), np.nan)
                for row, i in zip(rows, chosen):
                    row[size - len(recent[i]) :] = recent[i]
                out[chosen] = self._forecast(rows, horizon, season)
                done += len(chosen)
                if progress is not None:
                    progress(done)
        for i, one in enumerate(recent):
            if self.calibrated and (two := after_two(one, horizon, LEVELS)) is not None:
                out[i] = two
            if is_never_negative(one):
                out[i] = np.maximum(out[i], 0.0)
        return out

    def _forecast(self, rows: np.ndarray, horizon: int, season: int) -> np.ndarray:
        rows = np.where(np.isfinite(rows), rows, np.nan)
        hint = np.full(len(rows), season if season > 1 else 0)
        if self.copies:
            # Both copies of a series go through the network together.
            both = np.concatenate([logarithms(rows), -rows])
            both = self._blocks(both, horizon, np.concatenate([hint, np.zeros_like(hint)]))
            own, turned = np.split(both, 2)
            found = (from_logarithms(own, rows) - turned[..., ::-1]) / 2
        else:
            found = self._blocks(rows, horizon, hint)
        return _calibrate(found, rows, season) if self.calibrated else found

    def _blocks(self, rows: np.ndarray, horizon: int, hint: np.ndarray) -> np.ndarray:
        """Returns quantiles (N, h, 9), 64 steps at a time.

        Args:
            rows: series (N, L).
            horizon: rows h.
            hint: rows of a season (N,), 0 for none.
        """
        # Differences are taken in float64: a level of 1e9 leaves nothing of them in float32.
        level = np.nanmean(rows, axis=1, keepdims=True)
        values = rows - level
        # A power of two near the largest, so that squares of spreads neither over- nor underflow.
        power = np.frexp(np.nanmax(np.abs(values), axis=1, keepdims=True))[1]
        values = np.ldexp(values, -power)
        # What a series that never changes is measured by: a picofarad is not taken relative to 1.
        unit = np.where(level == 0, 1.0, np.minimum(np.abs(level), 1.0))
        found: list[np.ndarray] = []
        carried = np.zeros((len(rows), 1, len(QUANTILES)))
        for _ in range(-(-horizon // BLOCK)):
            recent = values[:, -MAX_CONTEXT:]
            # As many series at once as the caches hold.
            size = max(1, _PATCHES * self.model.patch // recent.shape[1])
            parts = [slice(i, i + size) for i in range(0, len(rows), size)]
            block = np.concatenate(
                [self._block(recent[one], hint[one], unit[one]) for one in parts]
            )
            grown = _grow(block, carried)
            # Medians that were appended look quiet to the network, so that the spread of a random
            # walk would stop to grow: the first block, after known values alone, says how it goes.
            found.append(_at_least(grown, _ahead(found[0], len(found))) if found else grown)
            carried = np.sqrt(carried**2 + _growth(block) ** 2)
            values = np.concatenate([values, block[..., _MEDIAN]], axis=1)
        whole = np.concatenate(found, axis=1)[:, :horizon]
        return np.ldexp(whole, power[..., None]) + level[..., None]

    @torch.inference_mode()
    def _block(self, values: np.ndarray, hint: np.ndarray, unit: np.ndarray) -> np.ndarray:
        size = np.nanmax(np.abs(values), axis=1, keepdims=True)
        size = np.where(size > 0, size, unit)
        device = next(self.model.parameters()).device
        x = torch.from_numpy((values / size).astype(np.float32)).to(device)
        out = self.model(torch.nan_to_num(x), ~x.isnan(), torch.from_numpy(hint).to(device))
        quantiles = out.quantiles[-1] * out.spread.unsqueeze(-1) + out.level.unsqueeze(-1)
        return quantiles.cpu().double().numpy() * size[..., None]


def _calibrate(found: np.ndarray, rows: np.ndarray, season: int) -> np.ndarray:
    """Returns quantiles (N, h, 9) in view of how much the series (N, L) look like random walks."""
    seen = np.isfinite(rows)
    series = logarithms(rows)
    walk = as_walks(series, season)
    # Values without neighbours have nothing to say against a walk: they do not count.
    joined = 1 + np.isfinite(np.diff(series)).sum(1)
    pull = _PULL * walk.likeness * _between(np.log2(joined), _PULLED)
    short = 1.0 - _between(np.log2(seen.sum(1)), _SHORT)
    share = np.exp(short * (_SPREAD + _WIDENED * walk.likeness))
    middle = found[..., _MEDIAN : _MEDIAN + 1]
    out = middle + share[:, None, None] * (found - middle)
    # The gap before the forecast belongs to the way that a drift has gone.
    late = seen[:, ::-1].argmax(1)
    last = series[np.arange(len(rows)), rows.shape[1] - 1 - late]
    ahead = late[:, None] + np.arange(1, found.shape[1] + 1)
    plain = from_logarithms(last[:, None] + walk.drift[:, None] * ahead, rows)
    out += (pull[:, None] * (plain - middle[..., 0]))[..., None]
    return out


def _between(x: np.ndarray, ends: tuple[float, float]) -> np.ndarray:
    """Returns 0 up to the first end, 1 from the second on, and the share of the way between."""
    return np.clip((x - ends[0]) / (ends[1] - ends[0]), 0.0, 1.0)


def _padded(length: int, patch: int) -> int:
    """Returns the length that a context is padded to, an eighth longer at most but for short ones.

    It follows from the context alone, so that neighbours in a batch change nothing.
    """
    step = patch
    while step * 16 < length:
        step *= 2
    return max(-(-length // step) * step, patch)


def _growth(block: np.ndarray) -> np.ndarray:
    """Returns what of the spread at the end of a block is carried on (N, 1, 9): all of it where it
    grew step by step, nothing where it was the same at the first step."""
    around = block - block[..., _MEDIAN : _MEDIAN + 1]
    return _outwards(np.maximum(around[:, -1:] ** 2 - around[:, :1] ** 2, 0.0))


def _ahead(first: np.ndarray, blocks: int) -> np.ndarray:
    """Returns the least spread of the block after so many (N, 64, 9): its square grows by a power p
    of the number of steps, 0 to 1, where the largest one of the first block grew by the power
    (1 + p) / 2 over its second half. Of a random walk p is 1, around a level about 0."""
    square = np.square(first - first[..., _MEDIAN : _MEDIAN + 1])
    size = square.shape[1]
    half, whole = (square[:, :n].max(1, keepdims=True) for n in (size // 2, size))
    doubled = whole / np.where(half > 0, half, np.where(whole > 0, whole, 1.0))
    power = np.clip(2 * np.log2(np.where(whole > 0, doubled, 1.0)) - 1, 0.0, 1.0)
    ahead = blocks + np.arange(1, size + 1)[:, None] / size
    return _outwards(whole * ahead**power)


def _outwards(square: np.ndarray) -> np.ndarray:
    """Returns the roots of squared spreads (N, h, 9), of no quantile less than of one nearer to the
    median, so that none cross."""
    below = np.maximum.accumulate(square[..., _MEDIAN::-1], axis=-1)[..., ::-1]
    above = np.maximum.accumulate(square[..., _MEDIAN:], axis=-1)
    return np.sqrt(np.concatenate([below[..., :-1], above], axis=-1))


def _at_least(block: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Returns a block whose quantiles lie as far from the median as a spread (N, h, 9) at least."""
    middle = block[..., _MEDIAN : _MEDIAN + 1]
    return middle + np.sign(LEVELS - 0.5) * np.maximum(np.abs(block - middle), spread)


def _grow(block: np.ndarray, carried: np.ndarray) -> np.ndarray:
    """Returns a block whose spread includes what was carried from the block before."""
    middle = block[..., _MEDIAN : _MEDIAN + 1]
    around = block - middle
    return middle + np.sign(LEVELS - 0.5) * np.sqrt(around**2 + carried**2)


def zero_shot_frame(
    panel: Panel,
    horizon: int,
    cutoffs: Sequence[int] | None = None,
    levels: Sequence[int] = (80,),
    batch_size: int = 64,
    season: int | None = None,
    quantiles: Quantiles | None = None,
    progress: Callable[[int], None] | None = None,
    calibrate: bool | None = None,
) -> pd.DataFrame:
    """Forecasts every series of a panel with the packaged weights.

    Args:
        panel: the series, of any lengths, with gaps or without.
        horizon: rows h.
        cutoffs: first unknown rows; where every series ends if None.
        levels: percentages of the intervals; those above 80 and below 20 are extrapolated in the
            normal deviate, and reach as far up as ``reach_of_intermittent``.
        batch_size: series at once.
        season: rows of a season; the calendar's usual one if None, 1 for none.
        quantiles: the network; the packaged one if None.
        progress: called with the number of forecasts that are done.
        calibrate: scale the intervals by the errors one horizon before each cutoff; None where
            there are at least 50 series: see ``calibrated.panel_intervals``.

    Returns:
        Columns ``unique_id``, ``ds``, ``cutoff``, ``y``, ``ZeroShot`` (the median),
        ``ZeroShot-lo-80``, ``ZeroShot-hi-80``, …, and ``SeasonalNaive``. A series that has no value
        before a cutoff has no rows there.

    Raises:
        DataError: if no series has a value before its cutoff.
        ConfigError: for a cutoff outside the panel, or a wrong level or horizon.
    """
    check_levels(levels)
    check_positive("horizon", horizon)
    usual = panel.season() if season is None else check_positive("season", season)
    every = np.arange(len(panel.ids))
    if cutoffs is None:
        rows, series = panel.ends, every
    else:
        for row in cutoffs:
            if not 1 <= row <= len(panel):
                raise ConfigError(
                    f"cutoff {row} lies outside the {len(panel)} rows of {panel.source}"
                )
        at = np.asarray(list(cutoffs), int)
        rows, series = np.tile(at, len(every)), np.repeat(every, len(at))
    begun = panel.starts[series] < rows
    if cutoffs is None and not begun.all():
        empty = panel.ids[int(series[~begun][0])]
        raise DataError(f"the series {empty!r} has no value", path=panel.source)
    rows, series = rows[begun], series[begun]
    if len(rows) == 0:
        raise DataError("no series has begun at these cutoffs", path=panel.source)
    carried = panel.carried()
    contexts = [panel.values[panel.starts[c] : row, c] for row, c in zip(rows, series)]
    known = [carried[panel.starts[c] : row, c] for row, c in zip(rows, series)]
    single = np.flatnonzero([np.isfinite(one).sum() == 1 for one in contexts])
    if levels and len(single):
        name = panel.ids[int(series[single[0]])]
        more = f" and {len(single) - 1} forecasts more" if len(single) > 1 else ""
        print(
            "note: a single value says nothing of how a series varies: do not rely on the "
            f"intervals after it, of {name!r}{more}",
            file=sys.stderr,
        )
    network = quantiles or Quantiles()
    found = network.forecast(contexts, horizon, usual, batch_size, progress)
    if levels:
        found = panel_intervals(
            lambda earlier: network.forecast(earlier, horizon, usual, batch_size),
            *(contexts, found, None if cutoffs is None else rows, calibrate),
        )
    values = {NAME: found[..., list(LEVELS).index(0.5)]}
    floor = floors(one[-MAX_CONTEXT:] for one in contexts)
    for level in levels:
        tails = np.array([0.5 - level / 200, 0.5 + level / 200])
        low_high = at_levels(found, LEVELS, tails)
        # Beyond the nine quantiles ends are extrapolated, and those of counts too may fall below 0.
        low_high = np.maximum(low_high, floor[..., None])
        if tails[1] > LEVELS[-1]:
            seen = (one[-MAX_CONTEXT:] for one in contexts)
            least = reach_of_intermittent(seen, float(tails[1]))
            low_high[..., 1] = np.maximum(low_high[..., 1], least)
        values[f"{NAME}-lo-{level}"], values[f"{NAME}-hi-{level}"] = (
            low_high[..., 0],
            low_high[..., 1],
        )
    if cutoffs is None:
        _say_below_zero(contexts, values, [panel.ids[c] for c in series])
    naive = [seasonal_naive(one, usual, horizon) for one in known]
    values[BASELINE_COLUMN] = np.stack(naive)
    return long_frame(panel.extended(horizon), rows, series, values)


def _say_below_zero(
    contexts: Sequence[np.ndarray], values: dict[str, np.ndarray], ids: Sequence[str]
) -> None:
    """Names series that were never negative and whose forecasts are: a balance may become so, a
    weight may not, and values above 0 do not tell which they are."""
    least = np.min([one.min(axis=1) for one in values.values()], axis=0)
    found = [i for i in np.flatnonzero(least < 0) if np.nanmin(contexts[i]) >= 0]
    if found:
        more = f" and {len(found) - 1} series more" if len(found) > 1 else ""
        print(
            f"note: forecasts or lower ends of {ids[found[0]]!r}{more} fall below 0, which the "
            "known values never did: where there is nothing below 0, take 0",
            file=sys.stderr,
        )
