"""``longseq timeseries compare``: forecasters beside baselines on all test windows of one file."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from longseq.core.compare import Comparison, Row, whole_numbers
from longseq.core.domain import import_object
from longseq.core.errors import DataError
from longseq.core.training.by_config import Values
from longseq.core.training.loading import load_task
from longseq.core.yaml_files import read_yaml
from longseq.timeseries import task as tasks
from longseq.timeseries.baselines import RIDGE, Baseline, make_baseline
from longseq.timeseries.data.covariates import Covariates
from longseq.timeseries.data.long_file_data import LongFileData
from longseq.timeseries.data.module import FACTS, ForecastData, Stage
from longseq.timeseries.data.panel import Panel
from longseq.timeseries.data.protocols import list_protocols
from longseq.timeseries.data.windows import EvaluationWindows, Windows
from longseq.timeseries.forecast import run_model
from longseq.timeseries.local import BASELINES
from longseq.timeseries.metrics import ForecastError
from longseq.timeseries.options import add_roles, arguments_of, roles_of
from longseq.timeseries.regression import covariate_effects
from longseq.timeseries.task import ForecastTask


def evaluate(
    model: ForecastTask | Baseline, windows: Windows, batch_size: int = 128
) -> tuple[float, float]:
    """Returns mean squared and mean absolute error over all observed targets.

    Args:
        model: a task in evaluation mode, or a fitted baseline.
        windows: of the validation or test part.
        batch_size: windows at once; the result does not depend on it.
    """
    mse, mae = ForecastError("mse"), ForecastError("mae")
    alone = isinstance(model, Baseline) or model.channel_independent
    for batch in EvaluationWindows(windows, batch_size, pairs=alone):
        forecast = run_model(model, batch)
        mse.update(forecast, batch["y"], batch["y_mask"])
        mae.update(forecast, batch["y"], batch["y_mask"])
    return float(mse.compute()), float(mae.compute())


class ForecastComparison(Comparison):
    """Mean squared error in z-scores of the training rows, over all test windows at one horizon.

    Args:
        data: the file and its split.
        season: rows of a season; from the time step if None.
        ridge: λ of the linear baselines.
    """

    baselines = BASELINES
    usual = ("repeat", "seasonal_naive", "nlinear_ridge", "dlinear_ridge", "nlinear_gcv")
    score = "mse"
    columns = {
        **dict.fromkeys(("model", "kind"), ""),
        **dict.fromkeys(("horizon", "seed"), "d"),
        **dict.fromkeys(("mse", "mae"), "r"),
        **dict.fromkeys(("windows", "context"), "d"),
        "protocol": "",
        "covariates": "",
        "parameters": "d",
        "seconds": "r",
        "verdict": "",
    }

    def __init__(self, data: ForecastData, season: int | None = None, ridge: float = RIDGE) -> None:
        self.data, self.ridge = data, ridge
        self._rest: Panel | None = None
        self._next: list[str] | None = None
        data.setup()
        self.season = season or data.panel.season()
        self.test = data.windows("test")
        if len(self.test.pairs) == 0:
            raise DataError(
                f"none of the {len(self.test):,} test windows has an observed target and "
                f"{data.least} rows before it",
                path=data.path,
                hint="take other --series, or allow padded contexts by --min_context",
            )

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--data", required=True, help="CSV, TSV, Parquet or TXT file")
        protocols = ", ".join(list_protocols())
        parser.add_argument(
            "--protocol", default="ratio", help=f"{protocols}, or a YAML file (ratio)"
        )
        parser.add_argument("--context", type=int, default=336, help="known rows of a window (336)")
        parser.add_argument(
            "--horizons", default="96,192,336,720", help="predicted rows (96,192,336,720)"
        )
        parser.add_argument("--series", help="names of the series to take, by commas (all)")
        add_roles(parser)
        parser.add_argument(
            "--min_context", type=int, help="rows that a context needs, padded if fewer (--context)"
        )
        parser.add_argument("--season", type=int, help="rows of a season (from the time step)")
        parser.add_argument(
            "--ridge", type=float, default=RIDGE, help=f"λ of the linear baselines ({RIDGE:g})"
        )

    @classmethod
    def of(cls, args: argparse.Namespace) -> Iterator[ForecastComparison]:
        series = None if args.series is None else args.series.split(",")
        for horizon in whole_numbers("--horizons", args.horizons):
            data = ForecastData(
                args.data,
                args.protocol,
                args.context,
                horizon,
                series,
                min_context=args.min_context,
                **vars(roles_of(args)),
            )
            yield cls(data, args.season, args.ridge)

    at_test = ("repeat", "seasonal_naive", "nlinear_ridge", "nlinear_gcv")

    @classmethod
    def of_test(cls, task: Any, data: Any) -> ForecastComparison | None:
        if not (isinstance(task, ForecastTask) and isinstance(data, ForecastData)):
            return None
        made = cls(data.sample() if isinstance(data, LongFileData) else data)
        if type(data) in (ForecastData, LongFileData) and data.series is None:
            future = made.data.panel.covariates.future
            made._next = [
                data.path,
                *arguments_of(data.roles),
                *(["--cutoffs", "1"] * bool(future)),
            ]
        return made

    def predict_next(self) -> list[str] | None:
        return self._next

    def tested(self, task: Any, metrics: Mapping[str, float]) -> Row:
        parameters = _parameters(task)
        numbers = {"mae": metrics["mae"], "parameters": parameters}
        return Row(type(task).__name__, "model", metrics["mse"], numbers=numbers)

    @property
    def label(self) -> str:
        return f"h{self.data.horizon}"

    @property
    def prefix(self) -> str:
        return f"h {self.data.horizon}: "

    @property
    def title(self) -> str:
        data, panel = self.data, self.data.panel
        filled = f", {panel.missing} values missing and not scored" if panel.missing else ""
        spans = f"context {data.context}, horizon {data.horizon}"
        where = f"{data.path}, protocol {data.protocol.name}, {spans}"
        beside = ", ".join(name for many in panel.covariates.names.values() for name in many)
        known = f"; covariates {beside}" if beside else ""
        series = ", ".join(panel.ids[:7])
        series += f" … ({len(panel.ids):,} series)" if len(panel.ids) > 7 else ""
        return f"{where}: {len(self.test):,} test windows of {series}{filled}{known}"

    def tie(self, row: Row, rival: Row) -> float:
        return 5e-4

    def notes(self, rows: Sequence[Row]) -> dict[str, str]:
        seconds = [row.numbers["seconds"] for row in rows if "seconds" in row.numbers]
        used = rows[0].numbers.get("covariates")
        return {
            **({"covariates": str(used)} if used else {}),
            "mae": f"{np.mean([row.numbers['mae'] for row in rows]):.4f}",
            "parameters": f"{rows[0].numbers['parameters']:,}",
            **({"seconds": f"{np.mean(seconds):.1f}"} if seconds else {}),
        }

    def _row(
        self, name: str, model: ForecastTask | Baseline, start: float, parameters: int, **own: Any
    ) -> Row:
        alone = isinstance(model, Baseline)
        windows = self.baseline_windows("test") if alone else self.test
        mse, mae = evaluate(model, windows, self.data.eval_batch_size)
        kind = model.kind if isinstance(model, Baseline) else "model"
        numbers = {
            "mae": mae,
            "parameters": parameters,
            "seconds": time.perf_counter() - start,
            "horizon": self.data.horizon,
            "windows": len(self.test),
            "context": self.data.context,
            "protocol": self.data.protocol.name,
            "covariates": self._used(model),
        }
        return Row(name, kind, mse, numbers=numbers, **own)  # type: ignore[arg-type]

    def baseline_windows(self, stage: Stage) -> Windows:
        """Returns the windows that baselines see: less the effects of the future covariates.

        The effects are those of ``regression.covariate_effects``, their coefficients fitted on the
        training rows. What a baseline's forecast of the rest is off by is what its forecast with
        the effects added is off by.

        Args:
            stage: "train", "valid" or "test".
        """
        windows, panel = self.data.windows(stage), self.data.panel
        if not panel.covariates.future:
            return windows
        if self._rest is None:
            rows = np.minimum(panel.ends, self.data.split().train.end)
            effects, _ = covariate_effects(panel, rows, 0, self.season, until=len(panel))
            rest = panel.values - effects[: len(panel)]
            self._rest = replace(panel, values=rest, covariates=Covariates())
        scaler = replace(windows.scaler, covariates={})
        return Windows(
            *(self._rest, scaler, windows.cutoffs, windows.context, windows.horizon),
            windows.least,
        )

    def _used(self, model: ForecastTask | Baseline) -> str:
        """Returns how a model takes the panel's covariates; empty if there are none."""
        known = self.data.panel.covariates
        if not known:
            return ""
        if isinstance(model, Baseline):
            return "by regression" if known.future else "none"
        return "its own" if getattr(model, "covariates", ()) else "none"

    def baseline(self, name: str) -> list[Row]:
        start = time.perf_counter()
        model = make_baseline(name, self.data.horizon, self.season, self.ridge)
        model.fit(self.baseline_windows("train"))
        return [self._row(name, model, start, model.parameters)]

    def checkpoint(self, path: Path, name: str, seed: int | None) -> list[Row]:
        start = time.perf_counter()
        task = load_task(path, ForecastTask)
        assert isinstance(task, ForecastTask)
        for size in ("context", "horizon"):
            if getattr(task, size) != getattr(self.data, size):
                text = (
                    f"has {size} {getattr(task, size)}, the comparison {getattr(self.data, size)}"
                )
                raise DataError(text, path=path)
        found = self.data.facts()
        if any(task.facts.get(name) != found[name] for name in FACTS if name in task.facts):
            raise DataError("was trained on other rows than those before the test", path=path)
        parameters = _parameters(task)
        return [self._row(name, task, start, parameters, seed=seed)]

    def values(self, config: Path, seed: int) -> Values:
        data = self.data
        told = {name: value for name, value in vars(data.roles).items() if value is not None}
        known = {"path": data.path, "protocol": data.hparams["protocol"], **told}
        if data.least != data.context:
            known["min_context"] = data.least
        sizes = {"context": data.context, "horizon": data.horizon}
        model: dict[str, Any] = dict(sizes)
        content = read_yaml(config) or {}
        name = str((content.get("model") or {}).get("class_path", ""))
        cls = import_object(name) if "." in name else vars(tasks).get(name)
        if cls is not None:
            model |= tasks.sizes_of(cls, data.panel)
        found = sorted(data.scaler().covariates)
        if found:
            model["covariates"] = found
        for kind in ("future", "past", "static"):
            if names := known.pop(kind, ()):
                known[kind] = list(names)
        series = {} if data.series is None else {"series": data.series}
        return {"data": {**known, **sizes, **series, "seed": seed}, "model": model}


def _parameters(task: Any) -> int:
    """Returns the number of a task's parameters; averages of its weights are none of its own."""
    copies = tuple(f"{name}." for name in task.copies)
    own = (one for name, one in task.named_parameters() if not name.startswith(copies))
    return sum(one.numel() for one in own)
