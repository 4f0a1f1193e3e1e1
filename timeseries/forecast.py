"""Forecasts of a fitted model as a frame, with conformal intervals calibrated after the training
rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from longseq.core.checks import check_positive
from longseq.core.errors import ConfigError, DataError
from longseq.timeseries.baselines import Baseline, SeasonalNaive
from longseq.timeseries.data.calendar import N_FEATURES, resolution
from longseq.timeseries.data.frames import Panel
from longseq.timeseries.data.windows import Scaler, Windows
from longseq.timeseries.task import Forecaster

BASELINE_COLUMN = "SeasonalNaive"


def run_model(model: Forecaster | Baseline, batch: dict[str, Tensor]) -> Tensor:
    """Returns the forecast (B, h, C) of a batch of ``Windows``, on the CPU; the target is not read.

    Args:
        model: a task in evaluation mode, or a fitted baseline.
        batch: windows.
    """
    if isinstance(model, Baseline):
        return model.forecast(batch["x"])
    device = next(model.parameters()).device
    with torch.inference_mode():
        return model(*(batch[name].to(device) for name in ("x", "x_mark", "y_mark"))).float().cpu()


def match_panel(task: Forecaster, panel: Panel, known: int) -> tuple[Panel, Scaler]:
    """Returns the panel with the series that a model takes, and their scaler.

    Series are known by name. One that the model was not trained on is scaled by its own values
    before row ``known``, if the model treats every series on its own.

    Args:
        task: with the scaler of its training.
        panel: the series.
        known: first row that must not be looked at.

    Raises:
        DataError: if a series is missing, or not known to a model of fixed series.
    """
    trained = task.get_scaler()
    if trained is None:
        raise ConfigError(
            "the model has no scaler: it was not trained on data of longseq timeseries"
        )
    if not task.channel_independent:
        absent = [name for name in trained.ids if name not in panel.ids]
        if absent:
            raise DataError(
                f"has no series {absent[0]!r}, which the model was trained on", path=panel.source
            )
        panel = panel.select(list(trained.ids))
    task.check_series(panel.ids, N_FEATURES[resolution(panel.freq)], panel.source)
    history = panel.values[:known]
    mean, std = history.mean(0), history.std(0)
    std = np.where(std > 0, std, 1.0)
    for i, name in enumerate(panel.ids):
        if name in trained.ids:
            at = trained.ids.index(name)
            mean[i], std[i] = trained.mean[at], trained.std[at]
    return panel, Scaler(panel.ids, mean, std)


def forecast_frame(
    task: Forecaster,
    panel: Panel,
    cutoffs: Sequence[int] | None = None,
    levels: Sequence[int] = (),
    batch_size: int = 64,
    season: int | None = None,
) -> pd.DataFrame:
    """Forecasts a panel from one or more cutoffs.

    Args:
        task: a fitted forecaster.
        panel: the series.
        cutoffs: first unknown rows; the end of the panel if None.
        levels: percentages of the intervals, for example (90,).
        batch_size: cutoffs at once; the result does not depend on it.
        season: of the seasonal naive forecast beside the model's, in rows; the panel's usual one if
            None.

    Returns:
        Columns ``unique_id``, ``ds``, ``cutoff`` (last known time), ``y`` (NaN where it is not
        known), the model's name, ``<name>-lo-90`` and ``<name>-hi-90`` for every level, and
        ``SeasonalNaive``.

    Raises:
        DataError: if the panel is too short for the context or for the calibration of the
            intervals.
        ConfigError: for a wrong cutoff or level.
    """
    at = [len(panel)] if cutoffs is None else list(cutoffs)
    context, horizon = task.context, task.horizon
    _check_cutoffs(at, panel, context)
    panel, scaler = match_panel(task, panel, min(at))
    task = task.eval()
    seasonal = SeasonalNaive(horizon, min(season or panel.season(), context))
    # Rows beyond the end are NaN: they are targets only.
    extended = Panel(
        np.concatenate([panel.values, np.full((horizon, len(panel.ids)), np.nan)]),
        panel.ids,
        panel.ds.append(panel.future(len(panel), horizon)),
        panel.freq,
        panel.source,
    )
    windows = Windows(extended, scaler, at, context, horizon)
    name = type(task).__name__
    columns: dict[str, list[np.ndarray]] = {name: [], BASELINE_COLUMN: []}
    for batch in _batches(windows, batch_size):
        for column, model in ((name, task), (BASELINE_COLUMN, seasonal)):
            columns[column].append(scaler.inverse(run_model(model, batch).double().numpy()))
    values = {column: np.concatenate(parts) for column, parts in columns.items()}  # (K, h, C)
    if levels:
        radii = _conformal_radii(task, panel, scaler, min(at), levels, batch_size)
        for level, radius in zip(levels, radii):
            values[f"{name}-lo-{level}"] = values[name] - radius
            values[f"{name}-hi-{level}"] = values[name] + radius
    order = [name, *(key for key in values if key not in (name, BASELINE_COLUMN)), BASELINE_COLUMN]
    frames = []
    for c, series in enumerate(panel.ids):
        for k, row in enumerate(at):
            rows: dict[str, Any] = {
                "unique_id": series,
                "ds": extended.ds[row : row + horizon],
                "cutoff": extended.ds[row - 1],
                "y": extended.values[row : row + horizon, c],
            }
            frames.append(pd.DataFrame(rows | {key: values[key][k, :, c] for key in order}))
    return pd.concat(frames, ignore_index=True)


def _check_cutoffs(at: Sequence[int], panel: Panel, context: int) -> None:
    if not at:
        raise ConfigError("at least one cutoff is needed")
    for row in at:
        if row > len(panel) or row < 1:
            raise ConfigError(f"cutoff {row} lies outside the {len(panel)} rows of {panel.source}")
    if min(at) < context:
        text = f"has {min(at)} rows before the cutoff, the model's context is {context}"
        raise DataError(text, path=panel.source, hint="give a longer file")


def _batches(windows: Windows, batch_size: int) -> Any:
    check_positive("batch_size", batch_size)
    for start in range(0, len(windows), batch_size):
        yield windows.batch(range(start, min(start + batch_size, len(windows))))


def _conformal_radii(
    task: Forecaster,
    panel: Panel,
    scaler: Scaler,
    cutoff: int,
    levels: Sequence[int],
    batch_size: int,
) -> list[np.ndarray]:
    """Returns a half-width (h, C) for every level, in the units of the data.

    Split conformal prediction: the ⌈(n + 1) · level⌉-th smallest of n absolute errors at earlier
    cutoffs, whose targets lie after the training rows and before the cutoff. Nothing that the model
    was fitted on counts, and nothing after the cutoff. (Validation rows, which chose the
    checkpoint, do count.)
    """
    for level in levels:
        if not 0 < level < 100:
            raise ConfigError(f"a level is a percentage between 1 and 99, got {level}")
    assert task.scaler is not None
    end = task.scaler["train_end"]
    trained = pd.Timestamp(end) if panel.dated else int(end)
    first = max(
        task.context, int(np.searchsorted(np.asarray(panel.ds), np.asarray(trained), side="right"))
    )
    earlier = range(first, cutoff - task.horizon + 1)
    need = math.ceil(1 / (1 - max(levels) / 100)) - 1
    if len(earlier) < need:
        text = (
            f"has {len(earlier)} cutoffs between the end of training ({end}) and "
            f"{panel.ds[cutoff - 1]}, an interval of {max(levels)}% needs {need}"
        )
        raise DataError(
            text, path=panel.source, hint="give a lower --level, or a file that goes on longer"
        )
    errors = []
    for batch in _batches(Windows(panel, scaler, earlier, task.context, task.horizon), batch_size):
        errors.append((run_model(task, batch) - batch["y"]).abs().double().numpy())
    ordered = np.sort(np.concatenate(errors), axis=0)
    ranks = [math.ceil((len(ordered) + 1) * level / 100 - 1e-9) for level in levels]
    return [ordered[rank - 1] * scaler.std for rank in ranks]
