"""The base of training tasks of time series: a forecast that is scored in z-scores."""

from __future__ import annotations

import inspect
import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric

from longseq.core.errors import ConfigError, DataError
from longseq.core.registry import keywords
from longseq.core.training.task import BaseTask
from longseq.timeseries.data.calendar import N_FEATURES, resolution
from longseq.timeseries.data.module import FACTS, ForecastData
from longseq.timeseries.data.panel import Panel
from longseq.timeseries.data.windows import Scaler
from longseq.timeseries.metrics import ForecastError


def sizes_of(cls: type, panel: Panel) -> dict[str, int]:
    """Returns those of a task's hyper-parameters that follow from the series it is to take.

    Args:
        cls: the task's class.
        panel: the series.
    """
    known = {"channels": len(panel.ids), "features": N_FEATURES[resolution(panel.freq)]}
    return {name: value for name, value in known.items() if name in keywords(cls)}


def check_frequency(facts: Mapping[str, Any], frequency: str, source: str) -> None:
    """Checks that rows have the step of a model's training rows.

    Args:
        facts: of the model; what earlier versions did not record is not compared.
        frequency: of the rows.
        source: file, for the message.

    Raises:
        DataError: if they have not.
    """
    trained = facts.get("frequency")
    if trained is not None and trained != frequency:
        raise DataError(
            f"has a row every {frequency}, the model was trained on a row every {trained}",
            path=source,
            hint="resample the file, or train on it",
        )


class ForecastTask(BaseTask):
    """A model that maps a context to the mean forecast of a horizon.

    Subclasses set ``context`` and ``horizon``. ``fit`` takes the scaler from the data (training
    rows only), with the time at which these end; it travels with the checkpoint, so that
    predictions use the same.

    Attributes:
        channel_independent: whether series go through the network one by one, so that it takes any
            number.
        covariates: kinds and names of the covariates that the model was made for ("future:promo").
        probabilistic: whether it has quantiles of its own.
        median: whether its forecast is the median of these.
        any_horizon: whether it forecasts any ``horizon``, whatever it was trained for.
        features: number of calendar features that the model was made for; None if it takes none.
    """

    unit = "windows"

    channel_independent = True
    features: int | None = None
    context: int
    horizon: int
    channels: int | None = None
    covariates: Sequence[str] = ()
    takes_covariates = False
    probabilistic = False
    median = False
    any_horizon = False

    def make_metrics(self) -> Mapping[str, Metric]:
        """Returns mean squared and mean absolute error."""
        return {"mse": ForecastError("mse"), "mae": ForecastError("mae")}

    @abstractmethod
    def forward(self, x: Tensor, x_mark: Tensor, y_mark: Tensor) -> Tensor:
        """Returns the forecast (B, h, C) of z-scores x (B, L, C); the marks are calendar
        features."""

    def predict_windows(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Returns the forecast (B, h, C) of windows; what reads covariates replaces it."""
        return self(batch["x"], batch["x_mark"], batch["y_mark"])

    def quantile_windows(self, batch: Mapping[str, Tensor], levels: np.ndarray) -> np.ndarray:
        """Returns the model's own quantiles (B, h, C, levels) in z-scores, where ``probabilistic``
        is true."""
        raise NotImplementedError

    def training_loss(self, batch: Mapping[str, Tensor], mask: Tensor | None) -> Tensor | None:
        """Returns the loss of training where it is not the mean squared error.

        Args:
            batch: windows.
            mask: where targets were observed; None for everywhere.
        """
        return None

    def compute(self, batch: Mapping[str, Tensor]) -> dict[str, Any]:
        """Returns the loss, the number of windows, and forecast and target; of targets that were
        not observed none counts."""
        count, target = len(batch["x"]), batch["y"]
        mask = batch.get("y_mask")
        mask = None if mask is None or bool(mask.all()) else mask
        weight = target.numel() if mask is None else mask.sum()
        loss = self.training_loss(batch, mask) if self.training and self.own_loss is None else None
        if loss is not None:
            return {"loss": loss, "count": count, "weight": weight}
        forecast = self.predict_windows(batch)
        if mask is None:
            loss, pair = self.criterion(forecast, target, F.mse_loss), (forecast, target)
        else:
            # Where nothing was observed the error is zero by construction, and the mean is taken
            # over the rest; this serves every loss that is a mean over values.
            seen = torch.where(mask, target, forecast.detach())
            scale = mask.numel() / mask.sum().clamp(min=1)
            loss = self.criterion(forecast, seen, F.mse_loss) * scale
            pair = (forecast[mask], target[mask])
        found = {"loss": loss, "count": count, "forecast": forecast, "target": target}
        return found | {"mask": mask, "pair": pair, "weight": weight}

    @property
    def scaler(self) -> dict[str, Any] | None:
        """Means and deviations of the training rows by series, and their end; None before
        ``fit``."""
        return self.facts or None

    @property
    def least(self) -> int:
        """Rows since a series began that a context needs; shorter ones were not trained on."""
        return int((self.facts or {}).get("least", self.context))

    def check_data(self, data: Any) -> None:
        """See ``BaseTask``."""
        if not isinstance(data, ForecastData):
            return
        for name in ("context", "horizon"):
            if getattr(self, name) != getattr(data, name):
                raise ConfigError(
                    f"--model.{name} {getattr(self, name)} and --data.{name} "
                    f"{getattr(data, name)} must agree"
                )
        if set(data.scaler().covariates) != set(self.covariates):
            found = sorted(data.scaler().covariates)
            text = (
                "takes no covariates"
                if not self.takes_covariates
                else f"was made for {list(self.covariates) or 'none'}: --model.covariates "
                f"'{json.dumps(found)}'"
            )
            raise ConfigError(
                f"{data.path}: its covariates are {found or 'none'}, {type(self).__name__} {text}"
            )
        self.check_series(data.panel.ids, N_FEATURES[resolution(data.panel.freq)], data.path)

    def check_facts(self, known: Mapping[str, Any], found: Mapping[str, Any], stage: str) -> None:
        """Other training rows would need another scaler; evaluation may be on any of the same
        step."""
        if not isinstance(self.data, ForecastData):
            return
        if stage != "fit":
            check_frequency(known, str(found["frequency"]), str(self.data.path))
            return
        # What earlier versions did not record is not compared.
        if any(known[name] != found.get(name) for name in known if name in FACTS):
            raise ConfigError(
                f"{self.data.path}: its training rows have another mean or standard deviation than "
                "those of the checkpoint; --init_from starts a new training from its weights"
            )

    @classmethod
    def upgrade(cls, content: dict[str, Any]) -> None:
        """The scaler was a hyper-parameter once."""
        super().upgrade(content)
        hyper = content.get("hyper_parameters") or {}
        if "scaler" in hyper and "scaler" not in inspect.signature(cls).parameters:
            content["facts"] = hyper.pop("scaler") or content["facts"]

    def check_series(self, ids: Sequence[str], features: int, source: str) -> None:
        """Checks that the model takes these series.

        Args:
            ids: names of the series.
            features: number of calendar features of their times.
            source: file, for the message.

        Raises:
            ConfigError: if it does not.
        """
        if self.channels is not None and len(ids) != self.channels:
            raise ConfigError(
                f"{source}: has {len(ids)} series, the model takes {self.channels} "
                f"(--model.channels)"
            )
        if self.features is not None and features != self.features:
            raise ConfigError(
                f"{source}: its times have {features} calendar features (5 below an hour, 4 below "
                f"a day, 3 from a day on, 0 without dates), the model takes {self.features} "
                f"(--model.features)"
            )

    def get_scaler(self) -> Scaler | None:
        """Returns the scaler of the training rows; None before ``fit``."""
        return None if self.scaler is None else Scaler.from_dict(self.scaler)
