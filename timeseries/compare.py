"""``longseq timeseries compare``: models beside baselines on one file, a table and a verdict."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from longseq.core.errors import ConfigError, did_you_mean
from longseq.core.results import Score, best, print_table, verdict
from longseq.core.tables import check_table, write_frame
from longseq.core.training.loading import load_task
from longseq.timeseries.baselines import BASELINES, RIDGE, Baseline, make_baseline
from longseq.timeseries.commands import DOMAIN
from longseq.timeseries.data.calendar import N_FEATURES, resolution
from longseq.timeseries.data.module import ForecastData
from longseq.timeseries.data.protocols import list_protocols
from longseq.timeseries.data.windows import EvaluationWindows, Windows
from longseq.timeseries.forecast import run_model
from longseq.timeseries.metrics import ForecastError
from longseq.timeseries.task import Forecaster

TIE = 5e-4
COLUMNS = ("model", "kind", "horizon", "seed", "mse", "mae", "windows", "context", "protocol", "parameters",
           "seconds", "verdict")  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One model's score at one horizon.

    Args:
        model: its name.
        kind: "model" or "baseline".
        horizon: h.
        seed: of training; None for baselines, which have no randomness.
        mse: mean squared error in z-scores of the training rows.
        mae: mean absolute error, likewise.
        windows: number of test windows.
        parameters: number of fitted numbers.
        seconds: of fitting and testing.
    """

    model: str
    kind: str
    horizon: int
    seed: int | None
    mse: float
    mae: float
    windows: int
    parameters: int
    seconds: float


def evaluate(model: Forecaster | Baseline, windows: Windows, batch_size: int = 128) -> tuple[float, float]:
    """Returns mean squared and mean absolute error over all windows.

    Args:
        model: a task in evaluation mode, or a fitted baseline.
        windows: of the validation or test part.
        batch_size: windows at once; the result does not depend on it.
    """
    mse, mae = ForecastError("mse"), ForecastError("mae")
    for batch in EvaluationWindows(windows, batch_size):
        forecast = run_model(model, batch)
        mse.update(forecast, batch["y"])
        mae.update(forecast, batch["y"])
    return float(mse.compute()), float(mae.compute())


def score_baseline(name: str, data: ForecastData, season: int, ridge: float = RIDGE) -> Row:
    """Fits a baseline on the training windows and scores it on the test windows.

    Args:
        name: of ``BASELINES``.
        data: the file and its split.
        season: rows of a season.
        ridge: λ of the linear ones.
    """
    start = time.perf_counter()
    model = make_baseline(name, data.horizon, season, ridge)
    model.fit(data.windows("train"))
    test = data.windows("test")
    mse, mae = evaluate(model, test, data.eval_batch_size)
    seconds = time.perf_counter() - start
    return Row(name, "baseline", data.horizon, None, mse, mae, len(test), model.parameters, seconds)


def score_model(config: str, data: ForecastData, seed: int, folder: str, options: Sequence[str]) -> Row:
    """Trains a configuration with ``longseq timeseries fit`` and scores its best checkpoint on the test.

    The best checkpoint is the one with the lowest loss on the validation windows.

    Args:
        config: name of a packaged configuration, or a YAML file.
        data: the file and its split.
        seed: of weights, dropout and batches.
        folder: for checkpoints and logs.
        options: further options of ``fit``.
    """
    from longseq.core.shell.lightning_cli import run as fit

    start = time.perf_counter()
    name = f"{Path(config).stem}_h{data.horizon}_seed{seed}"
    before = set(Path(folder).glob(f"{name}/version_*"))
    argv = [*_fit_arguments(config, data), "--seed_everything", str(seed), "--data.seed", str(seed)]
    fit(DOMAIN, "fit", [*argv, "--trainer.default_root_dir", folder, "--name", name, *options])
    (made,) = set(Path(folder).glob(f"{name}/version_*")) - before
    found = [made / "checkpoints" / file for file in ("best.ckpt", "last.ckpt")]
    task = load_task(next((path for path in found if path.is_file()), found[-1]), "timeseries")
    assert isinstance(task, Forecaster)
    test = data.windows("test")
    mse, mae = evaluate(task, test, data.eval_batch_size)
    parameters = sum(parameter.numel() for parameter in task.parameters())
    seconds = time.perf_counter() - start
    return Row(Path(config).stem, "model", data.horizon, seed, mse, mae, len(test), parameters, seconds)


def _fit_arguments(config: str, data: ForecastData) -> list[str]:
    """Returns the arguments of ``fit`` that follow from the data."""
    import yaml  # type: ignore[import-untyped]

    content = yaml.safe_load(Path(DOMAIN.resolve_config(config)).read_text(encoding="utf-8"))
    kind = str(((content or {}).get("model") or {}).get("class_path", "")).rpartition(".")[2]
    found = {
        "path": data.path, "protocol": data.hparams["protocol"], "context": data.context,
        "horizon": data.horizon, "missing": data.missing,
    }  # fmt: skip
    argv = ["--config", config, *(f"--data.{key}={value}" for key, value in found.items())]
    if data.series is not None:
        argv.append(f"--data.series=[{','.join(data.series)}]")
    argv += [f"--model.context={data.context}", f"--model.horizon={data.horizon}"]
    if kind in ("Informer", "Autoformer"):  # models of a fixed number of series
        features = N_FEATURES[resolution(data.panel.freq)]
        argv += [f"--model.channels={len(data.panel.ids)}", f"--model.features={features}"]
    return argv


def summarise(rows: Sequence[Row]) -> list[Score]:
    """Returns one score a model at one horizon: the mean over its seeds.

    Args:
        rows: of one horizon.
    """
    scores = []
    for model in dict.fromkeys(row.model for row in rows):
        mine = [row for row in rows if row.model == model]
        mse = [row.mse for row in mine]
        notes = {
            "± (seeds)": f"{np.std(mse, ddof=1):.4f} ({len(mse)})" if len(mse) > 1 else "",
            "mae": f"{np.mean([row.mae for row in mine]):.4f}",
            "parameters": f"{mine[0].parameters:,}",
            "seconds": f"{np.mean([row.seconds for row in mine]):.1f}",
        }
        kind = "model" if mine[0].kind == "model" else "baseline"
        scores.append(Score(model, float(np.mean(mse)), kind, notes))  # type: ignore[arg-type]
    return scores


def _verdict(scores: Sequence[Score], horizon: int) -> str:
    kinds = {score.kind for score in scores}
    if kinds == {"model", "baseline"}:
        return f"h {horizon}: {verdict(scores, 'mse', tie=TIE)}"
    first = best(scores, kinds.pop())
    return f"h {horizon}: the best is {first.model} with {first.value:.4f} mse; nothing to compare it with."


def to_frame(rows: Sequence[Row], context: int, protocol: str) -> pd.DataFrame:
    """Returns the table that is written; every model's row says how it stands beside the best baseline."""
    lines = []
    for row in rows:
        baselines = [Score(r.model, r.mse) for r in rows if r.kind == "baseline" and r.horizon == row.horizon]
        said = ""
        if row.kind == "model" and baselines:
            said = verdict([Score(row.model, row.mse, "model"), *baselines], "mse", tie=TIE)
        lines.append({**vars(row), "context": context, "protocol": protocol, "verdict": said})
    frame = pd.DataFrame(lines, columns=list(COLUMNS))
    return frame.astype({"seed": "Int64"})


def run(argv: Sequence[str]) -> int:
    """Runs ``longseq timeseries compare``."""
    parser = argparse.ArgumentParser(
        prog="longseq timeseries compare",
        description="Scores models beside baselines on all test windows of one file, in z-scores of the "
        "training rows. Options of fit (--model.x, --data.x, --trainer.x) are passed on to the models.",
    )
    known = ", ".join((*BASELINES, *DOMAIN.configs()))
    parser.add_argument("--data", required=True, help="CSV, Parquet or TXT file")
    parser.add_argument(
        "--protocol", default="ratio", help=f"{', '.join(list_protocols())}, or a YAML file (ratio)"
    )
    parser.add_argument("--context", type=int, default=336, help="known rows of a window (336)")
    parser.add_argument("--horizons", default="96,192,336,720", help="predicted rows (96,192,336,720)")
    parser.add_argument(
        "--models", default=",".join(BASELINES), help=f"of {known}, or YAML files (all baselines)"
    )
    parser.add_argument("--seeds", default="0", help="of the trained models (0)")
    parser.add_argument("--out", required=True, help=".csv, .tsv or .parquet table to write")
    parser.add_argument("--folder", default="outputs/timeseries", help="for checkpoints (outputs/timeseries)")
    parser.add_argument("--series", help="names of the series to take, by commas (all)")
    parser.add_argument(
        "--missing", choices=("error", "ffill"), default="error", help="missing values (error)"
    )
    parser.add_argument("--season", type=int, help="rows of a season (from the time step)")
    parser.add_argument("--ridge", type=float, default=RIDGE, help=f"λ of the linear baselines ({RIDGE:g})")
    args, options = parser.parse_known_args(argv)
    _check_options(options)
    check_table(args.out)
    horizons, seeds = _integers("--horizons", args.horizons), _integers("--seeds", args.seeds)
    models = [name.strip() for name in args.models.split(",") if name.strip()]
    for name in models:
        if name not in BASELINES and name not in DOMAIN.configs() and not Path(name).is_file():
            hint = did_you_mean(name, (*BASELINES, *DOMAIN.configs()))
            raise ConfigError(f"--models: no baseline, configuration or file {name!r}; {hint}")
    series = None if args.series is None else args.series.split(",")
    rows: list[Row] = []
    for horizon in horizons:
        data = ForecastData(args.data, args.protocol, args.context, horizon, series, args.missing)
        data.setup()
        season = args.season or data.panel.season()
        here: list[Row] = []
        for name in models:
            if name in BASELINES:
                here.append(score_baseline(name, data, season, args.ridge))
            else:
                here += [score_model(name, data, seed, args.folder, options) for seed in seeds]
        scores = summarise(here)
        count, names = here[0].windows, ", ".join(data.panel.ids[:7])
        filled = f", {data.panel.filled} values carried forward" if data.panel.filled else ""
        title = f"{args.data}, protocol {data.protocol.name}, context {args.context}, horizon {horizon}: "
        print_table(scores, "mse", f"{title}{count:,} test windows of {names}{filled}")
        print(_verdict(scores, horizon), flush=True)
        rows += here
        # After every horizon, so that a long run that is stopped leaves what it found.
        write_frame(to_frame(rows, args.context, data.protocol.name), args.out)
    print(f"\n{args.out}: {len(rows)} rows")
    return 0


def _check_options(options: Sequence[str]) -> None:
    for text in options:
        if text.startswith("-") and not text.startswith(("--model.", "--data.", "--trainer.", "--progress")):
            raise ConfigError(f"{text.partition('=')[0]}: no such option; longseq timeseries compare --help")


def _integers(name: str, text: str) -> list[int]:
    try:
        values = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"{name}: whole numbers by commas are needed, got {text!r}") from error
    if len(set(values)) < len(values) or any(value < 0 for value in values):
        raise ConfigError(f"{name}: distinct numbers of at least 0 are needed, got {text!r}")
    return values
