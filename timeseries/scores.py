"""Scores of a frame of forecasts whose targets are known: errors, MASE, pinball, coverage."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd

from longseq.core.errors import DataError
from longseq.timeseries.data.panel import Panel
from longseq.timeseries.quantiles import naive_error, smape

_TAKEN = ("unique_id", "ds", "cutoff", "y")
_END = re.compile(r"^(.*)-(lo|hi)-(\d+(?:\.\d+)?)$")


def score_frame(frame: pd.DataFrame, panel: Panel, season: int | None = None) -> pd.DataFrame:
    """Returns scores of every model of a frame, best MASE first.

    Args:
        frame: of ``Forecaster.cross_validation`` or ``forecast_frame``, in pandas; columns of
            numbers beside them are models too.
        panel: the series it forecasts, for the unit of MASE: the mean absolute seasonal naive error
            before the cutoff (Hyndman and Koehler 2006).
        season: rows of a season; the panel's usual one if None.

    Returns:
        A row a model: ``mae``, ``rmse``, ``mase``, ``smape`` (percent, 0 to 200), and where it has
        intervals ``pinball`` (twice the mean over the levels and the median, which approximates
        CRPS) and ``coverage-80`` (a share) for every level. Targets that are not known do not
        count, nor do intervals that are not; series whose naive error is 0 have no MASE. A model
        that lacks a forecast has no scores: they would be of other rows than those of the others.

    Raises:
        DataError: if no target is known, or a series or cutoff is none of the panel's.
    """
    lacking = [name for name in _TAKEN if name not in frame]
    if lacking:
        raise DataError(f"these forecasts have no column {lacking[0]!r}")
    seen = frame[frame["y"].notna()]
    if seen.empty:
        raise DataError("no target of these forecasts is known")
    lag = season or panel.season()
    place = {name: i for i, name in enumerate(panel.ids)}
    y = seen["y"].to_numpy(float)
    units = np.empty(len(seen))
    for (name, cutoff), rows in seen.groupby(["unique_id", "cutoff"]).indices.items():
        if (c := place.get(str(name), -1)) < 0:
            hint = "read a file of forecasts with its names as text: dtype={'unique_id': str}"
            raise DataError(f"{name!r} is no series of {panel.source}", hint=hint)
        end = int(panel.ds.get_indexer(pd.Index([cutoff]))[0]) + 1
        if end == 0:
            raise DataError(f"the cutoff {cutoff} of {name!r} is no time of {panel.source}")
        units[rows] = naive_error(panel.values[panel.starts[c] : end, c], lag)
    ends = [match for match in map(_END.match, seen.columns) if match]
    taken = {*_TAKEN, *(match.group(0) for match in ends)}
    known, found = np.isfinite(units), []
    for model in (name for name in _models(seen) if name not in taken):
        point = seen[model].to_numpy(float)
        error = np.abs(y - point)
        scaled = error / units
        row = {
            "model": model,
            "mae": error.mean(),
            "rmse": np.sqrt((error**2).mean()),
            "mase": float(scaled[known].mean()) if known.any() else np.nan,
            "smape": smape(point, y),
        }
        levels = sorted({match.group(3) for match in ends if match.group(1) == model}, key=float)
        losses = [error / 2]
        for level in levels:
            low, high = (seen[f"{model}-{side}-{level}"].to_numpy(float) for side in ("lo", "hi"))
            for end, share in ((low, 0.5 - float(level) / 200), (high, 0.5 + float(level) / 200)):
                losses.append(np.maximum(share * (y - end), (share - 1) * (y - end)))
            there = ~np.isnan(low + high)
            inside = ((y >= low) & (y <= high))[there]
            row[f"coverage-{level}"] = float(inside.mean()) if there.any() else np.nan
        if levels:
            whole = np.stack(losses)
            whole = whole[:, ~np.isnan(whole[1:]).any(0)]
            row["pinball"] = float(2 * whole.mean()) if whole.size else np.nan
        found.append(row)
    return pd.DataFrame(found).sort_values("mase", ignore_index=True)


def _models(frame: pd.DataFrame) -> list[str]:
    """Returns the columns that hold numbers."""
    return [name for name in frame if pd.api.types.is_numeric_dtype(frame[name])]
