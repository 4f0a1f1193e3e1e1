"""``longseq weather compare``: emulators beside the plain baselines, with a noise floor and a verdict."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from longseq.core.errors import ConfigError, did_you_mean
from longseq.core.results import Score, best, print_table, verdict
from longseq.core.tables import check_table, write_rows
from longseq.weather.baselines import BASELINES, predict_baseline
from longseq.weather.commands import DOMAIN
from longseq.weather.data.module import ScenarioData
from longseq.weather.data.scenario import need_years, refuse_leak, spans_text
from longseq.weather.metrics import Noise, global_rmse, spatial_rmse
from longseq.weather.predict import load_emulator, run_emulator

COLUMNS = {
    "model": "",
    "seed": "d",
    "spatial_rmse": ".6f",
    "global_rmse": ".6f",
    "noise_floor": ".6f",
    "verdict": "",
    "kind": "",
    "noise_floor_global": ".6f",
}
METRIC = "spatial RMSE"


@dataclass(frozen=True)
class Row:
    """One model's scores.

    Args:
        model: its name.
        kind: "model" or "baseline".
        seed: of training; None for baselines, which have no randomness.
        spatial: spatial RMSE in the field's units.
        whole: global RMSE, likewise.
        mean: predicted mean anomaly over the period (Y, X).
    """

    model: str
    kind: str
    seed: int | None
    spatial: float
    whole: float
    mean: np.ndarray


class Comparison:
    """The runs of a comparison, checked for leaks, and what is scored.

    Args:
        data: training and test runs.

    Raises:
        DataError: if years are missing or scored years are the same in a training run.
    """

    def __init__(self, data: ScenarioData) -> None:
        self.data, self.train, self.test = data, data.train_runs, data.test_run
        period = data.spans["period"]
        self.chosen = need_years(self.test.field, period, "period")
        self.known = refuse_leak(self.train, self.test, period)
        self.truth = self.test.anomalies[self.chosen]
        first = self.train[0]
        self.noise = Noise(first.anomalies, first.predictors, first.weights, int(self.chosen.sum()))

    def _row(self, model: str, kind: str, seed: int | None, prediction: np.ndarray) -> Row:
        weights = self.test.weights
        scores = (spatial_rmse(prediction, self.truth, weights), global_rmse(prediction, self.truth, weights))
        return Row(model, kind, seed, *scores, np.asarray(prediction, dtype=np.float64).mean(0))

    def baseline(self, name: str) -> Row:
        """Fits and scores a baseline, by its name."""
        prediction = predict_baseline(name, self.train, self.test, self.chosen, self.known)
        return self._row(name, "baseline", None, prediction)

    def checkpoint(self, path: str | Path, name: str, seed: int | None) -> Row:
        """Scores a checkpoint.

        Args:
            path: of an emulator.
            name: for the table.
            seed: for the table.
        """
        task = load_emulator(path)
        task.check_run(self.test)
        return self.score(name, run_emulator(task, self.test.predictors), seed)

    def score(self, name: str, anomalies: np.ndarray, seed: int | None = None) -> Row:
        """Scores predicted anomalies.

        Args:
            name: of the model, for the table.
            anomalies: of all years of the test run (T, Y, X).
            seed: of training, for the table.
        """
        return self._row(name, "model", seed, anomalies[self.chosen])

    def said(self, row: Row, rows: Sequence[Row]) -> str:
        """Returns a model's verdict beside the best baseline, and what variability explains of it."""
        others = [Score(other.model, other.spatial) for other in rows if other.kind == "baseline"]
        if row.kind != "model" or not others:
            return ""
        first = best(others, "baseline")
        rival = next(other for other in rows if other.model == first.model and other.kind == "baseline")
        margin = self.noise.margin(row.mean, rival.mean, (row.spatial, rival.spatial))
        text = verdict(
            [Score(row.model, row.spatial, "model"), *others],
            f"K {METRIC}" if self.kelvin else METRIC,
            tie=margin,
        )
        return f"{text} Internal variability explains differences up to {margin:.4f}."

    @property
    def kelvin(self) -> bool:
        """Whether the scores are in kelvin."""
        return self.test.field.units == "K"


def train_model(config: str, data: ScenarioData, seed: int, folder: str, options: Sequence[str]) -> Path:
    """Trains a configuration with ``longseq weather fit`` and returns its checkpoint.

    It is the best by validation loss, or the last where all training years are trained on.

    Args:
        config: name of a packaged configuration, or a YAML file.
        data: the runs; the test run is not given to the training.
        seed: of weights, dropout and order.
        folder: for checkpoints and logs.
        options: further options of ``fit``.
    """
    from longseq.core.shell.lightning_cli import run as fit

    name = f"{Path(config).stem}_seed{seed}"
    before = set(Path(folder).glob(f"{name}/version_*"))
    rows, columns = data.train_runs[0].weights.shape
    hyper = data.hparams
    argv = ["--config", config, f"--data.train=[{','.join(data.train_files)}]", "--data.test=null"]
    argv += [f"--data.{key}={hyper[key]}" for key in ("baseline", "period", "smooth")]
    argv.append(f"--data.valid={'null' if hyper['valid'] is None else hyper['valid']}")
    argv += [f"--data.{key}={hyper[key]}" for key in ("variable", "units") if hyper[key] is not None]
    if hyper["valid"] is None:
        argv.append("--trainer.limit_val_batches=0")
    if data.forcing:
        argv.append(f"--data.forcing=[{','.join(data.forcing)}]")
    argv += [f"--model.height={rows}", f"--model.width={columns}"]
    argv += [f"--model.predictors={len(data.train_runs[0].names)}"]
    argv += ["--seed_everything", str(seed), "--data.seed", str(seed), "--name", name]
    fit(DOMAIN, "fit", [*argv, "--trainer.default_root_dir", folder, *options])
    (made,) = set(Path(folder).glob(f"{name}/version_*")) - before
    found = [made / "checkpoints" / file for file in ("best.ckpt", "last.ckpt")]
    return next((path for path in found if path.is_file()), found[-1])


def summarise(rows: Sequence[Row]) -> list[Score]:
    """Returns one score a model: the mean over its seeds."""
    scores = []
    for model in dict.fromkeys(row.model for row in rows):
        mine = [row for row in rows if row.model == model]
        spatial = [row.spatial for row in mine]
        notes = {
            "± (seeds)": f"{np.std(spatial, ddof=1):.4f} ({len(mine)})" if len(mine) > 1 else "",
            "global RMSE": f"{np.mean([row.whole for row in mine]):.4f}",
        }
        kind = "model" if mine[0].kind == "model" else "baseline"
        scores.append(Score(model, float(np.mean(spatial)), kind, notes))  # type: ignore[arg-type]
    return scores


def write_table(path: str | Path, rows: Sequence[Row], comparison: Comparison) -> None:
    """Writes the rows.

    Args:
        path: file to write.
        rows: of all models and seeds.
        comparison: for floor and verdicts.
    """
    noise = comparison.noise
    lines = []
    for row in rows:
        numbers = [row.seed, row.spatial, row.whole, noise.spatial]
        lines.append([row.model, *numbers, comparison.said(row, rows), row.kind, noise.whole])
    write_rows(path, COLUMNS, lines)


def print_report(rows: Sequence[Row], comparison: Comparison, title: str) -> None:
    """Prints table, noise floor and verdict.

    Args:
        rows: of all models and seeds.
        comparison: for floor and verdict.
        title: of the table.
    """
    scores, noise = summarise(rows), comparison.noise
    units = comparison.test.field.units
    print_table(scores, f"{METRIC} ({units})", title)
    if np.isfinite(noise.spatial):
        print(
            f"Noise floor: internal variability alone gives about {noise.spatial:.4f} {units} spatial and "
            f"{noise.whole:.4f} {units} global."
        )
    else:
        print("Noise floor: none, the training run is too short to tell variability from its trend.")
    models = [row for row in rows if row.kind == "model"]
    for name in dict.fromkeys(row.model for row in models):
        mine = [row for row in models if row.model == name]
        middle = sorted(mine, key=lambda row: row.spatial)[(len(mine) - 1) // 2]
        which = f" (median of {len(mine)} seeds)" if len(mine) > 1 else ""
        print(f"{comparison.said(middle, rows)}{which}")


def run(argv: Sequence[str]) -> int:
    """Runs ``longseq weather compare``."""
    parser = argparse.ArgumentParser(
        prog="longseq weather compare",
        description="Fits baselines and emulators on training runs and scores them on years of a test run "
        "that no training run shares. Options of fit (--model.x, --trainer.x) go on to the emulators.",
    )
    known = ", ".join((*BASELINES, *DOMAIN.configs()))
    parser.add_argument("--train", required=True, nargs="+", help="NetCDF files, Zarr stores or sample names")
    parser.add_argument("--test", required=True, help="likewise, one")
    parser.add_argument("--baseline", default="1860-1889", help="years of the climatology (1860-1889)")
    parser.add_argument("--period", default="2080-2099", help="scored years of the test run (2080-2099)")
    parser.add_argument("--valid", help="training years held out for choosing the best checkpoint (none)")
    parser.add_argument("--out", required=True, help=".csv, .tsv or .parquet table to write")
    parser.add_argument(
        "--models", default=",".join(BASELINES), help=f"of {known}, YAML files, or checkpoints"
    )
    parser.add_argument("--seeds", default="0", help="of the trained models, by commas (0)")
    parser.add_argument("--variable", help="name or standard name (the only one)")
    parser.add_argument("--units", help="to convert to (canonical ones)")
    parser.add_argument(
        "--smooth", type=int, default=31, help="years of the running mean of the predictor (31)"
    )
    parser.add_argument(
        "--train_forcing", nargs="+", help="forcings of every training run (the regional mean)"
    )
    parser.add_argument("--test_forcing", help="forcings of the test run")
    parser.add_argument("--folder", default="outputs/weather", help="for checkpoints (outputs/weather)")
    args, options = parser.parse_known_args(argv)
    for text in options:
        if text.startswith("-") and not text.startswith(("--model.", "--data.", "--trainer.", "--progress")):
            raise ConfigError(f"{text.partition('=')[0]}: no such option; longseq weather compare --help")
    check_table(args.out)
    if (args.train_forcing is None) != (args.test_forcing is None):
        raise ConfigError("--train_forcing and --test_forcing: give both or neither")
    seeds = _integers(args.seeds)
    models = [name.strip() for name in args.models.split(",") if name.strip()]
    for name in models:
        if name not in BASELINES and name not in DOMAIN.configs() and not Path(name).is_file():
            hint = did_you_mean(name, (*BASELINES, *DOMAIN.configs()))
            raise ConfigError(f"--models: no baseline, configuration or file {name!r}; {hint}")
    data = ScenarioData(
        args.train, args.test, args.variable, args.units, args.baseline, args.valid, args.period,
        args.smooth, args.train_forcing, args.test_forcing,
    )  # fmt: skip
    comparison = Comparison(data)
    if len(comparison.known):
        print(
            f"{len(comparison.known)} years ({spans_text(comparison.known)}) are the same in {args.test} and "
            "in the training runs: they are trained on and never scored."
        )
    rows: list[Row] = []
    for name in models:
        if name in BASELINES:
            rows.append(comparison.baseline(name))
        elif Path(name).suffix == ".ckpt":
            rows.append(comparison.checkpoint(name, Path(name).stem, None))
        else:
            for seed in seeds:
                found = train_model(name, data, seed, args.folder, options)
                rows.append(comparison.checkpoint(found, Path(name).stem, seed))
                write_table(args.out, rows, comparison)  # a long run that is stopped leaves what it found
    write_table(args.out, rows, comparison)
    title = f"{args.test}, {args.period}, trained on {', '.join(args.train)}, anomalies to {args.baseline}"
    print_report(rows, comparison, title)
    print(f"\n{args.out}: {len(rows)} rows")
    return 0


def _integers(text: str) -> list[int]:
    try:
        values = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"--seeds: whole numbers by commas are needed, got {text!r}") from error
    if len(set(values)) < len(values) or any(value < 0 for value in values):
        raise ConfigError(f"--seeds: distinct numbers of at least 0 are needed, got {text!r}")
    return values
