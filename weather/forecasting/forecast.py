"""``longseq weather forecast``: networks on a generated flow beside plain forecasts."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from longseq.core.command_line import CommandParser
from longseq.core.compare import whole_numbers
from longseq.core.errors import ConfigError, did_you_mean
from longseq.core.figures import new_figure, save_png
from longseq.core.results import Score, print_table, verdict
from longseq.core.tables import write_rows
from longseq.core.training import fit, seed_everything
from longseq.core.training.loading import load_task
from longseq.weather.ensembles import acc, mean_crps
from longseq.weather.forecasting.flows import FLOWS
from longseq.weather.forecasting.linear_inverse import BestLinearInverse
from longseq.weather.forecasting.task import FlowData, FlowForecaster

BASELINES = ("persistence", "climatology", "linear inverse")
# About as many parameters in each.
SETTINGS: dict[str, dict[str, Any]] = {
    "fno": {"width": 16, "n_layers": 2, "modes": 6},
    "conv_s5": {"width": 24, "n_layers": 2, "d_state": 24},
    "conv_lstm": {"width": 24, "n_layers": 2, "d_state": 12},
}
Forecast = Callable[[np.ndarray, int], np.ndarray]


def score(forecast: np.ndarray, truth: np.ndarray, climate: np.ndarray) -> dict[str, np.ndarray]:
    """Returns RMSE, ACC and CRPS by lead (L), as means over layers.

    The CRPS of one forecast is its mean absolute error.

    Args:
        forecast: (B, L, C, Y, X).
        truth: likewise.
        climate: mean of the training flows (C, Y, X).
    """
    gap = np.asarray(forecast, dtype=np.float64) - truth
    leads = range(truth.shape[1])
    return {
        "rmse": np.sqrt((gap**2).mean((0, 2, 3, 4))),
        "acc": np.nanmean(acc(forecast, truth, climate), axis=(0, 2)),
        "crps": np.array([mean_crps(forecast[None, :, n], truth[:, n], fair=False) for n in leads]),
    }


def forecasters(data: FlowData) -> dict[str, Forecast]:
    """Returns the plain forecasts: contexts (B, L, C, Y, X) and a number of leads to fields."""
    train, valid = (data.runs(part).flatten(2).numpy() for part in ("train", "valid"))
    linear = BestLinearInverse().fit(train, valid, data.leads)
    climate = train.mean((0, 1))

    def fields(flat: np.ndarray, like: np.ndarray) -> np.ndarray:
        return flat.reshape(*flat.shape[:2], *like.shape[2:])

    def inverse(context: np.ndarray, leads: int) -> np.ndarray:
        flat = context[:, -1].reshape(len(context), -1)
        return fields(linear.forecast(flat, leads), context)

    return {
        "persistence": lambda context, leads: np.repeat(context[:, -1:], leads, 1),
        "climatology": lambda context, leads: fields(
            np.broadcast_to(climate, (len(context), leads, len(climate))), context
        ),
        "linear inverse": inverse,
    }


def network(task: FlowForecaster) -> Forecast:
    """Returns a trained network as a forecast."""

    def forecast(context: np.ndarray, leads: int) -> np.ndarray:
        with torch.inference_mode():
            made = [task(one, leads) for one in torch.from_numpy(context).split(16)]
        return torch.cat(made).numpy()

    return forecast


def compare_forecasts(
    data: FlowData, made: Mapping[str, Forecast]
) -> dict[str, dict[str, np.ndarray]]:
    """Returns the scores by lead of every forecast on the test flows.

    Args:
        data: flows.
        made: forecasts by name.
    """
    windows = data.windows("test")
    videos = torch.stack([windows[n]["video"] for n in range(len(windows))]).numpy()
    context, truth = videos[:, : data.context], videos[:, data.context :]
    climate = data.runs("train").mean((0, 1)).numpy()
    return {name: score(one(context, data.leads), truth, climate) for name, one in made.items()}


def run(argv: Sequence[str]) -> int:
    """Runs ``longseq weather forecast``."""
    parser = CommandParser(
        prog="longseq weather forecast",
        description="Generates a flow, trains networks on it and scores their forecasts by lead "
        "time beside persistence, climatology and a linear inverse model.",
    )
    known = ",".join(SETTINGS)
    parser.add_argument(
        "--flow",
        default="quasigeostrophic",
        help=f"{', '.join(FLOWS)}, or the class path of one of your own (quasigeostrophic)",
    )
    parser.add_argument("--models", default=known, help=f"by commas, of {known} (all)")
    parser.add_argument("--steps", type=int, default=300, help="of every training (300)")
    parser.add_argument("--seeds", default="0", help="of the trainings (0)")
    parser.add_argument("--leads", type=int, default=20, help="frames that are forecast (20)")
    parser.add_argument("--members", type=int, default=6, help="training flows (6)")
    parser.add_argument("--frames", type=int, default=400, help="of every flow (400)")
    parser.add_argument("--size", type=int, default=32, help="points along a side (32)")
    parser.add_argument("--every", type=int, help="time steps between frames (the flow's own)")
    parser.add_argument("--spin_up", type=int, help="time steps before (the flow's own)")
    parser.add_argument("--out", default="outputs/weather/forecast", help="folder to write")
    args = parser.parse_args(argv)
    names = [name.strip() for name in args.models.split(",") if name.strip()]
    for name in names:
        if name not in SETTINGS:
            raise ConfigError(f"--models: no model {name!r}; {did_you_mean(name, list(SETTINGS))}")
    seeds, out = whole_numbers("--seeds", args.seeds), Path(args.out)
    data = FlowData(
        args.size,
        args.members,
        args.frames,
        args.every,
        args.spin_up,
        leads=args.leads,
        flow=args.flow,
    )
    rows, columns = data.flow.shape
    print(f"{args.flow}: flows of {args.frames} frames, {rows} × {columns} points …", flush=True)
    made = forecasters(data)
    seconds: dict[str, float] = {}
    for name in names:
        for seed in seeds:
            seed_everything(seed)
            task = FlowForecaster(name, **SETTINGS[name], **data.model_arguments())  # type: ignore[arg-type]
            began = time.process_time()
            done = fit(task, data, out, args.steps, name=f"{name}_seed{seed}", limit_val_batches=0)
            key = name if len(seeds) == 1 else f"{name} (seed {seed})"
            seconds[key] = (time.process_time() - began) / args.steps
            trained = load_task(done.checkpoint, "weather")
            assert isinstance(trained, FlowForecaster)
            made[key] = network(trained)
    found = compare_forecasts(data, made)
    _report(found, seconds, out, args.leads)
    return 0


def _report(
    found: Mapping[str, Mapping[str, np.ndarray]],
    seconds: Mapping[str, float],
    out: Path,
    leads: int,
) -> None:
    chosen = sorted({1, max(1, leads // 4), max(1, leads // 2), leads})
    for lead in chosen:
        scores = [
            Score(
                name,
                float(one["rmse"][lead - 1]),
                "model" if name in seconds else "baseline",
                {
                    "ACC": f"{one['acc'][lead - 1]:.3f}",
                    "CRPS": f"{one['crps'][lead - 1]:.3f}",
                    "s/step": f"{seconds[name]:.3f}" if name in seconds else "",
                },
            )
            for name, one in found.items()
        ]
        print_table(scores, "RMSE", f"lead {lead}, in deviations of the flow")
        if seconds:
            print(verdict(scores, "RMSE"), flush=True)
    rows = [
        [name, lead + 1, *(float(one[key][lead]) for key in ("rmse", "acc", "crps"))]
        for name, one in found.items()
        for lead in range(leads)
    ]
    columns = {"model": "", "lead": "d", "rmse": ".6g", "acc": ".6g", "crps": ".6g"}
    out.mkdir(parents=True, exist_ok=True)
    write_rows(out / "scores.csv", columns, rows)
    figure = new_figure(8, 4)
    for axes, key in zip(figure.subplots(1, 2), ("rmse", "acc")):
        for name, one in found.items():
            style = "--" if name in BASELINES else "-"
            axes.plot(range(1, leads + 1), one[key], style, label=name)
        axes.set(xlabel="lead (frames)", ylabel=key.upper())
    figure.axes[0].legend(fontsize="small")
    save_png(figure, out / "skill.png")
    print(f"{out}: scores.csv, skill.png and checkpoints")
