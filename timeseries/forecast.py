"""Forecasts of a fitted model as a frame, with conformal intervals calibrated after the training
rows."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from longseq.core.checks import check_positive
from longseq.core.errors import ConfigError, DataError
from longseq.timeseries.baseline_frame import naive_paths
from longseq.timeseries.baselines import Baseline
from longseq.timeseries.conformal import check_levels, needed, radii
from longseq.timeseries.data.calendar import N_FEATURES, resolution
from longseq.timeseries.data.panel import Panel
from longseq.timeseries.data.times import ZONE_HINT
from longseq.timeseries.data.windows import Scaler, Windows, spread
from longseq.timeseries.forecast_pairs import forecast_pairs
from longseq.timeseries.forecast_task import check_frequency
from longseq.timeseries.likelihoods import Counts, first_not_counts, refuse_no_counts
from longseq.timeseries.long_frame import BASELINE_COLUMN, long_frame
from longseq.timeseries.quantiles import floors
from longseq.timeseries.task import ForecastTask


def run_model(model: ForecastTask | Baseline, batch: dict[str, Tensor]) -> Tensor:
    """Returns the forecast (B, h, C) of a batch of ``Windows``, on the CPU; the target is not read.

    Args:
        model: a task in evaluation mode, or a fitted baseline.
        batch: windows.
    """
    if isinstance(model, Baseline):
        return model.forecast(batch["x"])
    device = next(model.parameters()).device
    with torch.inference_mode():
        placed = {name: value.to(device) for name, value in batch.items()}
        return model.predict_windows(placed).float().cpu()


def run_quantiles(
    task: ForecastTask, batch: dict[str, Tensor], levels: Sequence[int], more: Sequence[float] = ()
) -> np.ndarray:
    """Returns the lower and upper quantile of every interval in turn, then more (B, h, C, …)."""
    ends = [0.5 + side * level / 200 for level in levels for side in (-1, 1)]
    with torch.inference_mode():
        placed = {name: value.to(task.device) for name, value in batch.items()}
        return task.quantile_windows(placed, np.array([*ends, *more]))


def never_negative(task: ForecastTask) -> bool:
    """Returns whether a model's forecasts are of counts."""
    return isinstance(getattr(task, "likelihood", None), Counts)


def match_panel(task: ForecastTask, panel: Panel, known: np.ndarray) -> tuple[Panel, Scaler]:
    """Returns the panel with the series that a model takes, and their scaler.

    Series are known by name. One that the model was not trained on is scaled by its own values
    before its first cutoff, if the model treats every series on its own.

    Args:
        task: with the scaler of its training.
        panel: the series.
        known: first row of every series that must not be looked at (C,).

    Raises:
        DataError: if a series is missing, or not known to a model of fixed series, or the rows are
            not those of the training.
    """
    trained = task.get_scaler()
    if trained is None or task.facts is None:
        raise ConfigError(
            "the model has no scaler: it was not trained on data of longseq timeseries"
        )
    check_frequency(task.facts, panel.frequency, panel.source)
    if not task.channel_independent:
        absent = [name for name in trained.ids if name not in panel.ids]
        if absent:
            raise DataError(
                f"has no series {absent[0]!r}, which the model was trained on", path=panel.source
            )
        known = np.full(len(trained.ids), known.min())
        panel = panel.select(list(trained.ids))
    task.check_series(panel.ids, N_FEATURES[resolution(panel.freq)], panel.source)
    place = {name: i for i, name in enumerate(trained.ids)}
    at = np.array([place.get(name, -1) for name in panel.ids])
    new = np.flatnonzero(at < 0)
    mean, std = trained.mean[at], trained.std[at]
    before = np.arange(len(panel))[:, None] < known[new]
    mean[new], std[new] = spread(np.where(before, panel.values[:, new], np.nan))
    panel = _with_categories(panel, [key[7:] for key in trained.covariates if key[:7] == "static:"])
    for key in trained.covariates:
        kind, _, name = key.partition(":")
        if name not in getattr(panel.covariates, kind):
            column = name.partition("=")[0] if kind == "static" else name
            raise DataError(
                f"has no {kind} covariate {column!r}, which the model was trained with",
                path=panel.source,
                hint=f"name its column: --{kind} {column}",
            )
    return panel, Scaler(panel.ids, mean, std, trained.covariates)


def _with_categories(panel: Panel, trained: Sequence[str]) -> Panel:
    """Returns a panel whose static texts are told by the texts that a model was trained with, of
    which its series may have only some.

    Args:
        panel: the series.
        trained: names of the model's static covariates: ``column=text`` of texts.

    Raises:
        DataError: for a text that is none of them.
    """
    static = dict(panel.covariates.static)
    for column in dict.fromkeys(name.partition("=")[0] for name in trained if "=" in name):
        known = [name for name in trained if name.startswith(f"{column}=")]
        given = [name for name in static if name.startswith(f"{column}=")]
        for name in given:
            if name not in known:
                text = name.partition("=")[2]
                texts = ", ".join(one.partition("=")[2] for one in known[:6])
                raise DataError(
                    f"the static covariate {column!r} is {text!r}, which the model has not seen",
                    path=panel.source,
                    record=panel.ids[int(np.flatnonzero(static[name])[0])],
                    hint=f"it knows {texts}" + (" …" if len(known) > 6 else ""),
                )
        if given:
            static |= {name: np.zeros(len(panel.ids)) for name in known if name not in static}
    return replace(panel, covariates=replace(panel.covariates, static=static))


def forecast_frame(
    task: ForecastTask,
    panel: Panel,
    cutoffs: Sequence[int] | None = None,
    levels: Sequence[int] = (),
    batch_size: int = 64,
    season: int | None = None,
    conformal: bool = True,
    grown: bool = False,
    piece: bool = False,
) -> pd.DataFrame:
    """Forecasts a panel from one or more cutoffs.

    Args:
        task: a fitted forecaster.
        panel: the series.
        cutoffs: first unknown rows; where every series ends if None (where the panel ends, for a
            model that takes all series at once).
        levels: percentages of the intervals, for example (90,).
        batch_size: cutoffs at once; the result does not depend on it.
        season: of the seasonal naive forecast beside the model's, in rows; the panel's usual one if
            None.
        conformal: calibrate the intervals on cutoffs after the training rows: those of a model
            with quantiles by how far values lay outside of them (Romano, Patterson and Candès
            2019), those of another by its absolute errors, every series before its own end. One
            that ends too early for it has no interval (NaN), which a note says. False gives a
            model's own quantiles.
        grown: the panel's last rows are forecasts themselves, which need be no counts.
        piece: the panel holds some of the series of a file; none of them needs to have an interval,
            or to be long enough for a forecast.

    Returns:
        Columns ``unique_id``, ``ds``, ``cutoff`` (last known time), ``y`` (NaN where it is not
        known), the model's name, ``<name>-lo-90`` and ``<name>-hi-90`` for every level, and
        ``SeasonalNaive``. A series that has not begun at a cutoff, or has too few rows for the
        context (a note names it), has no rows there.

    Raises:
        DataError: if all series are too short for the context, or the panel for the calibration of
            the intervals.
        ConfigError: for a wrong cutoff or level, or other values than counts where the model is
            of counts.
    """
    check_levels(levels)
    if never_negative(task) and not grown:
        refuse_no_counts(first_not_counts(panel.ids, panel.values), panel.source)
    context, horizon = task.context, task.horizon
    rows, series = forecast_pairs(task, panel, cutoffs, piece)
    known = np.full(len(panel.ids), len(panel))
    np.minimum.at(known, series, rows)
    ids = panel.ids
    panel, scaler = match_panel(task, panel, known)
    if panel.ids != ids:
        rows, series = forecast_pairs(task, panel, cutoffs)
    task = task.eval()
    # Rows beyond the end are not observed: they are targets only.
    extended = panel.extended(horizon)
    name = type(task).__name__
    if levels and not (conformal or task.probabilistic):
        raise ConfigError(f"{name} has no quantiles of its own: its intervals are conformal")
    values = _run(task, extended, scaler, rows, series, batch_size, levels)
    lag = season or panel.season()
    values[BASELINE_COLUMN] = naive_paths(panel, rows, series, lag, horizon)
    if levels and conformal and len(rows):
        # Beyond its own end nothing of a series is observed, so nothing there counts.
        end = len(panel) if cutoffs is None else int(rows.min())
        widths = _conformal_radii(task, panel, scaler, end, levels, batch_size, piece)
        for level, radius in zip(levels, widths):
            low, high = f"{name}-lo-{level}", f"{name}-hi-{level}"
            middle = values[name]
            below, above = values.get(low, middle), values.get(high, middle)
            # A radius below 0 takes back what a quantile was too wide by, up to the middle of both.
            half = np.maximum(radius.T[series], -(above - below) / 2)
            values[low], values[high] = below - half, above + half
    if never_negative(task):  # to rounding so far, and by conformal intervals
        values |= {key: np.maximum(values[key], 0) for key in values if key.startswith(name)}
        for key in values:
            if key != name:  # whole numbers left them, float32 in units of the scaler came back
                whole = np.rint(values[key])
                near = np.abs(values[key] - whole) < 1e-5 * np.maximum(whole, 1)
                values[key] = np.where(near, whole, values[key])
    elif task.any_horizon:  # as of the packaged one, of what a model reads
        floor = floors(panel.values[max(0, r - context) : r, c] for r, c in zip(rows, series))
        values |= {key: np.maximum(values[key], floor) for key in values if key.startswith(name)}
    return long_frame(extended, rows, series, values)


def _run(
    task: ForecastTask,
    extended: Panel,
    scaler: Scaler,
    rows: np.ndarray,
    series: np.ndarray,
    batch_size: int,
    levels: Sequence[int] = (),
) -> dict[str, np.ndarray]:
    """Returns the forecasts of the model and its own quantiles by column, (P, h) each, in the
    data's units."""
    check_positive("batch_size", batch_size)
    name, horizon = type(task).__name__, task.horizon
    ends = [f"{name}-{side}-{level}" for level in levels for side in ("lo", "hi")]
    if not len(rows):
        return {key: np.empty((0, horizon)) for key in (name, *ends)}
    distinct, place = np.unique(rows, return_inverse=True)
    windows = Windows(extended, scaler, distinct.tolist(), task.context, horizon, 1)
    found: list[np.ndarray] = []
    own: list[np.ndarray] = []
    if scaler.covariates:
        extended.covariates.check_future(extended, rows, series, horizon)
    if task.channel_independent:
        pairs = place * windows.series + series
        for start in range(0, len(pairs), batch_size):
            batch = windows.batch_of_pairs(pairs[start : start + batch_size])
            if levels and task.probabilistic:
                own.append(run_quantiles(task, batch, levels, (0.5,))[:, :, 0])
            if own and task.median:  # one run of the network says both
                found.append(own[-1][..., -1])
            else:
                found.append(run_model(task, batch)[:, :, 0].double().numpy())
        scaled = {name: np.concatenate(found)}
    else:
        for batch in _batches(windows, batch_size, False):
            found.append(run_model(task, batch).double().numpy())
        scaled = {name: np.concatenate(found)[place, :, series]}
    mean, std = scaler.mean[series, None], scaler.std[series, None]
    if own:
        of_ends = np.concatenate(own)
        scaled |= {key: of_ends[..., i] for i, key in enumerate(ends)}
    return {key: value * std + mean for key, value in scaled.items()}


def _batches(windows: Windows, batch_size: int, pairs: bool) -> Iterator[dict[str, Tensor]]:
    """Yields all windows, of all series at a cutoff or of one series each."""
    count = len(windows) * (windows.series if pairs else 1)
    for start in range(0, count, batch_size):
        which = range(start, min(start + batch_size, count))
        yield windows.batch_of_pairs(which) if pairs else windows.batch(which)


def _conformal_radii(
    task: ForecastTask,
    panel: Panel,
    scaler: Scaler,
    cutoff: int,
    levels: Sequence[int],
    batch_size: int,
    piece: bool,
) -> list[np.ndarray]:
    """Returns a half-width (h, C) for every level, in the units of the data.

    The errors are those at earlier cutoffs, whose targets lie after the training rows and before
    the cutoff. Nothing that the model was fitted on counts, nothing after the cutoff, and nothing
    that was not observed. (Validation rows, which chose the checkpoint, do count.)
    """
    assert task.scaler is not None
    end = task.scaler["train_end"]
    trained = pd.Timestamp(end) if panel.dated else int(end)
    own = panel.ds.tz if isinstance(panel.ds, pd.DatetimeIndex) else None
    if isinstance(trained, pd.Timestamp) and (trained.tz is None) != (own is None):
        which = "no zone" if own is None else "a zone"
        text = f"its times are on a clock of {which}, those of the training, until {end}, are not"
        raise DataError(text, path=panel.source, hint=f"write both alike, or {ZONE_HINT}")
    first = max(task.least, int(panel.ds.searchsorted(trained, side="right")))
    earlier = range(first, cutoff - task.horizon + 1)
    need = needed(levels)
    if len(earlier) < need:
        text = (
            f"has {len(earlier)} cutoffs between the end of training ({end}) and "
            f"{panel.ds[cutoff - 1]}, an interval of {max(levels)}% needs {need}"
        )
        raise DataError(
            text, path=panel.source, hint="give a lower --level, or a file that goes on longer"
        )
    windows = Windows(panel, scaler, earlier, task.context, task.horizon)
    parts = []
    for batch in _batches(windows, batch_size, task.channel_independent):
        parts.append(_scores(task, batch, levels))
    scores = np.concatenate(parts, axis=1)
    if task.channel_independent:  # (levels, cutoffs · C, h, 1)
        whole = scores.reshape(len(levels), len(earlier), windows.series, -1)
        # Nothing is known of a series that has not begun: the value carried back is its target.
        begun = np.array(earlier)[:, None] - panel.starts >= max(task.least, 1)
        scores = np.where(begun[None, :, None], whole.transpose(0, 1, 3, 2), np.nan)
    widths = np.stack([radii(one, [n])[0] for one, n in zip(scores, levels)]) * scaler.std
    few = np.flatnonzero(np.isinf(widths).any((0, 1)))
    if len(few):
        name, more = panel.ids[int(few[0])], f" and {len(few) - 1} more" if len(few) > 1 else ""
        text = (
            f"too few values of {name!r}{more} are observed between the end of training ({end}) "
            f"and {panel.ds[cutoff - 1]} for an interval of {max(levels)}%"
        )
        if len(few) == len(panel.ids) and not piece:
            raise DataError(text, path=panel.source, hint="give a lower --level")
        print(f"note: {text}: no interval there", file=sys.stderr)
        widths[:, :, few] = np.nan
    return list(widths)


def _scores(task: ForecastTask, batch: dict[str, Tensor], levels: Sequence[int]) -> np.ndarray:
    """Returns how far targets lie from the forecast, or outside of the model's own interval, for
    every level (levels, B, h, C); NaN where nothing was observed."""
    target, mask = batch["y"].double().numpy(), batch["y_mask"].numpy()
    if task.probabilistic:
        ends = run_quantiles(task, batch, levels)
        parts = [
            np.maximum(ends[..., 2 * i] - target, target - ends[..., 2 * i + 1])
            for i in range(len(levels))
        ]
    else:
        error = np.abs(run_model(task, batch).double().numpy() - target)
        parts = [error] * len(levels)
    return np.where(mask, np.stack(parts), np.nan)
