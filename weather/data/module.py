"""The data module of emulation: training scenarios, held-out validation years, and a test
scenario."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from longseq.core.checks import check_positive
from longseq.core.errors import ConfigError
from longseq.core.training.hyper import BaseData
from longseq.core.training.loader import step_dataloader
from longseq.weather.data.runs import check_alike, check_history, read_run
from longseq.weather.data.scenario import (
    REGIONAL,
    Scenario,
    Span,
    check_fixed,
    check_predictors,
    deviations,
    inside,
    make_scenario,
    need_years,
    once,
    parse_span,
    refuse_leak,
)
from longseq.weather.data.seasons import Part, parse_months

Batch = dict[str, Tensor]


def to_batch(run: Scenario, scored: np.ndarray) -> Batch:
    """Returns a batch of one scenario: predictors (1, T, K), target (1, T, Y, X), mask (1, T), area
    (Y, X).

    Args:
        run: the scenario.
        scored: bool (T), the years that count.
    """
    return {
        "predictors": torch.from_numpy(run.predictors.astype(np.float32))[None],
        "target": torch.from_numpy(run.anomalies)[None],
        "mask": torch.from_numpy(scored)[None],
        "area": torch.from_numpy(run.weights.astype(np.float32)),
    }


class TrainingScenarios:
    """Batch n is one whole scenario; all take turns in an order that is drawn anew for every round.

    Args:
        batches: a batch a scenario.
        seed: of the order.
        rank: of this process, which takes every ``world``-th.
        world: number of processes.
    """

    def __init__(self, batches: Sequence[Batch], seed: int, rank: int = 0, world: int = 1) -> None:
        self.batches, self.seed, self.rank, self.world = list(batches), seed, rank, world

    def __getitem__(self, step: int) -> Batch:
        turn, index = divmod(step * self.world + self.rank, len(self.batches))
        order = np.random.default_rng((self.seed, turn)).permutation(len(self.batches))
        return self.batches[int(order[index])]


class Listed(Dataset[Batch]):
    """Batches in order.

    Args:
        batches: of whole scenarios.
    """

    def __init__(self, batches: Sequence[Batch]) -> None:
        self.batches = list(batches)

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Batch:
        return self.batches[index]


class ScenarioData(BaseData):
    """Yearly fields of climate runs.

    Fields become anomalies to the run's own ``baseline`` years. The predictor is the run's regional
    mean, smoothed, or ``forcing``. Validation years are taken out of the training runs. A test year
    that is identical in a training run is refused as a leak.

    A run is a file, a Zarr store, a packaged sample's name, a pattern, or several of them joined by
    ``+`` (``tas_historical.nc+tas_ssp585.nc``); files of the same years are members.

    Args:
        train: the training runs.
        test: the test run; None for none.
        variable: name or standard name; None if the files have one.
        units: to convert to; None for the canonical ones.
        baseline: years of the climatology.
        valid: years of the training runs that are held out for validation; None trains on all.
        period: years of the test run that are scored.
        smooth: years of the running mean of the regional mean; odd.
        forcing: a file of forcings for every training run; None for the regional mean.
        test_forcing: likewise of the test run.
        anomalies: whether the files hold anomalies already, so that nothing is subtracted.
        interpolate: whether forcings are filled in linearly between the years of their files.
        months: of every year that are taken ("7", "JJA", "12-2"); None for all.
        whole_years: whether incomplete years at the ends of a file are left out.
        steps_per_epoch: batches between two ends of an epoch.
        seed: of the order of the runs.
        num_workers: processes that make batches.
    """

    fits = ("height", "width", "predictors")

    def __init__(
        self,
        train: list[str],
        test: str | None = None,
        variable: str | None = None,
        units: str | None = None,
        baseline: str = "1860-1889",
        valid: str | None = "2040-2059",
        period: str = "2080-2099",
        smooth: int = 31,
        forcing: list[str] | None = None,
        test_forcing: str | None = None,
        anomalies: bool = False,
        interpolate: bool = False,
        months: str | None = None,
        whole_years: bool = False,
        steps_per_epoch: int = 50,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        if not train:
            raise ConfigError("data.train: at least one file is needed")
        if forcing is not None and len(forcing) != len(train):
            raise ConfigError(f"data.forcing: {len(train)} files are needed, one per training run")
        self.train_files, self.test_file = list(train), test
        self.variable, self.units = variable, units
        self.spans: dict[str, Span] = {
            "baseline": parse_span("data.baseline", baseline),
            "period": parse_span("data.period", period),
        }
        if valid is not None:
            self.spans["valid"] = parse_span("data.valid", valid)
        self.smooth, self.forcing, self.test_forcing = smooth, forcing, test_forcing
        self.anomalies, self.interpolate = anomalies, interpolate
        self.part = Part(parse_months(months), whole_years)
        self.steps_per_epoch = check_positive("steps_per_epoch", steps_per_epoch)
        self.seed, self.num_workers = seed, num_workers
        self._train: list[Scenario] | None = None
        self._test: Scenario | None = None

    def read(self, path: str, forcing: str | None) -> Scenario:
        """Returns a run as this module sees it.

        Args:
            path: its file.
            forcing: its forcings, if any.
        """
        difference = True if self.anomalies else None
        data = read_run(path, self.variable, self.units, difference, self.part)
        return make_scenario(
            data, self.spans["baseline"], self.smooth, forcing, self.anomalies, self.interpolate
        )

    @property
    def train_runs(self) -> list[Scenario]:
        """The training runs, read once."""
        if self._train is None:
            forcing: Sequence[str | None] = self.forcing or [None] * len(self.train_files)
            runs = [self.read(path, own) for path, own in zip(self.train_files, forcing)]
            for run in runs[1:]:
                check_alike(runs[0].field, run.field)
                check_predictors(runs[0].names, runs[0].units, run, runs[0].field.path)
            runs = once(runs)
            for run in runs:
                if not run.counted.any():
                    text = "holds no year that the training runs before it lack: leave it out"
                    raise ConfigError(f"{run.field.path}: {text}")
                if not self.scored(run, "train").any():
                    raise ConfigError(
                        f"data.valid {self.hparams['valid']} leaves no year of {run.field.path}"
                    )
            self._train = runs
        return self._train

    def model_arguments(self) -> dict[str, Any]:
        """Returns the grid's rows and columns, and the number of predictors."""
        run = self.train_runs[0]
        rows, columns = run.weights.shape
        return {"height": rows, "width": columns, "predictors": len(run.names)}

    @property
    def test_run(self) -> Scenario:
        """The test run, read once, its scored years checked against the training runs."""
        if self._test is None:
            if self.test_file is None:
                raise ConfigError("data.test: a file is needed for the test")
            run = self.read(self.test_file, self.test_forcing)
            first = self.train_runs[0]
            check_predictors(first.names, first.units, run, first.field.path)
            check_fixed(self.fixed(), run.predictors, run.names, run.forcing)
            check_history(self.first_year, run.years, str(run.field.path))
            need_years(run.field, self.spans["period"], "period")
            refuse_leak(self.train_runs, run, self.spans["period"])
            self._test = run
        return self._test

    @property
    def first_year(self) -> int:
        """The year in which the latest training run begins."""
        return max(int(run.years[0]) for run in self.train_runs)

    def _training_predictors(self) -> np.ndarray:
        """Returns the predictors of all training years of all runs (T, K)."""
        runs = self.train_runs
        return np.concatenate([run.predictors[self.scored(run, "train")] for run in runs])

    def fixed(self) -> dict[str, float]:
        """Returns the values of those forcings that never change in the training years."""
        values, names = self._training_predictors(), self.train_runs[0].names
        if tuple(names) == (REGIONAL,):
            return {}
        still = deviations(values) == 0
        return {name: float(values[0, at]) for at, name in enumerate(names) if still[at]}

    def scored(self, run: Scenario, part: str) -> np.ndarray:
        """Returns which years of a run belong to a part.

        Args:
            run: a scenario.
            part: "train", "valid" or "period".
        """
        if part == "train":
            return ~self.scored(run, "valid") & run.counted
        if part not in self.spans:
            return np.zeros(len(run.years), dtype=bool)
        return inside(run.years, self.spans[part])

    def setup(self, stage: str | None = None) -> None:
        """Reads and checks the files, so that bad input fails before training starts."""
        runs = self.train_runs
        if "valid" in self.spans and not any(self.scored(run, "valid").any() for run in runs):
            raise ConfigError(f"data.valid: no training run has the years {self.hparams['valid']}")
        if stage == "test" or self.test_file is not None:
            _ = self.test_run

    def facts(self) -> dict[str, Any]:
        """Returns what a prediction needs to know of the training data: units, grid, scales,
        climatology."""
        runs = self.train_runs
        first = runs[0]
        masks = [self.scored(run, "train") for run in runs]
        predictors, fixed = self._training_predictors(), self.fixed()
        squares = np.concatenate(
            [run.anomalies[mask].astype(np.float64) ** 2 for run, mask in zip(runs, masks)]
        )
        spread = deviations(predictors)
        return {
            "variable": first.field.name,
            "units": first.field.units,
            "attrs": {key: str(value) for key, value in first.field.attrs.items()},
            **first.field.grid.facts(),
            "mask": None if first.field.mask is None else first.field.mask.tolist(),
            "scalars": [[one.name, one.value, dict(one.attrs)] for one in first.field.scalars],
            "anomalies": self.anomalies,
            "months": list(self.part.months),
            "whole_years": self.part.whole,
            "positive": first.positive,
            "first_year": self.first_year,
            "baseline": list(first.baseline),
            "smooth": self.smooth,
            "names": list(first.names),
            "predictor_units": dict(first.units),
            # Not there in checkpoints that have none, so that earlier ones are resumed.
            **({"fixed": fixed} if fixed else {}),
            "regional": tuple(first.names) == (REGIONAL,),
            "mean": predictors.mean(0).tolist(),
            "spread": np.where(spread > 0, spread, 1.0).tolist(),
            "scale": float(np.sqrt((squares.mean(0) * first.weights).sum())) or 1.0,
            "climatology": first.climatology.tolist(),
            "training": [str(run.field.path) for run in runs],
        }

    def train_dataloader(self) -> Any:
        """Returns the loader of training runs, which resumes at any step."""
        rank, world = (
            (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        )
        batches = [to_batch(run, self.scored(run, "train")) for run in self.train_runs]
        steps = TrainingScenarios(batches, self.seed, rank, world)
        return step_dataloader(steps, self.trainer, self.steps_per_epoch, self.num_workers)

    def val_dataloader(self) -> Any:
        """Returns the training runs with their validation years counted."""
        runs = [run for run in self.train_runs if self.scored(run, "valid").any()]
        if not runs:
            return []
        batches = [to_batch(run, self.scored(run, "valid")) for run in runs]
        return DataLoader(Listed(batches), batch_size=None)

    def test_dataloader(self) -> Any:
        """Returns the test run with its scored years counted."""
        run = self.test_run
        return DataLoader(Listed([to_batch(run, self.scored(run, "period"))]), batch_size=None)
