"""Scores of a frame of forecasts whose targets are known: errors, MASE, pinball, coverage."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd

from longseq.core.errors import DataError
from longseq.timeseries.data.panel import Panel
from longseq.timeseries.quantiles import naive_error, smape

_TAKEN = ("unique_id", "ds", "cutoff", "y")
_END = re.compile(r"^(.*)-(lo|hi)-(\d+)$")


def score_frame(frame: pd.DataFrame, panel: Panel, season: int | None = None) -> pd.DataFrame:
    """Returns scores of every model of a frame, best MASE first.

    Args:
        frame: of ``Forecaster.cross_validation`` or ``forecast_frame``, in pandas.
        panel: the series it forecasts, for the unit of MASE: the mean absolute seasonal naive error
            before the cutoff (Hyndman and Koehler 2006).
        season: rows of a season; the panel's usual one if None.

    Returns:
        A row a model: ``mae``, ``rmse``, ``mase``, ``smape`` (percent, 0 to 200), and where it has
        intervals ``pinball`` (twice the mean over the levels and the median, which approximates
        CRPS) and ``coverage-80`` (a share) for every level. Targets that are not known do not
        count; series whose naive error is 0 have no MASE.

    Raises:
        DataError: if no target is known.
    """
    seen = frame[frame["y"].notna()]
    if seen.empty:
        raise DataError("no target of these forecasts is known")
    lag = season or panel.season()
    place = {name: i for i, name in enumerate(panel.ids)}
    y = seen["y"].to_numpy(float)
    units = np.empty(len(seen))
    for (name, cutoff), rows in seen.groupby(["unique_id", "cutoff"]).indices.items():
        c = place[str(name)]
        end = int(panel.ds.get_indexer(pd.Index([cutoff]))[0]) + 1
        units[rows] = naive_error(panel.values[panel.starts[c] : end, c], lag)
    ends = [match for match in map(_END.match, seen.columns) if match]
    taken = {*_TAKEN, *(match.group(0) for match in ends)}
    found = []
    for model in (name for name in seen.columns if name not in taken):
        point = seen[model].to_numpy(float)
        error = np.abs(y - point)
        scaled = error / units
        row = {
            "model": model,
            "mae": error.mean(),
            "rmse": np.sqrt((error**2).mean()),
            "mase": float(np.nanmean(scaled)) if np.isfinite(scaled).any() else np.nan,
            "smape": smape(point, y),
        }
        levels = sorted({int(match.group(3)) for match in ends if match.group(1) == model})
        losses = [error / 2]
        for level in levels:
            low, high = (seen[f"{model}-{side}-{level}"].to_numpy(float) for side in ("lo", "hi"))
            for end, share in ((low, 0.5 - level / 200), (high, 0.5 + level / 200)):
                losses.append(np.maximum(share * (y - end), (share - 1) * (y - end)))
            row[f"coverage-{level}"] = float(((y >= low) & (y <= high)).mean())
        if levels:
            row["pinball"] = float(2 * np.mean(losses))
        found.append(row)
    return pd.DataFrame(found).sort_values("mase", ignore_index=True)
