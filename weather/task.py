"""The training task of climate emulation: a history of predictors to yearly fields of anomalies."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from longseq.core.errors import ConfigError
from longseq.core.results import digits
from longseq.core.training.task import BaseTask
from longseq.weather.data.module import ScenarioData
from longseq.weather.data.scenario import REGIONAL, Scenario
from longseq.weather.metrics import FieldError
from longseq.weather.models.emulator import FieldEmulator
from longseq.weather.regression import RIDGE, Ridge, held_out_error, leading


class ClimateEmulator(BaseTask):
    """Emulates yearly fields from the history of predictors.

    What belongs to the training data (grid, variable, climatology, scales of predictors and fields,
    years of the baseline, smoothing) travels in the checkpoint: ``predict`` needs nothing else.

    Args:
        height: rows of the grid.
        width: columns of the grid.
        predictors: number of predictors: 1 for the regional mean, or the number of forcings.
        d_model: width of the backbone.
        n_layers: its layers.
        mixer: a mixer's name or a pattern of names or of pairs [name, hyper-parameters].
        mixer_kwargs: the mixer's hyper-parameters.
        mlp_ratio: hidden width of the MLPs as a multiple of ``d_model``; 0 for none.
        dropout: on residual branches and before the head.
        rank: spatial patterns of the non-linear part.
        linear: "lps" keeps the least-squares pattern, "lagged" likewise on the predictors and their
            exponential filters, "learned" trains on from "lps", "none" leaves it out. "auto" is
            "lps" where the predictor is the run's own mean, which has the ocean's lag in it, and
            where it is forcings the one of the two that predicts held-out training runs better
            (or held-out fifths of the years, where there is one run).
        lags: time constants of the filters in years.
        jitter: deviation of noise that is added to the predictors in training, in their own
            deviations.
        **recipe: optimiser, schedule, loss and further metrics, see ``BaseTask``.
    """

    unit = "runs"

    defaults = {"warmup_steps": 20}

    def __init__(
        self,
        height: int = 37,
        width: int = 49,
        predictors: int = 1,
        d_model: int = 32,
        n_layers: int = 2,
        mixer: str | list[Any] = "s5",
        mixer_kwargs: dict[str, Any] | None = None,
        mlp_ratio: float = 2.0,
        dropout: float = 0.0,
        rank: int = 8,
        linear: Literal["auto", "lps", "lagged", "learned", "none"] = "auto",
        lags: list[float] | None = None,
        jitter: float = 0.0,
        **recipe: Any,
    ) -> None:
        super().__init__(**recipe)
        self.model = FieldEmulator(
            height,
            width,
            predictors,
            d_model,
            n_layers,
            mixer,
            mixer_kwargs,
            mlp_ratio,
            dropout,
            rank,
            linear,
            (5.0, 50.0) if lags is None else lags,
        )
        self.jitter = jitter

    @property
    def about(self) -> dict[str, Any]:
        """What belongs to the training data, see ``ScenarioData.facts``; empty before ``fit``."""
        return self.facts

    def make_metrics(self) -> Mapping[str, Metric]:
        """Returns the spatial and the global error, in the field's units."""
        return {"spatial_rmse": FieldError("spatial"), "global_rmse": FieldError("global")}

    def check_data(self, data: Any) -> None:
        """See ``BaseTask``."""
        if isinstance(data, ScenarioData):
            self.check_run(data.train_runs[0])

    def check_facts(self, known: Mapping[str, Any], found: Mapping[str, Any], stage: str) -> None:
        """Training goes on with the data that it began with; evaluation may be on any."""
        other = any(known.get(key) != value for key, value in found.items() if key != "training")
        if stage == "fit" and other:
            raise ConfigError(
                f"{', '.join(found['training'])}: other training data than the checkpoint's; "
                f"--init_from "
                "starts a new training from its weights"
            )

    def setup(self, stage: str) -> None:
        """Also sets the linear part."""
        super().setup(stage)
        if stage == "fit" and isinstance(self.data, ScenarioData):
            self._fit_pattern(self.data)

    def check_run(self, run: Scenario) -> None:
        """Checks that a run is of the model's grid and number of predictors.

        Raises:
            ConfigError: if not, with the options that would fit.
        """
        (rows, columns), count = run.weights.shape, len(run.names)
        model = self.model
        if (rows, columns) != (model.height, model.width):
            raise ConfigError(
                f"{run.field.path}: its grid is {rows} × {columns}, the model's {model.height} × "
                f"{model.width}: --model.height {rows} --model.width {columns}"
            )
        if count != model.predictors:
            raise ConfigError(
                f"{run.field.path}: has {count} predictors ({', '.join(run.names)}), the model "
                f"takes {model.predictors} (--model.predictors {count})"
            )

    def _fit_pattern(self, data: ScenarioData) -> None:
        """Sets the linear part by least squares on the training years, in scaled units."""
        if self.model.linear == "none":
            return
        chosen = [data.scored(run, "train") for run in data.train_runs]
        pairs = list(zip(data.train_runs, chosen))
        fields = np.concatenate([run.anomalies[mask] for run, mask in pairs])
        scaled = [self.scaled(torch.from_numpy(run.predictors)) for run, _ in pairs]
        # The history is whole, whichever years are fitted.
        made = [
            self.model.with_lags(one[None])[0][0].numpy()[mask] for one, mask in zip(scaled, chosen)
        ]
        if self.model.linear == "auto" and not self._remembers(data, made, chosen):
            made = [one[:, : self.model.predictors] for one in made]
        lagged = made[0].shape[1] > self.model.predictors
        fit = Ridge(RIDGE if lagged else 0.0)
        fit.fit(np.concatenate(made), fields.reshape(len(fields), -1) / self.about["scale"])
        weight, bias = fit.linear()
        self.model.set_linear(torch.from_numpy(weight), torch.from_numpy(bias))

    def _remembers(
        self, data: ScenarioData, regressors: Sequence[np.ndarray], chosen: Sequence[np.ndarray]
    ) -> bool:
        """Returns whether filters of the predictors help to predict held-out runs.

        Args:
            data: training runs.
            regressors: predictors beside their filters in the chosen years of every run.
            chosen: bool (T) of every run.
        """
        first = data.train_runs[0]
        if tuple(first.names) == (REGIONAL,):
            return False
        flat = [
            run.anomalies[mask].reshape(int(mask.sum()), -1)
            for run, mask in zip(data.train_runs, chosen)
        ]
        short = leading(flat, np.sqrt(first.weights.ravel()))
        alone = [one[:, : self.model.predictors] for one in regressors]
        own = [run.own[mask] for run, mask in zip(data.train_runs, chosen)]
        errors = held_out_error(alone, short, own, 0.0), held_out_error(regressors, short, own)
        better = errors[1] < errors[0]
        if self.trainer.is_global_zero:
            years = " and ".join(f"{lag:g}" for lag in self.model.lags)
            names = {True: "lagged", False: "lps"}
            found = [digits(error**0.5) for error in errors]
            several = sum(map(bool, map(np.any, own))) > 1
            print(
                f"linear part: {names[better]} (held-out {'runs' if several else 'years'}: "
                f"root mean square error {found[1]} with filters of {years} years, {found[0]} "
                "without)",
                file=sys.stderr,
            )
        return better

    def scaled(self, predictors: Tensor) -> Tensor:
        """Returns predictors (…, K) in deviations of the training years."""
        mean, spread = (predictors.new_tensor(self.about[key]) for key in ("mean", "spread"))
        return (predictors - mean) / spread

    def forward(self, predictors: Tensor) -> Tensor:
        """Returns anomalies (B, T, Y, X), in the field's units, of predictors (B, T, K), in
        theirs."""
        fields, _ = self.model(self.scaled(predictors))
        return fields * self.about["scale"]

    def compute(self, batch: Mapping[str, Tensor]) -> dict[str, Any]:
        """Returns the area-weighted mean squared error of the years that count, in scaled units."""
        x, mask, area = self.scaled(batch["predictors"]), batch["mask"], batch["area"]
        if self.training and self.jitter:
            x = x + self.jitter * torch.randn_like(x)
        fields, _ = self.model(x)
        scale = self.about["scale"]
        error = ((fields - batch["target"] / scale).square() * area).sum((-1, -2))
        count = int(mask.sum())
        loss = (error * mask).sum() / count
        if self.own_loss is not None:
            loss = self.own_loss(fields[mask], batch["target"][mask] / scale)
        prediction, target = fields.detach() * scale, batch["target"]
        return {
            "loss": loss,
            "count": count,
            "prediction": prediction,
            "target": target,
            "mask": mask,
            "area": area,
            "pair": (prediction[mask], target[mask]),
        }
