"""``longseq bench chaos``: model scale against domain knowledge on chaotic systems."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from longseq.core.command_line import CommandParser
from longseq.core.errors import ConfigError, did_you_mean
from longseq.core.tables import check_table, write_frame
from longseq.timeseries.chaos import (
    NextGenerationReservoir,
    attractor_distance,
    valid_prediction_time,
)
from longseq.timeseries.data.chaos import SYSTEMS, simulate

POINTS = 60  # rows per Lyapunov time; a map has one row an iteration
MODELS = ("persistence", "linear", "reservoir", "zero_shot")
_CONTEXT = 512
_TIMES = 10  # Lyapunov times forecast


def sampling(name: str) -> tuple[int, float]:
    """Returns integration steps per row, and rows per Lyapunov time."""
    system = SYSTEMS[name]
    if system.dt == 0:
        return 1, 1 / system.lyapunov
    time = 1 / (system.lyapunov * system.dt)
    every = max(1, round(time / POINTS))
    return every, time / every


def forecasts(
    model: str, train: np.ndarray, past: np.ndarray, horizon: int
) -> tuple[np.ndarray, int]:
    """Returns forecasts (N, h, D), and the number of the model's parameters.

    Args:
        model: "persistence", "linear" and "reservoir" (which knows that the flow is a polynomial
            of degree two), "zero_shot" (which knows nothing of the system, each variable alone), or
            "mixer-D": a network of width D on each variable, trained on the trajectory.
        train: trajectory (T, D).
        past: known rows (N, L, D).
        horizon: rows h.
    """
    if model == "persistence":
        return np.repeat(past[:, -1:], horizon, 1), 0
    if model in ("linear", "reservoir"):
        made = NextGenerationReservoir(degree=1 if model == "linear" else 2).fit(train)
        return made.forecast(past, horizon), made._weight.size
    rows = past.transpose(0, 2, 1).reshape(-1, past.shape[1])
    if model == "zero_shot":
        from longseq.timeseries.zero_shot import LEVELS, Quantiles

        network = Quantiles()
        found = network.forecast(list(rows), horizon, 0)[..., list(LEVELS).index(0.5)]
        count = sum(p.numel() for p in network.model.parameters())
    else:
        found, count = _mixer(int(model.split("-")[1]), train, rows, horizon)
    return found.reshape(len(past), past.shape[2], horizon).transpose(0, 2, 1), count


def _mixer(width: int, train: np.ndarray, rows: np.ndarray, horizon: int) -> tuple[np.ndarray, int]:
    from longseq.timeseries import Forecaster

    length = min(128, rows.shape[1])
    frame = pd.DataFrame(train, columns=[f"v{i}" for i in range(train.shape[1])])
    frame.insert(0, "ds", np.arange(len(train)))
    made = Forecaster(
        "mixer_forecaster",
        horizon=min(32, horizon),
        context=length,
        max_steps=400,
        d_model=width,
        lr=3e-3,
        dropout=0.0,
        normalise="revin",
    ).fit(frame)
    wide = pd.DataFrame(rows[:, -length:].T, columns=[f"r{i}" for i in range(len(rows))])
    wide.insert(0, "ds", np.arange(length))
    found = made.predict(horizon, frame=wide)
    count = sum(p.numel() for p in made._task.parameters())
    return found[made.name].to_numpy().reshape(len(rows), horizon), count


def run(argv: Sequence[str], show: Callable[[str], None] = print) -> int:
    """Runs ``longseq bench chaos``."""
    parser = CommandParser(
        prog="longseq bench chaos",
        description="Forecasts chaotic flows and maps by models of growing scale and by those that "
        "know what the systems are: valid prediction time in Lyapunov times, attractor distance.",
    )
    parser.add_argument("--systems", help=f"by commas (all: {', '.join(SYSTEMS)})")
    parser.add_argument(
        "--models",
        default=",".join(MODELS),
        help=f"{', '.join(MODELS)}, or mixer-32: a network of width 32 (the first four)",
    )
    parser.add_argument("--rows", type=int, default=3000, help="rows to train on (3000)")
    parser.add_argument("--starts", type=int, default=20, help="forecasts a system (20)")
    parser.add_argument("--out", help=".csv, .tsv or .parquet table to write")
    args = parser.parse_args(argv)
    if args.out is not None:
        check_table(args.out)
    systems = args.systems.split(",") if args.systems else list(SYSTEMS)
    for name in systems:
        if name not in SYSTEMS:
            raise ConfigError(f"--systems: {did_you_mean(name, SYSTEMS)}")
    models = list(dict.fromkeys(args.models.split(",")))
    for name in models:
        kind, _, width = name.partition("-")
        if name not in MODELS and not (kind == "mixer" and width.isdigit() and int(width) > 0):
            raise ConfigError(f"--models: {did_you_mean(name, (*MODELS, 'mixer-32'))}")
    if args.rows < 200 or args.starts < 1:
        raise ConfigError("--rows must be at least 200 and --starts at least 1")
    found = []
    for name in systems:
        every, per_time = sampling(name)
        horizon = max(10, round(_TIMES * per_time))
        train = simulate(name, args.rows, 1, seed=0, every=every)[0]
        # Other trajectories of the same system.
        test = simulate(name, _CONTEXT + horizon, args.starts, seed=1, every=every)
        past, truth = test[:, :_CONTEXT], test[:, _CONTEXT:]
        for model in models:
            start = time.process_time()
            forecast, count = forecasts(model, train, past, horizon)
            steps = valid_prediction_time(forecast, truth, train.std(0) + 1e-12)
            row = {
                "system": name,
                "model": model,
                "parameters": count,
                "lyapunov_times": float(np.median(steps) / per_time),
                "attractor_distance": attractor_distance(forecast, truth),
                "seconds": time.process_time() - start,
            }
            found.append(row)
            show(
                f"{name:<22}{model:<14}valid for {row['lyapunov_times']:5.2f} Lyapunov times  "
                f"attractor distance {row['attractor_distance']:.3f}  {count:>9,} parameters"
            )
    table = pd.DataFrame(found)
    if args.out is not None:
        write_frame(table, args.out)
    show("mean over the systems:")
    means = table.groupby("model", sort=False)[["lyapunov_times", "attractor_distance"]].mean()
    for model, row in means.sort_values("lyapunov_times", ascending=False).iterrows():
        show(
            f"  {model!s:<14}{row['lyapunov_times']:.2f} Lyapunov times, attractor distance "
            f"{row['attractor_distance']:.3f}"
        )
    return 0
