"""Which forecasts are made: the pairs of a cutoff and a series, and what is too short for one."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np

from longseq.core.arrays import first_few
from longseq.core.errors import ConfigError, DataError
from longseq.timeseries.data.panel import Panel
from longseq.timeseries.task import ForecastTask


def forecast_pairs(
    task: ForecastTask, panel: Panel, cutoffs: Sequence[int] | None, piece: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the cutoff and the series of every forecast (P,) each, series by series.

    Args:
        task: the forecaster.
        panel: the series.
        cutoffs: first unknown rows; where every series ends if None. A series that has not begun
            there, or has too few rows for the model's context, is left out; a note names the
            latter.
        piece: the panel holds some of the series of a file: there may be no pair.

    Raises:
        DataError: if no series is long enough, or one has no value before its own end.
        ConfigError: for a wrong cutoff.
    """
    least = task.least
    every = np.arange(len(panel.ids))
    if cutoffs is None:
        rows = panel.ends if task.channel_independent else np.full(len(every), len(panel))
        series = every
    else:
        at = np.asarray(list(cutoffs), int)
        _check_cutoffs(at, panel, least)
        rows, series = np.tile(at, len(every)), np.repeat(every, len(at))
    begun = panel.starts[series] < rows
    if task.channel_independent and cutoffs is not None:
        rows, series = rows[begun], series[begun]
    elif not begun.all():
        empty = panel.ids[int(series[~begun][0])]
        raise DataError(f"the series {empty!r} has no value before the cutoff", path=panel.source)
    if len(rows) == 0:
        raise DataError("no series has begun at these cutoffs", path=panel.source)
    length = rows - panel.starts[series] if task.channel_independent else rows
    short = length < least
    if short.any() and (piece or not short.all()):
        names = [panel.ids[c] for c in np.unique(series[short])]
        print(
            f"note: left out for want of {least} rows before the cutoff, the model's context: "
            f"{int(short.sum())} forecasts, of {first_few(names)}",
            file=sys.stderr,
        )
        return rows[~short], series[~short]
    if short.any():
        first = int(np.flatnonzero(short)[0])
        who = f" (series {panel.ids[series[first]]!r}, and {int(short.sum()) - 1} forecasts more)"
        raise DataError(
            f"has {int(length[first])} rows before the cutoff, the model's context is {least}"
            f"{who if len(every) > 1 else ''}",
            path=panel.source,
            hint="give a longer file, or train with --data.min_context",
        )
    return rows, series


def _check_cutoffs(at: np.ndarray, panel: Panel, least: int) -> None:
    if not len(at):
        raise ConfigError("at least one cutoff is needed")
    for row in at:
        if row > len(panel) or row < 1:
            raise ConfigError(f"cutoff {row} lies outside the {len(panel)} rows of {panel.source}")
    if at.min() < least:
        text = f"has {at.min()} rows before the cutoff, the model's context is {least}"
        raise DataError(text, path=panel.source, hint="give a longer file")
