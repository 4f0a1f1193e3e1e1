"""``longseq weather compare``: emulators beside the plain baselines, with a noise floor and a
verdict."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from longseq.core.compare import Comparison, Row
from longseq.core.errors import ConfigError
from longseq.core.training.by_config import Values
from longseq.weather.baselines import BASELINES, predict_baseline
from longseq.weather.data.module import ScenarioData
from longseq.weather.data.scenario import need_years, refuse_leak, spans_text
from longseq.weather.metrics import Noise, global_rmse, spatial_rmse
from longseq.weather.predict import load_emulator, run_emulator
from longseq.weather.task import ClimateEmulator

METRIC = "spatial RMSE"


class EmulatorComparison(Comparison):
    """Spatial RMSE of the mean over the scored years, which no training run shares.

    Args:
        data: training and test runs.
        title: of the table.

    Raises:
        DataError: if years are missing or scored years are the same in a training run.
    """

    baselines = BASELINES
    score = "spatial_rmse"
    columns = {
        "model": "",
        "seed": "d",
        **dict.fromkeys(("spatial_rmse", "global_rmse", "noise_floor"), ".6f"),
        "verdict": "",
        "kind": "",
        "noise_floor_global": ".6f",
    }

    def __init__(self, data: ScenarioData, title: str = "") -> None:
        self.data, self.train, self.test = data, data.train_runs, data.test_run
        period = data.spans["period"]
        self.chosen = need_years(self.test.field, period, "period")
        self.known = refuse_leak(self.train, self.test, period)
        self.truth = self.test.anomalies[self.chosen]
        first = self.train[0]
        self.noise = Noise(first.anomalies, first.predictors, first.weights, int(self.chosen.sum()))
        self._title = title

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--train", required=True, nargs="+", help="NetCDF files, Zarr stores or sample names"
        )
        parser.add_argument("--test", required=True, help="likewise, one")
        parser.add_argument(
            "--baseline", default="1860-1889", help="years of the climatology (1860-1889)"
        )
        parser.add_argument(
            "--period", default="2080-2099", help="scored years of the test run (2080-2099)"
        )
        parser.add_argument(
            "--valid", help="training years held out for choosing the best checkpoint (none)"
        )
        parser.add_argument("--variable", help="name or standard name (the only one)")
        parser.add_argument("--units", help="to convert to (canonical ones)")
        parser.add_argument(
            "--smooth", type=int, default=31, help="years of the running mean of the predictor (31)"
        )
        parser.add_argument(
            "--train_forcing", nargs="+", help="forcings of every training run (the regional mean)"
        )
        parser.add_argument("--test_forcing", help="forcings of the test run")

    @classmethod
    def of(cls, args: argparse.Namespace) -> Iterator[EmulatorComparison]:
        if (args.train_forcing is None) != (args.test_forcing is None):
            raise ConfigError("--train_forcing and --test_forcing: give both or neither")
        data = ScenarioData(
            args.train,
            args.test,
            args.variable,
            args.units,
            args.baseline,
            args.valid,
            args.period,
            args.smooth,
            args.train_forcing,
            args.test_forcing,
        )
        trained = ", ".join(args.train)
        title = f"{args.test}, {args.period}, trained on {trained}, anomalies to {args.baseline}"
        made = cls(data, title)
        if len(made.known):
            print(
                f"{len(made.known)} years ({spans_text(made.known)}) are the same in {args.test} "
                f"and in the "
                "training runs: they are trained on and never scored."
            )
        yield made

    at_test = ("lps",)

    @classmethod
    def of_test(cls, task: Any, data: Any) -> EmulatorComparison | None:
        if not (isinstance(task, ClimateEmulator) and isinstance(data, ScenarioData)):
            return None
        return cls(data, f"{data.hparams['test']}, {data.hparams['period']}")

    def tested(self, task: Any, metrics: Mapping[str, float]) -> Row:
        anomalies = run_emulator(task, self.test.predictors)
        return self.anomalies(type(task).__name__, anomalies)

    @property
    def title(self) -> str:
        return self._title

    @property
    def metric(self) -> str:
        return f"K {METRIC}" if self.test.field.units == "K" else METRIC

    @property
    def heading(self) -> str:
        return f"{METRIC} ({self.test.field.units})"

    def _row(self, model: str, kind: Any, prediction: np.ndarray, seed: int | None = None) -> Row:
        weights, noise = self.test.weights, self.noise
        value = spatial_rmse(prediction, self.truth, weights)
        numbers = {
            "global_rmse": global_rmse(prediction, self.truth, weights),
            "noise_floor": noise.spatial,
            "noise_floor_global": noise.whole,
        }
        mean = np.asarray(prediction, dtype=np.float64).mean(0)
        return Row(model, kind, value, seed, numbers=numbers, state=mean)

    def baseline(self, name: str) -> list[Row]:
        prediction = predict_baseline(name, self.train, self.test, self.chosen, self.known)
        return [self._row(name, "baseline", prediction)]

    def checkpoint(self, path: Path, name: str, seed: int | None) -> list[Row]:
        task = load_emulator(path)
        task.check_run(self.test)
        return [replace(self.anomalies(name, run_emulator(task, self.test.predictors)), seed=seed)]

    def anomalies(self, name: str, anomalies: np.ndarray) -> Row:
        """Scores predicted anomalies.

        Args:
            name: of the model, for the table.
            anomalies: of all years of the test run (T, Y, X).
        """
        return self._row(name, "model", anomalies[self.chosen])

    def values(self, config: Path, seed: int) -> Values:
        """The test run is not given to the training."""
        data, hyper = self.data, self.data.hparams
        rows, columns = self.train[0].weights.shape
        own = {key: hyper[key] for key in ("baseline", "period", "smooth", "valid")}
        own |= {key: hyper[key] for key in ("variable", "units") if hyper[key] is not None}
        if data.forcing:
            own["forcing"] = data.forcing
        model = {"height": rows, "width": columns, "predictors": len(self.train[0].names)}
        # Without validation years the last checkpoint is taken.
        trainer = {} if hyper["valid"] is not None else {"limit_val_batches": 0}
        own = {"train": data.train_files, "test": None, **own, "seed": seed}
        return {"data": own, "model": model, "trainer": trainer}

    def tie(self, row: Row, rival: Row) -> float:
        return self.noise.margin(row.state, rival.state, (row.value, rival.value))

    def explain(self, row: Row, rival: Row) -> str:
        return f"Internal variability explains differences up to {self.tie(row, rival):.4f}."

    def notes(self, rows: Sequence[Row]) -> dict[str, str]:
        return {"global RMSE": f"{np.mean([row.numbers['global_rmse'] for row in rows]):.4f}"}

    def verdicts(self, rows: Sequence[Row]) -> list[str]:
        noise, units = self.noise, self.test.field.units
        floor = "none, the training run is too short to tell variability from its trend."
        if np.isfinite(noise.spatial):
            floor = (
                f"internal variability alone gives about {noise.spatial:.4f} {units} spatial and "
                f"{noise.whole:.4f} {units} global."
            )
        return [f"Noise floor: {floor}", *super().verdicts(rows)]
