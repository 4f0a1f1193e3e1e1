"""``longseq timeseries predict``: a frame in, a frame of forecasts out, with or without a
checkpoint."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from longseq.core.command_line import CommandParser, add_device
from longseq.core.errors import ConfigError, with_article
from longseq.core.results import Score, print_table, verdict
from longseq.core.tables import check_table, write_frame
from longseq.timeseries.calibrated import PANEL
from longseq.timeseries.data.frames import Panel, read_panel
from longseq.timeseries.data.future import known_future
from longseq.timeseries.long_frame import BASELINE_COLUMN
from longseq.timeseries.options import add_roles, roles_of
from longseq.timeseries.regression import regression_frame
from longseq.timeseries.zero_shot import NAME, Quantiles, zero_shot_frame

if TYPE_CHECKING:
    from longseq.timeseries.task import ForecastTask

_CALIBRATE = {"auto": None, "yes": True, "no": False}


def run(argv: Sequence[str]) -> int:
    """Runs ``longseq timeseries predict``."""
    parser = _parser()
    args = parser.parse_args(argv)
    check_table(args.out)
    if args.ckpt_path is not None and args.calibrate != "auto":
        raise ConfigError(
            "--calibrate is for the packaged forecaster: intervals of a checkpoint (--level) are "
            "calibrated on the rows after its training"
        )
    task = None
    network: Quantiles | None = None
    if args.ckpt_path is None:
        if args.horizon is None:
            raise ConfigError("say how many rows to forecast: --horizon 28 (or give --ckpt_path)")
        horizon = args.horizon
    else:
        # Lightning is imported only where a checkpoint of it is read.
        from longseq.core.training.loading import load_task
        from longseq.timeseries.forecast import forecast_frame
        from longseq.timeseries.task import ForecastTask
        from longseq.timeseries.zero_shot_task import ZeroShot

        task = load_task(args.ckpt_path, "timeseries")
        if not isinstance(task, ForecastTask):
            raise ConfigError(
                f"{args.ckpt_path}: is {with_article(type(task).__name__)}, a forecaster is needed"
            )
        if task.any_horizon and args.horizon is not None:
            task.horizon = args.horizon
        horizon = task.horizon
        if args.horizon not in (None, horizon):
            raise ConfigError(
                f"--horizon {args.horizon}: the model of {args.ckpt_path} forecasts {horizon} rows"
            )
    if horizon < 1:
        raise ConfigError(f"--horizon must be at least 1, got {horizon}")
    levels = sorted(set(args.level)) or ([80] if task is None else [])
    if task is not None:
        task = task.to(args.device)
        if isinstance(task, ZeroShot) and task.scaler is None:
            # Trained on generated series alone: it forecasts as the packaged one does.
            task, network = None, Quantiles(task.average, calibrated=True, device=args.device)
            levels = sorted(set(args.level)) or [80]
    if _in_pieces(args):
        if network is not None:
            raise ConfigError(
                f"{args.ckpt_path}: was trained on generated series alone, and reads no file in "
                "pieces: --in_pieces no"
            )
        return _run_in_pieces(args, task, horizon, levels)
    panel = read_panel(args.frame, roles=roles_of(args))
    least = 1 if task is None else task.least
    if args.future_frame is not None:
        panel = known_future(panel, args.future_frame, horizon, roles_of(args))
    cutoffs = _cutoffs(args, panel, horizon, least)
    if task is None:
        frame = _zero_shot(args, panel, horizon, cutoffs, levels, network)
    else:
        frame = forecast_frame(task, panel, cutoffs, levels, args.batch_size, args.season)
    write_frame(frame, args.out)
    ends = Ends()
    ends.add(panel)
    count = 1 if cutoffs is None else len(cutoffs)
    notes = [*panel.notes, *_new_series(task, panel.ids)]
    _report(args, notes, ends if cutoffs is None else None, args.ckpt_path is None)
    _report_rows(args, len(frame), frame["unique_id"].nunique(), count, panel.missing)
    if cutoffs is not None:
        _print_scores(frame, NAME if task is None else type(task).__name__, args.frame)
    return 0


def _new_series(task: ForecastTask | None, ids: Sequence[str]) -> list[str]:
    """Returns a note of the series that the training had not: 7 is no 007."""
    trained = None if task is None else task.get_scaler()
    known = set() if trained is None else set(trained.ids)
    new = [name for name in ids if name not in known] if known else []
    if not new:
        return []
    which = new[0] + (f" and {len(new) - 1:,} series more" if len(new) > 1 else "")
    return [f"the training had no {which}: scaled by own values, not by those of the training"]


def _report(
    args: argparse.Namespace, notes: Sequence[str], ends: Ends | None, packaged: bool
) -> None:
    for note in notes:
        print(f"{args.frame}: {note}")
    if ends is not None and str(ends):
        print(f"{args.frame}: {ends}")
    if packaged:
        print("no checkpoint named: the packaged zero-shot forecaster was taken")


def _report_rows(
    args: argparse.Namespace, rows: int, series: int, cutoffs: int, missing: int
) -> None:
    filled = f" ({missing} missing values carried forward)" if missing else ""
    print(f"{args.out}: {rows:,} rows, {series} series, {cutoffs} cutoffs{filled}")


def _in_pieces(args: argparse.Namespace) -> bool:
    """Returns whether the file is to be read in pieces.

    Raises:
        ConfigError: if it is, and another option needs the whole file.
    """
    if args.in_pieces == "no":
        return False
    if args.in_pieces == "auto":
        if not args.frame.lower().endswith((".parquet", ".pq")):
            return False
        from longseq.timeseries.data.long_file import is_large

        if not is_large(args.frame, roles_of(args)):
            return False
    for name in ("cutoffs", "future_frame", "calibrate"):
        if getattr(args, name) not in (0, None, "auto", "no"):
            raise ConfigError(
                f"{args.frame}: --{name} needs the whole file, which is "
                + ("to be" if args.in_pieces == "yes" else "so large that it is")
                + " read in pieces: take fewer series, or --in_pieces no"
            )
    return True


def _run_in_pieces(
    args: argparse.Namespace, task: ForecastTask | None, horizon: int, levels: list[int]
) -> int:
    """Forecasts and writes a long Parquet file piece by piece."""
    from longseq.timeseries.data.long_file import LongFile
    from longseq.timeseries.predict_pieces import (
        all_days,
        forecast_pieces,
        piece_forecaster,
        write_pieces,
    )

    file, ends = LongFile(args.frame, roles_of(args)), Ends()
    make = piece_forecaster(file, horizon, task, levels, args.batch_size, args.season, args.device)

    def frames() -> Iterator[pd.DataFrame]:
        for panel, frame in forecast_pieces(file, make):
            ends.add(panel)
            yield frame

    rows = write_pieces(args.out, frames(), all_days(file))
    notes = list(file.survey.notes)
    if task is None and args.calibrate == "auto" and ends.series >= PANEL:
        notes.append("in pieces, intervals are not calibrated on all series together")
    _report(args, notes, ends, task is None)
    _report_rows(args, rows, ends.series, 1, ends.missing)
    return 0


class Ends:
    """Which series end before the last row: a sensor that died, an item that is no longer sold.
    Each is forecast from its own end.

    Attributes:
        missing: values that are missing between the first and the last of their series.
    """

    def __init__(self) -> None:
        self.series, self.missing, self._early = 0, 0, 0
        self._first: tuple[int, str] | None = None
        self._ds: pd.Index = pd.Index([])

    def add(self, panel: Panel) -> None:
        """Counts the series of a panel, or of a piece of one."""
        self._ds = panel.ds
        self.series += len(panel.ids)
        self.missing += panel.missing
        early = np.flatnonzero(panel.ends < len(panel))
        self._early += len(early)
        for c in early:
            if self._first is None or panel.ends[c] < self._first[0]:
                self._first = int(panel.ends[c]), panel.ids[c]

    def __str__(self) -> str:
        if self._first is None:
            return ""
        (end, name), last = self._first, self._ds[-1]
        if self._early == 1:
            return (
                f"{name} ends at {self._ds[end - 1]}, the others at {last}: it is forecast from "
                "its own end"
            )
        return (
            f"{self._early:,} of {self.series:,} series end before {last} and are forecast from "
            f"their own ends, the earliest {name} at {self._ds[end - 1]}"
        )


def _zero_shot(
    args: argparse.Namespace,
    panel: Panel,
    horizon: int,
    cutoffs: list[int] | None,
    levels: list[int],
    network: Quantiles | None,
) -> pd.DataFrame:
    """Returns forecasts of the packaged network or another, beside the effects of future
    covariates."""
    if panel.covariates.past or panel.covariates.static:
        raise ConfigError(
            "--past and --static are for models trained with them; the packaged forecaster takes "
            "--future and --holidays"
        )
    network = network or Quantiles(device=args.device)
    from rich.console import Console
    from rich.progress import Progress

    shown = {"transient": True, "disable": not sys.stderr.isatty()}
    with Progress(console=Console(stderr=True), **shown) as progress:
        bar = progress.add_task("forecasts", total=len(panel.ids) * len(cutoffs or [0]))

        def plain(one: Panel, h: int, at: Sequence[int] | None) -> pd.DataFrame:
            before = progress.tasks[bar].completed
            return zero_shot_frame(
                *(one, h, at, levels, args.batch_size, args.season, network),
                progress=lambda done: progress.update(bar, completed=before + done),
                calibrate=_CALIBRATE[args.calibrate],
            )

        if not panel.covariates.future:
            return plain(panel, horizon, cutoffs)
        lag = args.season or panel.season()

        def single(one: Panel, h: int, cutoff: int | None) -> pd.DataFrame:
            return plain(one, h, None if cutoff is None else [cutoff])

        parts = [regression_frame(single, panel, horizon, at, lag) for at in cutoffs or [None]]
        return pd.concat(parts, ignore_index=True)


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="longseq timeseries predict",
        description="Forecasts after the end of a long or wide frame, or from earlier cutoffs, as "
        "a frame with the columns unique_id, ds, cutoff, y, the model's name, and the seasonal "
        "naive forecast. Without a checkpoint the packaged zero-shot forecaster is taken.",
    )
    parser.add_argument(
        "frame", help="CSV or Parquet file: unique_id, ds, y; or a time column and the series"
    )
    parser.add_argument("--horizon", type=int, help="rows to forecast; needed without a checkpoint")
    parser.add_argument("--ckpt_path", help="checkpoint of a forecaster (the packaged one)")
    parser.add_argument(
        "--out", default="forecasts.csv", help=".csv, .tsv or .parquet to write (forecasts.csv)"
    )
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
        help="percentage of an interval; may be repeated. Of a checkpoint it is calibrated on the "
        "rows between training and cutoff; of the packaged forecaster see --calibrate (80)",
    )
    add_roles(parser)
    parser.add_argument(
        "--future_frame",
        help="table of the future covariates after the end of the series; not needed where the "
        "frame goes on with an empty target",
    )
    parser.add_argument(
        "--season", type=int, help="rows of a season (from the time step; 1 for none)"
    )
    parser.add_argument(
        "--in_pieces",
        choices=("auto", "yes", "no"),
        default="auto",
        help="read a long Parquet file, its rows series by series, and write the forecasts in "
        "pieces, in memory that does not grow with the file (auto: one that would take more than "
        "a quarter of the memory)",
    )
    parser.add_argument(
        "--calibrate",
        choices=tuple(_CALIBRATE),
        default="auto",
        help="scale the packaged forecaster's intervals by what it missed one horizon earlier, all "
        "series together, which takes up to 256 forecasts more a cutoff (auto: of 50 series and "
        "more, in a file that is read whole)",
    )
    parser.add_argument("--batch_size", type=int, default=64, help="cutoffs at once (64)")
    add_device(parser)
    return parser


def _cutoffs(args: argparse.Namespace, panel: Panel, horizon: int, least: int) -> list[int] | None:
    """Returns the cutoffs that the options ask for; None for the end of every series."""
    step = horizon if args.step is None else args.step
    if args.cutoffs < 0 or step < 1:
        raise ConfigError(
            f"--cutoffs must be at least 0 and --step at least 1, got {args.cutoffs} and {step}"
        )
    last = len(panel) - horizon
    cutoffs = [last - i * step for i in reversed(range(args.cutoffs))] or None
    if cutoffs is not None and cutoffs[0] < least:
        raise ConfigError(
            f"{args.frame}: {len(panel)} rows leave no {args.cutoffs} cutoffs of context {least} "
            f"and horizon {horizon}; lower --cutoffs or --step"
        )
    return cutoffs


def _print_scores(frame: pd.DataFrame, model: str, source: str) -> None:
    """Prints the model's error beside the seasonal naive forecast's, in deviations of each
    series."""
    spread = frame.groupby("unique_id")["y"].transform("std").replace(0, 1.0)
    scores = []
    for column, kind in ((model, "model"), (BASELINE_COLUMN, "baseline")):
        error = (frame[column] - frame["y"]) / spread
        mse, mae = float(np.nanmean(error**2)), float(np.nanmean(error.abs()))
        notes = {"mae": f"{mae:.4f}"}
        scores.append(Score(column, mse, "model" if kind == "model" else "baseline", notes))
    print_table(scores, "mse", f"{source}: known targets, in units of each series' deviation")
    print(verdict(scores, "mse", tie=5e-4))
