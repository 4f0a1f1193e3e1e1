"""The demo: a Mamba forecaster learns electricity demand, beside naive and ridge forecasts."""

from __future__ import annotations

import time
from pathlib import Path

from longseq.core.report.section import Picture, Section
from longseq.core.results import Score
from longseq.core.tables import write_frame
from longseq.core.training.by_config import Train, few_steps
from longseq.core.training.loading import load_task
from longseq.timeseries.baselines import make_baseline
from longseq.timeseries.compare import evaluate
from longseq.timeseries.data.module import ForecastData
from longseq.timeseries.forecast import forecast_frame
from longseq.timeseries.plots import plot_forecast
from longseq.timeseries.task import ForecastTask

CONFIG = SAMPLE = "electricity_demand"
_DAYS = 5  # in the picture, and in the written forecasts
_LEVEL = 80


def demo(out: Path, train: Train, max_steps: int | None = None) -> Section:
    """Trains on the packaged demand, scores all test windows beside the baselines, writes
    forecasts.

    Args:
        out: folder for what is written.
        train: trains a configuration.
        max_steps: training steps, in place of the configuration's.
    """
    start = time.perf_counter()
    print(
        f"1. Training {CONFIG}.yaml on the packaged series: a week is known, the next day is "
        f"forecast"
    )
    run = train(CONFIG, out, values=few_steps(max_steps))
    folder, checkpoint = run.folder, run.checkpoint
    task = load_task(checkpoint, "timeseries")
    assert isinstance(task, ForecastTask)

    print("2. Fitting the baselines on the same rows, and scoring every test window")
    data = ForecastData(SAMPLE, context=task.context, horizon=task.horizon)
    windows, unit = data.windows("test"), float(data.scaler().std[0])
    day, week = data.panel.season(), 7 * data.panel.season()
    baselines = {
        "repeat": make_baseline("repeat", task.horizon),
        "same time yesterday": make_baseline("seasonal_naive", task.horizon, day),
        "same time a week ago": make_baseline("seasonal_naive", task.horizon, week),
        "NLinear (ridge)": make_baseline("nlinear_ridge", task.horizon),
        "NLinear (ridge by cross-validation)": make_baseline("nlinear_gcv", task.horizon),
        "DLinear (ridge)": make_baseline("dlinear_ridge", task.horizon),
    }
    scores = []
    for name, baseline in baselines.items():
        baseline.fit(data.windows("train"))
        mse, mae = evaluate(baseline, windows)
        notes = {"mse (z-scores)": f"{mse:.4f}", "parameters": f"{baseline.parameters:,}"}
        scores.append(Score(name, mae * unit, notes=notes))
    mse, mae = evaluate(task, windows)
    count = sum(parameter.numel() for parameter in task.parameters())
    notes = {"mse (z-scores)": f"{mse:.4f}", "parameters": f"{count:,}"}
    scores.append(Score("mamba (this run)", mae * unit, "model", notes))

    print("3. Forecasting the last days from the checkpoint alone, with intervals")
    panel, begin = data.panel, time.perf_counter()
    cutoffs = range(len(panel) - _DAYS * task.horizon, len(panel), task.horizon)
    frame = forecast_frame(task, panel, cutoffs, (_LEVEL,))
    took = time.perf_counter() - begin
    table, image = folder / "forecasts.csv", folder / "forecasts.png"
    write_frame(frame, table)
    plot_forecast(panel, frame, type(task).__name__, image, _LEVEL, "MW")
    caption = (
        f"The last {_DAYS} days, each forecast as a whole at midnight, with {_LEVEL}% conformal "
        f"intervals; "
        "dotted: the same time yesterday."
    )
    return Section(
        domain="timeseries",
        question="How much electricity will England and Wales need tomorrow, every half hour?",
        data=f"{len(panel):,} half-hours of demand in 2000 (Taylor 2003), tested on "
        f"{len(windows):,} windows "
        "of the last fifth; source and licence in timeseries/samples/SOURCE.md.",
        scores=scores,
        metric="mean absolute error, MW",
        speed=f"Training took {run.seconds:.0f} s; {_DAYS} forecasts with intervals took "
        f"{took:.1f} s.",
        seconds=time.perf_counter() - start,
        pictures=[Picture(image, caption)],
        files=[checkpoint, folder / "loss_curve.png", table, image],
    )
