"""The zero-shot forecaster: forecasts of any series with the packaged weights, and no training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from longseq.core.checkpoints.safe import load_weights
from longseq.core.checks import check_positive
from longseq.core.errors import ConfigError, DataError
from longseq.timeseries.conformal import check_levels
from longseq.timeseries.data.panel import Panel
from longseq.timeseries.long_frame import BASELINE_COLUMN, long_frame
from longseq.timeseries.models.zero_shot import BLOCK, MAX_CONTEXT, QUANTILES, ZeroShot
from longseq.timeseries.quantiles import at_levels, is_never_negative, seasonal_naive
from longseq.timeseries.random_walk import as_walk

PACKAGED = Path(__file__).parent / "checkpoints" / "zero_shot.safetensors"
LEVELS = np.array(QUANTILES)
NAME = "ZeroShot"
_MEDIAN = QUANTILES.index(0.5)


# Logarithms are taken of positive series whose largest value is at most so many times the least.
LOG_RATIO = 1000.0
# What the packaged forecaster makes of a series that looks like a random walk; the card says what
# chose it. Of a long one the median goes by _PULL to the walk's forecast: not at all at 2^7 known
# values with neighbours, wholly from 2^8 on. Of a short one, wholly to 2^5 values, less to 2^8, not
# from there on, the logarithm of the intervals' width changes by _NARROWED, and by _WIDENED times
# the likeness.
_PULL, _PULLED = 0.5, (7.0, 8.0)
_NARROWED, _WIDENED, _SHORT = -0.15, 0.32, (5.0, 8.0)


class Quantiles:
    """Quantile forecasts of any number of series by one network.

    Args:
        model: a ``models.zero_shot.ZeroShot``, in evaluation mode; the packaged one if None.
        copies: forecast two copies of a series and average: one of its logarithms (where all values
            are positive), with the season that the calendar suggests; and one turned upside down,
            whose season the network finds itself. False forecasts the series alone.
        calibrated: let the number of known values, and how much they look like a random walk, move
            medians towards the last value and change the widths of intervals; of the packaged
            network if None.
        device: that the network is moved to; None leaves it where it is.
    """

    def __init__(
        self,
        model: ZeroShot | None = None,
        copies: bool = True,
        calibrated: bool | None = None,
        device: str | None = None,
    ) -> None:
        self.calibrated = model is None if calibrated is None else calibrated
        if model is None:
            model = ZeroShot()
            load_weights(PACKAGED, model)
        self.model, self.copies = model.eval(), copies
        if device is not None:
            self.model.to(device)

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
        values that are never negative and sometimes zero has no negative quantile.

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
        done = 0
        # Series of about one length go together, so that little is padding.
        width = np.array([_padded(len(one), self.model.patch) for one in recent], int)
        for size in np.unique(width):
            members = np.flatnonzero(width == size)
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
            if is_never_negative(one):
                out[i] = np.maximum(out[i], 0.0)
        return out

    def _forecast(self, rows: np.ndarray, horizon: int, season: int) -> np.ndarray:
        rows = np.where(np.isfinite(rows), rows, np.nan)
        if self.copies:
            turned = -self._blocks(-rows, horizon, 0)[..., ::-1]
            found = (self._in_logarithms(rows, horizon, season) + turned) / 2
        else:
            found = self._blocks(rows, horizon, season)
        return _calibrate(found, rows, season) if self.calibrated else found

    def _in_logarithms(self, rows: np.ndarray, horizon: int, season: int) -> np.ndarray:
        """Returns quantiles (N, h, 9) that were forecast of the logarithms where these are of use,
        which are the logarithms' quantiles."""
        low, high, positive = _positive(rows)
        taken = rows.copy()
        taken[positive] = np.log(rows[positive])
        found = self._blocks(taken, horizon, season)
        if positive.any():
            least, most = _bounds(low[positive][:, None, None], high[positive][:, None, None])
            found[positive] = np.exp(np.clip(found[positive], least, most))
        return found

    def _blocks(self, rows: np.ndarray, horizon: int, season: int) -> np.ndarray:
        """Returns quantiles (N, h, 9), 64 steps at a time."""
        # Differences are taken in float64: a level of 1e9 leaves nothing of them in float32.
        level = np.nanmean(rows, axis=1, keepdims=True)
        values = rows - level
        found: list[np.ndarray] = []
        carried = np.zeros((len(rows), 1, len(QUANTILES)))
        for _ in range(-(-horizon // BLOCK)):
            block = self._block(values[:, -MAX_CONTEXT:], season)
            found.append(_grow(block, carried))
            carried = np.sqrt(carried**2 + _growth(block) ** 2)
            values = np.concatenate([values, block[..., _MEDIAN]], axis=1)
        return np.concatenate(found, axis=1)[:, :horizon] + level[..., None]

    @torch.inference_mode()
    def _block(self, values: np.ndarray, season: int) -> np.ndarray:
        size = np.nanmax(np.abs(values), axis=1, keepdims=True)
        size = np.where(size > 0, size, 1.0)
        x = torch.from_numpy((values / size).astype(np.float32))
        device = next(self.model.parameters()).device
        hint = torch.full((len(x),), season if season > 1 else 0, device=device)
        x = x.to(device)
        out = self.model(torch.nan_to_num(x), ~x.isnan(), hint)
        quantiles = out.quantiles[-1] * out.spread.unsqueeze(-1) + out.level.unsqueeze(-1)
        return quantiles.cpu().double().numpy() * size[..., None]


def _positive(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the least and the largest value of every row (N,), and whether logarithms are of
    use."""
    low, high = np.nanmin(rows, axis=1), np.nanmax(rows, axis=1)
    return low, high, (low > 0) & (high <= LOG_RATIO * np.where(low > 0, low, 1.0))


def _calibrate(found: np.ndarray, rows: np.ndarray, season: int) -> np.ndarray:
    """Returns quantiles (N, h, 9) in view of how much the series (N, L) look like random walks."""
    out, ahead = np.empty_like(found), np.arange(1, found.shape[1] + 1)
    low, high, positive = _positive(rows)
    for i, row in enumerate(rows):
        at = np.flatnonzero(np.isfinite(row))
        series = np.log(row[at[0] :]) if positive[i] else row[at[0] :]
        walk = as_walk(series, season)
        # Values without neighbours have nothing to say against a walk: they do not count.
        joined = 1 + np.isfinite(np.diff(series)).sum()
        pull = _PULL * walk.likeness * _between(np.log2(joined), _PULLED)
        short = 1.0 - _between(np.log2(len(at)), _SHORT)
        share = np.exp(short * (_NARROWED + _WIDENED * walk.likeness))
        middle = found[i, :, _MEDIAN : _MEDIAN + 1]
        out[i] = middle + share * (found[i] - middle)
        if pull > 0:
            plain = series[at[-1] - at[0]] + walk.drift * (ahead + len(row) - 1 - at[-1])
            if positive[i]:
                least, most = _bounds(low[i], high[i])
                plain = np.exp(np.clip(plain, least, most))
            out[i] += pull * (plain[:, None] - middle)
    return out


def _bounds(low: Any, high: Any) -> tuple[Any, Any]:
    """Returns the logarithms of the values beyond which there is no forecast but an overflow:
    further outside than the whole range.

    Args:
        low: least values, above 0; an array or a number.
        high: largest values.
    """
    least, most = np.log(low), np.log(high)
    bound = np.maximum(most - least, 1.0)
    return least - bound, most + bound


def _between(x: float, ends: tuple[float, float]) -> float:
    """Returns 0 up to the first end, 1 from the second on, and the share of the way between."""
    return float(np.clip((x - ends[0]) / (ends[1] - ends[0]), 0.0, 1.0))


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
    grown = np.maximum(around[:, -1:] ** 2 - around[:, :1] ** 2, 0.0)
    return np.sqrt(grown)


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
) -> pd.DataFrame:
    """Forecasts every series of a panel with the packaged weights.

    Args:
        panel: the series, of any lengths, with gaps or without.
        horizon: rows h.
        cutoffs: first unknown rows; where every series ends if None.
        levels: percentages of the intervals; those above 80 and below 20 are extrapolated in the
            normal deviate.
        batch_size: series at once.
        season: rows of a season; the calendar's usual one if None, 1 for none.
        quantiles: the network; the packaged one if None.
        progress: called with the number of forecasts that are done.

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
    network = quantiles or Quantiles()
    found = network.forecast(contexts, horizon, usual, batch_size, progress)
    values = {NAME: found[..., list(LEVELS).index(0.5)]}
    for level in levels:
        tails = np.array([0.5 - level / 200, 0.5 + level / 200])
        low_high = at_levels(found, LEVELS, tails)
        values[f"{NAME}-lo-{level}"], values[f"{NAME}-hi-{level}"] = (
            low_high[..., 0],
            low_high[..., 1],
        )
    naive = [seasonal_naive(one, usual, horizon) for one in known]
    values[BASELINE_COLUMN] = np.stack(naive)
    return long_frame(panel.extended(horizon), rows, series, values)
