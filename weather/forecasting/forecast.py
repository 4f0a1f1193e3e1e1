"""``longseq weather forecast``: networks on a generated flow beside plain forecasts."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from longseq.core.checks import check_positive
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
from longseq.weather.forecasting.linear_inverse import BestLinearInverse, BestRidge
from longseq.weather.forecasting.station_task import StationData, StationForecaster
from longseq.weather.forecasting.task import FlowData, FlowForecaster

_MUON = {"optimizer": "muon", "optimizer_kwargs": {"muon_lr": 0.02, "steps": 3}}
_CONVOLUTIONS: dict[str, Any] = {"patch": 2, "width": 32, "n_layers": 2, "weight_decay": 0.1}
_STATES = {"d_state": 32, "dt_min": 0.02, "dt_max": 1.0}
# The convolutional ones have equal settings and about equal size, and so have the other two sizes.
SETTINGS: dict[str, dict[str, Any]] = {
    "fno": {"width": 16, "n_layers": 2, "modes": 6},
    "conv_s5": {**_CONVOLUTIONS, **_MUON, **_STATES},
    "gated_conv_s5": {**_CONVOLUTIONS, **_MUON, **_STATES},
    "light_conv_s5": {
        **_CONVOLUTIONS,
        **_MUON,
        **_STATES,
        "kind": "gated_conv_s5",
        "read_kernel": 1,
    },
    "conv_lstm": {**_CONVOLUTIONS, **_MUON, "d_state": 16},
    "masked_transformer": {"width": 48, "n_layers": 2},
}
_WITH_STATES = ("conv_s5", "gated_conv_s5", "light_conv_s5", "conv_lstm")
# At stations; with and without the virtual node.
STATION_SETTINGS: dict[str, dict[str, Any]] = {
    "graph": {"virtual": True},
    "graph_local": {"virtual": False},
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
    train, valid = (data.fill(data.runs(part)).flatten(2).numpy() for part in ("train", "valid"))
    linear = BestLinearInverse().fit(train, valid, data.leads)
    climate = train.mean((0, 1))

    def fields(flat: np.ndarray, like: np.ndarray) -> np.ndarray:
        return flat.reshape(*flat.shape[:2], *like.shape[2:])

    def inverse(context: np.ndarray, leads: int) -> np.ndarray:
        flat = context[:, -1].reshape(len(context), -1)
        return fields(linear.forecast(flat, leads), context)

    made: dict[str, Forecast] = {
        "persistence": lambda context, leads: np.repeat(context[:, -1:], leads, 1),
        "context mean": lambda context, leads: np.repeat(context.mean(1, keepdims=True), leads, 1),
        "climatology": lambda context, leads: fields(
            np.broadcast_to(climate, (len(context), leads, len(climate))), context
        ),
        "linear inverse": inverse,
    }
    if isinstance(data, StationData):  # whose states are small enough
        ridge = BestRidge().fit(train, valid, data.context, data.leads)
        made["ridge VAR"] = lambda context, leads: fields(
            ridge.forecast(context.reshape(*context.shape[:2], -1))[:, :leads], context
        )

    def filled(one: Forecast) -> Forecast:
        return lambda context, leads: one(data.fill(torch.from_numpy(context)).numpy(), leads)

    return {name: filled(one) for name, one in made.items()}


def network(
    task: FlowForecaster | StationForecaster, places: Tensor | None = None, window: int = 0
) -> Forecast:
    """Returns a trained network as a forecast.

    Args:
        task: the network.
        places: of its stations (K, 2), for a ``StationForecaster``.
        window: see ``FlowModel.rollout``.
    """
    further: dict[str, int] = {"window": window} if window else {}

    def forecast(context: np.ndarray, leads: int) -> np.ndarray:
        made = []
        with torch.inference_mode():
            for one in torch.from_numpy(context).split(16):
                where = [] if places is None else [places.expand(len(one), -1, -1)]
                made.append(task(one, *where, leads, **further))
        return torch.cat(made).numpy()

    return forecast


def damping(forecast: np.ndarray, truth: np.ndarray, climate: np.ndarray) -> np.ndarray:
    """Returns how much of a forecast's departure from the climate to keep at every lead (L), by
    least squares, from 0 to 1: a forecast that has lost the flow errs less the nearer it is to the
    climate.

    Args:
        forecast: (B, L, C, Y, X), of validation flows.
        truth: likewise.
        climate: mean of the training flows (C, Y, X).
    """
    made, true = (np.asarray(one, dtype=np.float64) - climate for one in (forecast, truth))
    own = (made**2).sum((0, 2, 3, 4))
    return np.clip((made * true).sum((0, 2, 3, 4)) / np.where(own > 0, own, 1), 0, 1)


def compare_forecasts(
    data: FlowData, made: Mapping[str, Forecast], damped: Sequence[str] = ()
) -> dict[str, dict[str, np.ndarray]]:
    """Returns the scores by lead of every forecast on the test flows.

    Args:
        data: flows.
        made: forecasts by name.
        damped: names of those that are scored once more as "NAME, damped", see ``damping``, which
            the validation flows set.
    """
    climate = data.fill(data.runs("train")).mean((0, 1)).numpy()

    def parts(part: str) -> tuple[np.ndarray, np.ndarray]:
        windows = data.windows(part)
        videos = torch.stack([windows[n]["video"] for n in range(len(windows))]).numpy()
        return videos[:, : data.context], videos[:, data.context :]

    context, truth = parts("test")
    found = {}
    for name, one in made.items():
        forecast = one(context, data.leads)
        found[name] = score(forecast, truth, climate)
        if name in damped:
            before, after = parts("valid")
            kept = damping(one(before, data.leads), after, climate)[:, None, None, None]
            less = climate + kept * (forecast - climate)
            found[f"{name}, damped"] = score(less, truth, climate)
    return found


def run(argv: Sequence[str]) -> int:
    """Runs ``longseq weather forecast``."""
    parser = CommandParser(
        prog="longseq weather forecast",
        description="Generates a flow, trains networks on it and scores their forecasts by lead "
        "time beside persistence, the context's mean, climatology and a linear inverse model.",
    )
    known, at_stations = ",".join(SETTINGS), ",".join(STATION_SETTINGS)
    parser.add_argument(
        "--flow",
        default="quasigeostrophic",
        help=f"{', '.join(FLOWS)}, or the class path of one of your own (quasigeostrophic)",
    )
    parser.add_argument(
        "--models", help=f"by commas, of {known}; with --stations of {at_stations} (all)"
    )
    parser.add_argument("--stations", type=int, help="in irregular places, instead of the grid")
    parser.add_argument(
        "--missing", type=float, default=0.0, help="share of times a station lacks (0)"
    )
    parser.add_argument("--steps", type=int, default=300, help="of every training (300)")
    parser.add_argument("--seeds", default="0", help="of the trainings (0)")
    parser.add_argument("--leads", type=int, default=20, help="frames that are forecast (20)")
    parser.add_argument("--members", type=int, default=6, help="training flows (6)")
    parser.add_argument(
        "--eval_members", type=int, default=2, help="flows of validation, and of test (2)"
    )
    parser.add_argument(
        "--damped",
        action="store_true",
        help="score networks and persistence once more, drawn to the climate at every lead by as "
        "much as suits the validation flows best",
    )
    parser.add_argument(
        "--window",
        type=int,
        default=0,
        help="score networks that carry states once more, each frame made from the last so many "
        "alone (0: do not)",
    )
    parser.add_argument(
        "--longer",
        type=int,
        default=0,
        help="further steps of every training at a tenth of its rates, on windows in which five "
        "times the frames follow and all count alike: against rollouts that drift (0)",
    )
    parser.add_argument("--frames", type=int, default=400, help="of every flow (400)")
    parser.add_argument("--size", type=int, default=32, help="points along a side (32)")
    parser.add_argument("--every", type=int, help="time steps between frames (the flow's own)")
    parser.add_argument("--spin_up", type=int, help="time steps before (the flow's own)")
    parser.add_argument("--out", default="outputs/weather/forecast", help="folder to write")
    args = parser.parse_args(argv)
    check_positive("--steps", args.steps)
    settings = SETTINGS if args.stations is None else STATION_SETTINGS
    asked = ",".join(settings) if args.models is None else args.models
    names = [name.strip() for name in asked.split(",") if name.strip()]
    for name in names:
        if name not in settings:
            raise ConfigError(f"--models: no model {name!r}; {did_you_mean(name, list(settings))}")
    if args.stations is None and args.missing:
        raise ConfigError("--missing is for --stations: fields on the grid are whole")
    if args.window < 0 or (args.window and args.stations is not None):
        raise ConfigError("--window must be at least 0, and is not for --stations")
    if args.longer < 0 or (args.longer and args.stations is not None):
        raise ConfigError("--longer must be at least 0, and is not for --stations")
    seeds, out = whole_numbers("--seeds", args.seeds), Path(args.out)
    flow = {
        name: getattr(args, name)
        for name in (
            *("size", "members", "eval_members", "frames", "every", "spin_up", "leads", "flow"),
        )
    }
    data = (
        FlowData(**flow)
        if args.stations is None
        else StationData(stations=args.stations, missing=args.missing, **flow)
    )
    longer = longer_windows(data) if args.longer else None
    rows, columns = data.flow.shape
    seen = "" if args.stations is None else f", seen at {args.stations} stations"
    what = f"flows of {args.frames} frames, {rows} × {columns} points{seen}"
    print(f"{args.flow}: {what} …", flush=True)
    made = forecasters(data)
    seconds: dict[str, float] = {}
    for name in names:
        for seed in seeds:
            seed_everything(seed)
            task = _make(data, name)
            began = time.process_time()
            done = fit(task, data, out, args.steps, name=f"{name}_seed{seed}", limit_val_batches=0)
            key = name if len(seeds) == 1 else f"{name} (seed {seed})"
            seconds[key] = (time.process_time() - began) / args.steps
            trained = load_task(done.checkpoint, "weather")
            assert isinstance(trained, FlowForecaster | StationForecaster)
            if longer is not None and isinstance(trained, FlowForecaster):
                longer.share_runs(data)
                further = f"{name}_seed{seed}_longer"
                trained = lengthen(trained, longer, out, args.longer, name, further)
            made[key] = network(trained, getattr(data, "places", None))
            if args.window and name in _WITH_STATES:
                last = f"{key}, last {args.window}"
                made[last], seconds[last] = network(trained, window=args.window), seconds[key]
    networks = [name for name in made if name in seconds]
    damped = ["persistence", *networks] if args.damped else []
    found = compare_forecasts(data, made, damped)
    seconds |= {f"{name}, damped": seconds[name] for name in networks if args.damped}
    _report(found, seconds, out, args.leads)
    return 0


def longer_windows(data: FlowData) -> FlowData:
    """Returns the same flows in windows in which five times the frames follow the context, a
    quarter as many in a training step, which has no more frames for it.

    Args:
        data: whose flows they are.

    Raises:
        ConfigError: if the flows are too short for such windows.
    """
    changed = {"horizon": 5 * data.horizon, "batch_size": max(1, data.batch_size // 4)}
    if data.frames < data.context + changed["horizon"]:
        need = data.context + changed["horizon"]
        raise ConfigError(f"--longer needs flows of {need} frames, --frames is {data.frames}")
    own = {key: one for key, one in data.hparams.items() if not key.startswith("_")}
    return FlowData(**{**own, **changed})


def lengthen(
    trained: FlowForecaster, longer: FlowData, out: Path, steps: int, model: str, name: str
) -> FlowForecaster:
    """Returns a network after further steps on longer windows, at a tenth of its rates.

    Errors of a rollout that grow later than a training's windows end are seen by no other loss.
    Every lead counts alike in it: with the mean square over all leads the last ones, whose errors
    are the greatest, would cost the first frames.

    Args:
        trained: the network, which stays as it is.
        longer: see ``longer_windows``.
        out: folder to write.
        steps: further ones.
        model: its name among ``SETTINGS``.
        name: of the run's folder.
    """
    task = _make(longer, model, slower=0.1, by_lead=True)
    assert isinstance(task, FlowForecaster)
    task.load_state_dict(trained.state_dict())
    done = fit(task, longer, out, steps, name=name, limit_val_batches=0)
    found = load_task(done.checkpoint, "weather")
    assert isinstance(found, FlowForecaster)
    return found


def _make(
    data: FlowData, name: str, slower: float = 1.0, by_lead: bool = False
) -> FlowForecaster | StationForecaster:
    """Returns an untrained network for some data, its learning rates times a factor."""
    if isinstance(data, StationData):
        return StationForecaster(**STATION_SETTINGS[name], **data.model_arguments())
    settings = {**SETTINGS[name], "by_lead": by_lead}
    if slower != 1:
        own = settings.get("optimizer_kwargs", {})
        settings = {**settings, "lr": slower * FlowForecaster.defaults["lr"]}
        if "muon_lr" in own:
            settings["optimizer_kwargs"] = {**own, "muon_lr": slower * own["muon_lr"]}
    if any(side % settings.get("patch", 1) for side in data.flow.shape):
        settings = {**settings, "patch": 1}  # a flow in one dimension has no patches
    settings = {"kind": name, **settings}
    return FlowForecaster(**settings, **data.model_arguments())


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
            style = "-" if name in seconds else "--"
            axes.plot(range(1, leads + 1), one[key], style, label=name)
        axes.set(xlabel="lead (frames)", ylabel=key.upper())
    figure.axes[0].legend(fontsize="small")
    save_png(figure, out / "skill.png")
    print(f"{out}: scores.csv, skill.png and checkpoints")
