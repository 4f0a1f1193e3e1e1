"""Effects of future covariates in closed form, beside which any model forecasts what is left."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd

from longseq.timeseries.baseline_frame import with_naive
from longseq.timeseries.data.covariates import Covariates
from longseq.timeseries.data.panel import Panel
from longseq.timeseries.long_frame import BASELINE_COLUMN
from longseq.timeseries.quantiles import floors, is_never_negative

_WINDOW, _SEASONS = 28, 4  # rows, or seasons, of the moving average that is taken out
_PRIOR = 8.0  # rows of its own that a series needs to count as much as all series together


def _trend(x: np.ndarray, width: int) -> np.ndarray:
    """Returns centred moving averages over ``2 width + 1`` rows of (T, C) without its NaN."""
    known = ~np.isnan(x)
    sums = np.cumsum(np.pad(np.where(known, x, 0.0), ((1, 0), (0, 0))), axis=0)
    counts = np.cumsum(np.pad(known, ((1, 0), (0, 0))), axis=0)
    high = np.minimum(np.arange(len(x)) + width + 1, len(x))
    low = np.maximum(np.arange(len(x)) - width, 0)
    return (sums[high] - sums[low]) / np.maximum(counts[high] - counts[low], 1)


def _rest(x: np.ndarray, width: int, season: int) -> np.ndarray:
    """Returns (T, C) less its moving average and the means of the season's rows; 0 where NaN."""
    rest = x - _trend(x, width)
    if 1 < season <= len(x) // 2:
        for phase in range(season):
            part = rest[phase::season]
            known = ~np.isnan(part)
            part -= np.where(known, part, 0).sum(0) / np.maximum(known.sum(0), 1)
    return np.nan_to_num(rest)


def covariate_effects(
    panel: Panel, rows: np.ndarray, horizon: int, season: int, until: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Returns what the future covariates add to every value.

    Values and covariates both lose a moving average and the season's means, and what is left of the
    values is regressed on what is left of the covariates (Frisch and Waugh 1933; Lovell 1963): an
    effect is what a covariate changes beside trend and season. Coefficients are those of all series
    together, in units of each series' level, drawn to those of the series alone as far as it has
    rows that say so.

    Args:
        panel: the series.
        rows: first row of every series that must not be looked at (C,).
        horizon: rows h that are forecast after them.
        season: rows of a season.
        until: rows T' that effects are given for; up to the last forecast if fewer. A covariate
            that is not known in rows after the forecasts counts as its usual value.

    Returns:
        Effects (T', C) of all rows up to the last forecast, relative to the usual value of each
        covariate; and the coefficients (Q, C), in units of the values per unit of the covariate.

    Raises:
        DataError: if a covariate is not known where it is needed.
    """
    total = max(int(rows.max()) + horizon, until)
    longer = panel.extended(max(0, total - len(panel)))
    begun = np.flatnonzero(panel.starts < rows)
    longer.covariates.check_future(longer, rows[begun], begun, horizon)
    names = list(longer.covariates.future)
    end, width = int(rows.max()), max(_WINDOW, _SEASONS * season) // 2
    before = np.arange(end)[:, None] < rows
    values = np.where(before, panel.extended(max(0, end - len(panel))).values[:end], np.nan)
    seen = ~np.isnan(values)
    count = np.maximum(seen.sum(0), 1)
    unit = np.where(seen, np.abs(values), 0).sum(0) / count
    if not all(is_never_negative(values[:, c]) for c in range(values.shape[1])):
        centred = values - np.where(seen, values, 0).sum(0) / count
        unit = np.sqrt(np.where(seen, centred**2, 0).sum(0) / count)
    unit = np.where(unit > 0, unit, 1.0)
    y = _rest(values / unit, width, season)
    given = [longer.covariates.future[name] for name in names]
    usual = np.stack([np.nan_to_num(_median(np.where(seen, one[:end], np.nan))) for one in given])
    x = np.stack([_rest(np.where(seen, one[:end], np.nan), width, season) for one in given])
    gram = np.einsum("ptc,qtc->cpq", x, x)
    cross = np.einsum("ptc,tc->cp", x, y)
    size = np.einsum("cpp->p", gram) / max(1, seen.sum())
    penalty = np.diag(np.where(size > 0, size, 1.0))
    together = np.linalg.solve(gram.sum(0) + 1e-6 * penalty * max(1, seen.sum()), cross.sum(0))
    own = np.linalg.solve(gram + _PRIOR * penalty, (cross - gram @ together)[..., None])[..., 0]
    weights = ((together + own) * unit[:, None]).T
    effects = sum(
        weight * np.nan_to_num(one[:total] - middle)
        for weight, one, middle in zip(weights, given, usual)
    )
    return np.asarray(effects, float), weights


def _median(x: np.ndarray) -> np.ndarray:
    """Returns the medians of (T, C) without its NaN; NaN for a column without values."""
    ordered = np.sort(x, axis=0)
    count = (~np.isnan(x)).sum(0)
    return ordered[np.maximum(count - 1, 0) // 2, np.arange(x.shape[1])]


def regression_frame(
    make: Callable[[Panel, int, int | None], pd.DataFrame],
    panel: Panel,
    horizon: int,
    cutoff: int | None,
    season: int,
) -> pd.DataFrame:
    """Returns forecasts of a model that knows no covariates, with their effects.

    Args:
        make: forecasts a panel: its arguments are the panel, the rows h and the cutoff.
        panel: the series, with future covariates.
        horizon: rows h.
        cutoff: first unknown row; where every series ends if None.
        season: rows of a season.
    """
    rows = panel.ends if cutoff is None else np.full(len(panel.ids), cutoff)
    effects, _ = covariate_effects(panel, rows, horizon, season)
    # What lies after the last forecast is of no use to it, and its covariates need not be known.
    kept = panel.before(min(len(panel), len(effects)))
    rest = replace(kept, values=kept.values - effects[: len(kept)], covariates=Covariates())
    frame = make(rest, horizon, cutoff)
    series = pd.Index(panel.ids).get_indexer(pd.Index(frame["unique_id"].to_numpy()[::horizon]))
    rows = rows[series]
    ahead = rows[:, None] + np.arange(horizon)
    added = effects[ahead, series[:, None]]
    floor = floors(panel.values[:row, c] for row, c in zip(rows, series))
    taken = ("unique_id", "ds", "cutoff", "y", BASELINE_COLUMN)
    values = {
        name: np.maximum(frame[name].to_numpy().reshape(-1, horizon) + added, floor)
        for name in frame.columns
        if name not in taken
    }
    return with_naive(panel, rows, series, values, season)
