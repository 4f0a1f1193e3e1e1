"""``longseq weather compare``: emulators beside the plain baselines, with a noise floor and a
verdict."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from longseq.core.compare import Comparison, Row
from longseq.core.errors import ConfigError
from longseq.core.results import digits
from longseq.core.training.by_config import Values
from longseq.weather.baselines import BASELINES, predict_baseline
from longseq.weather.data.module import ScenarioData
from longseq.weather.data.scenario import REGIONAL, need_years, refuse_leak, spans_text
from longseq.weather.ensembles import mean_crps, spread_skill
from longseq.weather.metrics import global_rmse, spatial_rmse
from longseq.weather.noise import Noise
from longseq.weather.predict import load_emulator, run_emulator
from longseq.weather.task import ClimateEmulator
from longseq.weather.variability import Variability

METRIC = "spatial RMSE"
# Realisations behind the CRPS.
MEMBERS = 20
_HANDED_ON = ("baseline", "period", "smooth", "valid", "anomalies", "interpolate", "whole_years")

# Notes of files that a reader of the scores must know.
_TOLD = ("incomplete ", "amounts without ", "negative values ", "a running mean ")


class EmulatorComparison(Comparison):
    """Spatial RMSE of the mean over the scored years, which no training run shares.

    Args:
        data: training and test runs.
        title: of the table.

    Raises:
        DataError: if years are missing or scored years are the same in a training run.
    """

    baselines = BASELINES
    trained = ("emulator",)
    configs = ("emulator",)
    score = "spatial_rmse"
    columns = {
        "model": "",
        "seed": "d",
        **dict.fromkeys(("spatial_rmse", "global_rmse", "noise_floor"), ".6g"),
        "verdict": "",
        "kind": "",
        "noise_floor_global": ".6g",
        **dict.fromkeys(("crps", "spread", "skill"), ".6g"),
        **dict.fromkeys(("variable", "months"), ""),
    }

    def __init__(self, data: ScenarioData, title: str = "") -> None:
        self.data, self.train, self.test = data, data.train_runs, data.test_run
        period = data.spans["period"]
        self.chosen = need_years(self.test.field, period, "period")
        self.known = refuse_leak(self.train, self.test, period)
        self.truth = self.test.anomalies[self.chosen]
        first = self.train[0]
        forcings = None if tuple(first.names) == (REGIONAL,) else first.predictors
        self.noise = Noise(first.anomalies, forcings, first.weights, int(self.chosen.sum()))
        self._title = title
        self._spread: np.ndarray | None = None
        self.about: dict[str, str] = {}
        self.several = ""

    def _chances(self, prediction: np.ndarray) -> dict[str, float]:
        """Returns the scores of an ensemble: a prediction with realisations of the training run's
        own variability around it."""
        if not np.isfinite(self.noise.trace):
            return {}
        if self._spread is None:
            taken = len(self.noise.rest) - self.noise.trace
            made = Variability.fit(self.noise.rest, self.test.weights, degrees=taken)
            self._spread = made.sample(MEMBERS, len(self.truth))
        members = self.test.admissible(prediction + self._spread)
        weights = self.test.weights
        spread, skill = spread_skill(members, self.truth, weights)
        score = mean_crps(members, self.truth, weights)
        return {"crps": score, "spread": spread, "skill": skill}

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--train",
            required=True,
            nargs="+",
            help="runs: NetCDF files, Zarr stores, sample names, patterns, or several joined by +; "
            "with --protocol climatebench the folder of its files (and experiments of it)",
        )
        parser.add_argument("--test", required=True, help="likewise, one (ssp245)")
        parser.add_argument(
            "--protocol",
            choices=("plain", "climatebench"),
            default="plain",
            help="plain, or climatebench: inputs_*.nc and outputs_*.nc, its predictors, its NRMSE",
        )
        parser.add_argument(
            "--predictions", help="folder for the predictions of --protocol climatebench (none)"
        )
        parser.add_argument(
            "--baseline", default="1860-1889", help="years of the climatology (1860-1889)"
        )
        parser.add_argument(
            "--period",
            help="scored years of the test run (2080-2099; climatebench has 2080-2100)",
        )
        parser.add_argument(
            "--valid", help="training years held out for choosing the best checkpoint (none)"
        )
        parser.add_argument(
            "--variable", help="names or standard names by commas, a table each (the only one)"
        )
        parser.add_argument("--units", help="to convert to, one for each (canonical ones)")
        parser.add_argument(
            "--months", help="of every year, a table each: 7, JJA, 12-2, DJF,JJA or each (all)"
        )
        parser.add_argument(
            "--whole_years",
            action="store_true",
            help="leave out incomplete years at the ends of a file (refused otherwise)",
        )
        parser.add_argument(
            "--smooth", type=int, default=31, help="years of the running mean of the predictor (31)"
        )
        parser.add_argument(
            "--train_forcing", nargs="+", help="forcings of every training run (the regional mean)"
        )
        parser.add_argument("--test_forcing", help="forcings of the test run")
        parser.add_argument(
            "--anomalies",
            action="store_true",
            help="the files hold anomalies already: nothing is subtracted",
        )
        parser.add_argument(
            "--interpolate",
            action="store_true",
            help="fill in the years between those of a CSV linearly (refused otherwise)",
        )

    @classmethod
    def of(cls, args: argparse.Namespace) -> Iterator[EmulatorComparison]:
        if args.protocol == "climatebench":
            from longseq.weather.climatebench import comparisons

            yield from comparisons(args)
            return
        if args.predictions:
            raise ConfigError("--predictions is an option of --protocol climatebench")
        period = args.period or "2080-2099"
        if (args.train_forcing is None) != (args.test_forcing is None):
            raise ConfigError("--train_forcing and --test_forcing: give both or neither")
        for variable, units, months in _tables(args):
            data = ScenarioData(
                args.train,
                args.test,
                variable,
                units,
                args.baseline,
                args.valid,
                period,
                args.smooth,
                args.train_forcing,
                args.test_forcing,
                args.anomalies,
                args.interpolate,
                months,
                args.whole_years,
            )
            trained = ", ".join(args.train)
            title = f"{args.test}, {period}, trained on {trained}, anomalies to {args.baseline}"
            label = " ".join(text for text in (variable or "", months or "") if text)
            made = cls(data, f"{label}: {title}" if label else title)
            made.about = {"variable": made.test.field.name, "months": months or ""}
            made.several = label
            if len(made.known):
                print(
                    f"{len(made.known)} years ({spans_text(made.known)}) are the same in "
                    f"{args.test} and in the "
                    "training runs: they are trained on and never scored."
                )
            for one in (*made.train, made.test):
                for note in one.field.notes:
                    if note.startswith(_TOLD):
                        print(f"{one.field.path}: {note}")
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
    def label(self) -> str:
        return self.several.replace(" ", "_")

    @property
    def prefix(self) -> str:
        return f"{self.several}: " if self.several else ""

    @property
    def metric(self) -> str:
        return f"K {METRIC}" if self.test.field.units == "K" else METRIC

    @property
    def heading(self) -> str:
        return f"{METRIC} ({self.test.field.units})"

    def _row(self, model: str, kind: Any, prediction: np.ndarray, seed: int | None = None) -> Row:
        weights, noise = self.test.weights, self.noise
        prediction = self.test.admissible(prediction)
        value = spatial_rmse(prediction, self.truth, weights)
        numbers = {
            "global_rmse": global_rmse(prediction, self.truth, weights),
            "noise_floor": noise.spatial,
            "noise_floor_global": noise.whole,
            **self._chances(prediction),
            **self.about,
        }
        mean = np.asarray(prediction, dtype=np.float64).mean(0)
        return Row(model, kind, value, seed, numbers=numbers, state=mean)

    def baseline(self, name: str) -> list[Row]:
        prediction = predict_baseline(name, self.train, self.test, self.chosen, self.known)
        return [self._row(name, "baseline", prediction)]

    def checkpoint(self, path: Path, name: str, seed: int | None) -> list[Row]:
        task = load_emulator(path)
        task.check_run(self.test)
        return [self.anomalies(name, run_emulator(task, self.test.predictors), seed)]

    def anomalies(self, name: str, anomalies: np.ndarray, seed: int | None = None) -> Row:
        """Scores predicted anomalies.

        Args:
            name: of the model, for the table.
            anomalies: of all years of the test run (T, Y, X).
            seed: of its training, if known.
        """
        return self._row(name, "model", anomalies[self.chosen], seed)

    def values(self, config: Path, seed: int) -> Values:
        """The test run is not given to the training."""
        data, hyper = self.data, self.data.hparams
        rows, columns = self.train[0].weights.shape
        own = {key: hyper[key] for key in _HANDED_ON}
        own |= {
            key: hyper[key] for key in ("variable", "units", "months") if hyper[key] is not None
        }
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
        return f"Internal variability explains differences up to {digits(self.tie(row, rival))}."

    def notes(self, rows: Sequence[Row]) -> dict[str, str]:
        found = {"global RMSE": "global_rmse", "CRPS": "crps"}
        return {
            heading: digits(float(np.mean([row.numbers[key] for row in rows])))
            for heading, key in found.items()
            if key in rows[0].numbers
        }

    def verdicts(self, rows: Sequence[Row]) -> list[str]:
        noise, units = self.noise, self.test.field.units
        floor = "none, the training run is too short to tell variability from its trend."
        if np.isfinite(noise.spatial):
            floor = (
                f"internal variability alone gives about {digits(noise.spatial)} {units} spatial "
                f"and {digits(noise.whole)} {units} global (autocorrelation {noise.phi:.2f})."
            )
        found = super().verdicts(rows)
        regional = tuple(self.test.names) == (REGIONAL,)
        return [f"Noise floor: {floor}", *found, *_next_step(found, regional)]


def _next_step(verdicts: Sequence[str], regional: bool) -> list[str]:
    """Returns what to try where a memory is seen and no emulator begins with one; with forcings
    ``auto`` has tried it."""
    behind = regional and any(
        " does not beat the best baseline, lagged:" in text for text in verdicts
    )
    if not behind or any("linear=lagged" in text for text in verdicts):
        return []
    text = "A memory may be lacking: --models emulator:linear=lagged (fit: --model.linear lagged)"
    return [f"{text} begins with that of lagged pattern scaling."]


def _tables(args: argparse.Namespace) -> Iterator[tuple[str | None, str | None, str | None]]:
    """Yields the variable, the units and the months of every table that is asked for."""
    variables = [None] if args.variable is None else args.variable.split(",")
    units = [None] * len(variables) if args.units is None else args.units.split(",")
    if len(units) != len(variables):
        text = f"--units: as many are needed as variables, {len(variables)}, got {args.units!r}"
        raise ConfigError(text)
    months = [None] if args.months is None else args.months.split(",")
    if args.months == "each":
        months = [str(month) for month in range(1, 13)]
    for variable, unit in zip(variables, units):
        for one in months:
            yield variable, unit, one
