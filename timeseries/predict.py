"""``longseq timeseries predict``: a frame in, a frame of forecasts out, from a checkpoint alone."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
import pandas as pd

from longseq.core.errors import ConfigError
from longseq.core.results import Score, print_table, verdict
from longseq.core.tables import check_table, write_frame
from longseq.core.training.loading import load_task
from longseq.timeseries.data.frames import read_panel
from longseq.timeseries.forecast import BASELINE_COLUMN, forecast_frame
from longseq.timeseries.options import add_roles, roles_of
from longseq.timeseries.task import ForecastTask


def run(argv: Sequence[str]) -> int:
    """Runs ``longseq timeseries predict``."""
    parser = argparse.ArgumentParser(
        prog="longseq timeseries predict",
        description="Forecasts after the end of a long or wide frame, or from earlier cutoffs, as "
        "a frame "
        "with the columns unique_id, ds, cutoff, y, the model's name, and the seasonal naive "
        "forecast.",
    )
    parser.add_argument(
        "frame", help="CSV or Parquet file: unique_id, ds, y; or a time column and the series"
    )
    parser.add_argument("--ckpt_path", required=True, help="checkpoint of a forecaster")
    parser.add_argument("--out", required=True, help=".csv, .tsv or .parquet file to write")
    parser.add_argument(
        "--cutoffs",
        type=int,
        default=0,
        help="forecast from so many earlier cutoffs whose targets are known, instead of from the "
        "end (0)",
    )
    parser.add_argument("--step", type=int, help="rows between these cutoffs (the horizon)")
    parser.add_argument(
        "--level",
        type=int,
        action="append",
        default=[],
        help="percentage of an interval, calibrated on the rows between training and cutoff; may "
        "be repeated",
    )
    add_roles(parser)
    parser.add_argument(
        "--season", type=int, help="rows of a season of the naive forecast (from the time step)"
    )
    parser.add_argument("--batch_size", type=int, default=64, help="cutoffs at once (64)")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    args = parser.parse_args(argv)
    check_table(args.out)
    task = load_task(args.ckpt_path, "timeseries")
    if not isinstance(task, ForecastTask):
        raise ConfigError(f"{args.ckpt_path}: is a {type(task).__name__}, a forecaster is needed")
    panel = read_panel(args.frame, roles=roles_of(args))
    step = task.horizon if args.step is None else args.step
    if args.cutoffs < 0 or step < 1:
        raise ConfigError(
            f"--cutoffs must be at least 0 and --step at least 1, got {args.cutoffs} and {step}"
        )
    last = len(panel) - task.horizon
    cutoffs = [last - i * step for i in reversed(range(args.cutoffs))] or None
    if cutoffs is not None and cutoffs[0] < task.context:
        raise ConfigError(
            f"{args.frame}: {len(panel)} rows leave no {args.cutoffs} cutoffs of context "
            f"{task.context} and horizon {task.horizon}; lower --cutoffs or --step"
        )
    frame = forecast_frame(
        task.to(args.device), panel, cutoffs, sorted(set(args.level)), args.batch_size, args.season
    )
    write_frame(frame, args.out)
    for note in panel.notes:
        print(f"{args.frame}: {note}")
    filled = f" ({panel.missing} missing values carried forward)" if panel.missing else ""
    count = 1 if cutoffs is None else len(cutoffs)
    print(
        f"{args.out}: {len(frame):,} rows, {frame['unique_id'].nunique()} series, {count} "
        f"cutoffs{filled}"
    )
    if cutoffs is not None:
        _print_scores(frame, type(task).__name__, args.frame)
    return 0


def _print_scores(frame: pd.DataFrame, model: str, source: str) -> None:
    """Prints the model's error beside the seasonal naive forecast's, in deviations of each
    series."""
    spread = frame.groupby("unique_id")["y"].transform("std").replace(0, 1.0)
    scores = []
    for column, kind in ((model, "model"), (BASELINE_COLUMN, "baseline")):
        error = (frame[column] - frame["y"]) / spread
        mse, mae = float(np.mean(error**2)), float(np.mean(error.abs()))
        notes = {"mae": f"{mae:.4f}"}
        scores.append(Score(column, mse, "model" if kind == "model" else "baseline", notes))
    print_table(scores, "mse", f"{source}: known targets, in units of each series' deviation")
    print(verdict(scores, "mse", tie=5e-4))
