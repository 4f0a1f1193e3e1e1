"""Training tasks of time series: forecasters that are scored in z-scores of the training rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from longseq.core.errors import ConfigError
from longseq.timeseries.data.module import ForecastData
from longseq.timeseries.forecast_task import ForecastTask, sizes_of
from longseq.timeseries.likelihoods import (
    LIKELIHOODS,
    Counts,
    Likelihood,
    Outputs,
    refuse_no_counts,
)
from longseq.timeseries.metrics import NINE, Coverage, PinballLoss
from longseq.timeseries.models.autoformer import Autoformer as AutoformerModel
from longseq.timeseries.models.informer import Informer as InformerModel
from longseq.timeseries.models.mixer_forecaster import MixerForecaster as MixerForecasterModel
from longseq.timeseries.models.spacetime import SpaceTime as SpaceTimeModel
from longseq.timeseries.panel_tasks import TPGN, InvertedForecaster

__all__ = [
    "TPGN",
    "Autoformer",
    "ForecastTask",
    "Informer",
    "InvertedForecaster",
    "MixerForecaster",
    "SpaceTime",
    "sizes_of",
]
KINDS = ("future", "past", "static")


class MixerForecaster(ForecastTask):
    """A channel-independent forecaster around any mixer of the core.

    Args:
        context: known rows L.
        horizon: predicted rows h.
        d_model: width D.
        n_layers: number of layers.
        mixer: a mixer's name or a pattern of names or of pairs [name, hyper-parameters].
        mixer_kwargs: the mixer's hyper-parameters.
        mlp_ratio: hidden width of the MLPs as a multiple of D; 0 for none.
        norm: "rms" or "layer".
        dropout: on residual branches and before the head.
        normalise: "revin" (mean and deviation of the context), "last" (its last value) or "none".
        patch: rows of a patch; 1 with a stride of 1 for none.
        stride: rows between patches.
        head: reads the "last" position or all of them ("flatten").
        linear_skip: add a linear map from context to horizon.
        covariates: kinds and names of what is known beside the values: "future:promo",
            "past:visitors", "static:size", "static:kind=a", "future:holidays:DE".
        likelihood: "quantiles", "student_t", "poisson" or "negative_binomial"; None for a point
            forecast with the loss of the recipe (the mean squared error if it names none).
        **recipe: optimiser, schedule, loss and further metrics, see ``BaseTask``.
    """

    takes_covariates = True
    defaults = {
        "weight_decay": 0.05,
        "betas": (0.9, 0.99),
        "warmup_steps": 20,
        "min_lr_ratio": 0.02,
    }

    def __init__(
        self,
        context: int = 336,
        horizon: int = 96,
        d_model: int = 64,
        n_layers: int = 2,
        mixer: str | list[Any] = "mamba",
        mixer_kwargs: dict[str, Any] | None = None,
        mlp_ratio: float = 2.0,
        norm: Literal["rms", "layer"] = "rms",
        dropout: float = 0.1,
        normalise: Literal["revin", "last", "none"] = "revin",
        patch: int = 16,
        stride: int = 8,
        head: Literal["last", "flatten"] = "flatten",
        linear_skip: bool = True,
        covariates: list[str] | None = None,
        likelihood: str | None = None,
        **recipe: Any,
    ) -> None:
        self.probabilistic = likelihood is not None
        super().__init__(**recipe)
        made = None if likelihood is None else LIKELIHOODS[likelihood]()
        if made is not None and self.own_loss is not None:
            raise ConfigError(f"likelihood {likelihood} has its own loss: give no --model.loss")
        self.likelihood: Likelihood | None = made
        self.context, self.horizon = context, horizon
        self.covariates = tuple(covariates or ())
        self.model = MixerForecasterModel(
            context,
            horizon,
            d_model,
            n_layers,
            mixer,
            mixer_kwargs,
            mlp_ratio,
            norm,
            dropout,
            normalise,
            patch,
            stride,
            head,
            linear_skip,
            tuple(sum(key.startswith(f"{kind}:") for key in self.covariates) for kind in KINDS),
            1 if made is None else made.outputs,
        )

    def forward(self, x: Tensor, x_mark: Tensor, y_mark: Tensor) -> Tensor:
        return self.model(x)

    def outputs(self, batch: Mapping[str, Tensor]) -> Outputs:
        """Returns what the network says of windows, for the likelihood."""
        beside = (batch.get(key) for key in ("x_cov", "y_cov", "static"))
        place, rest, spread = self.model.parameters_of(batch["x"], *beside)
        one = torch.ones_like(place)
        scale = (batch[key].unsqueeze(1) * one for key in ("mean", "unit"))
        return Outputs(place, rest, spread * one, *scale)

    def predict_windows(self, batch: Mapping[str, Tensor]) -> Tensor:
        if self.likelihood is None:
            beside = (batch.get(key) for key in ("x_cov", "y_cov", "static"))
            return self.model(batch["x"], *beside)
        return self.likelihood.point(self.outputs(batch))

    def quantile_windows(self, batch: Mapping[str, Tensor], levels: np.ndarray) -> np.ndarray:
        assert self.likelihood is not None
        return self.likelihood.quantiles(self.outputs(batch), levels)

    def make_metrics(self) -> Mapping[str, Metric]:
        own = dict(super().make_metrics())
        if self.probabilistic:
            own |= {"pinball": PinballLoss(), "coverage80": Coverage()}
        return own

    def check_data(self, data: Any) -> None:
        super().check_data(data)
        if isinstance(self.likelihood, Counts) and isinstance(data, ForecastData):
            refuse_no_counts(data.not_counts(), data.path)

    def compute(self, batch: Mapping[str, Tensor]) -> dict[str, Any]:
        """See ``ForecastTask``; with a likelihood the loss is its own, in validation too."""
        if self.likelihood is None:
            return super().compute(batch)
        out, target = self.outputs(batch), batch["y"]
        mask = batch.get("y_mask", torch.ones_like(target, dtype=torch.bool))
        losses = self.likelihood.loss(out, torch.where(mask, target, out.place.detach()))
        loss = torch.where(mask, losses, 0).sum() / mask.sum().clamp(min=1)
        found: dict[str, Any] = {"loss": loss, "count": len(target), "weight": mask.sum()}
        if self.training:
            return found
        forecast = self.likelihood.point(out)
        nine = torch.from_numpy(self.likelihood.quantiles(out, NINE)).to(target)
        found |= {"forecast": forecast, "target": target, "mask": mask, "quantiles": nine}
        return found | {"pair": (forecast[mask], target[mask])}


class SpaceTime(ForecastTask):
    """SpaceTime with its published hyper-parameters; see ``models.spacetime``.

    Args:
        context: known rows L.
        horizon: predicted rows h.
        d_model: width D, a multiple of 8.
        d_state: M, dimension of every companion matrix.
        norm_order: order of the norm that is divided out of the companion vectors.
        dropout: before every linear map.
        compat: the published behaviour.
        **recipe: optimiser, schedule, loss and further metrics, see ``BaseTask``.
    """

    defaults = {"weight_decay": 1e-4, "betas": (0.9, 0.999), "warmup_steps": 20}

    def __init__(
        self,
        context: int = 336,
        horizon: int = 96,
        d_model: int = 128,
        d_state: int = 64,
        norm_order: int = 1,
        dropout: float = 0.25,
        compat: bool = False,
        **recipe: Any,
    ) -> None:
        super().__init__(**recipe)
        self.context, self.horizon = context, horizon
        self.model = SpaceTimeModel(horizon, d_model, d_state, norm_order, dropout, compat)

    def forward(self, x: Tensor, x_mark: Tensor, y_mark: Tensor) -> Tensor:
        return self.model(x)

    def training_loss(self, batch: Mapping[str, Tensor], mask: Tensor | None) -> Tensor:
        """Returns the sum of three root mean square errors; see ``models.spacetime``."""
        return self.model.loss(batch["x"], batch["y"], mask)


class Informer(ForecastTask):
    """Informer with its published hyper-parameters; see ``models.informer``.

    Args:
        channels: number of series C.
        context: known rows L.
        horizon: predicted rows h.
        label: rows of the context that the decoder reads.
        features: calendar features: 4 for hourly rows, 5 below an hour, 3 for days.
        d_model: width D.
        n_heads: heads.
        e_layers: encoder layers.
        d_layers: decoder layers.
        d_ff: hidden width of the feed-forward pairs.
        factor: of ProbSparse attention.
        dropout: everywhere.
        distil: halve the length between encoder layers.
        compat: the published behaviour.
        **recipe: optimiser, schedule, loss and further metrics, see ``BaseTask``.
    """

    channel_independent = False

    defaults = {"lr": 1e-4, "weight_decay": 0.0, "betas": (0.9, 0.999), "min_lr_ratio": 0.03}

    def __init__(
        self,
        channels: int = 7,
        context: int = 96,
        horizon: int = 96,
        label: int = 48,
        features: int = 4,
        d_model: int = 512,
        n_heads: int = 8,
        e_layers: int = 2,
        d_layers: int = 1,
        d_ff: int = 2048,
        factor: int = 5,
        dropout: float = 0.05,
        distil: bool = True,
        compat: bool = False,
        **recipe: Any,
    ) -> None:
        super().__init__(**recipe)
        self.context, self.horizon = context, horizon
        self.channels, self.features = channels, features
        self.model = InformerModel(
            channels,
            context,
            horizon,
            label,
            features,
            d_model,
            n_heads,
            e_layers,
            d_layers,
            d_ff,
            factor,
            dropout,
            distil,
            compat,
        )

    def forward(self, x: Tensor, x_mark: Tensor, y_mark: Tensor) -> Tensor:
        return self.model(x, x_mark, y_mark)


class Autoformer(ForecastTask):
    """Autoformer with its published hyper-parameters; see ``models.autoformer``.

    Args:
        channels: number of series C.
        context: known rows L.
        horizon: predicted rows h.
        label: rows of the context that the decoder reads.
        features: calendar features: 4 for hourly rows, 5 below an hour, 3 for days.
        d_model: width D.
        n_heads: heads.
        e_layers: encoder layers.
        d_layers: decoder layers.
        d_ff: hidden width of the feed-forward pairs.
        moving_average: rows of the moving average.
        factor: of auto-correlation.
        dropout: everywhere.
        compat: the published behaviour.
        **recipe: optimiser, schedule, loss and further metrics, see ``BaseTask``.
    """

    channel_independent = False

    defaults = {"lr": 1e-4, "weight_decay": 0.0, "betas": (0.9, 0.999), "min_lr_ratio": 0.03}

    def __init__(
        self,
        channels: int = 7,
        context: int = 96,
        horizon: int = 96,
        label: int = 48,
        features: int = 4,
        d_model: int = 512,
        n_heads: int = 8,
        e_layers: int = 2,
        d_layers: int = 1,
        d_ff: int = 2048,
        moving_average: int = 25,
        factor: int = 3,
        dropout: float = 0.05,
        compat: bool = False,
        **recipe: Any,
    ) -> None:
        super().__init__(**recipe)
        self.context, self.horizon = context, horizon
        self.channels, self.features = channels, features
        self.model = AutoformerModel(
            channels,
            context,
            horizon,
            label,
            features,
            d_model,
            n_heads,
            e_layers,
            d_layers,
            d_ff,
            moving_average,
            factor,
            dropout,
            compat,
        )

    def forward(self, x: Tensor, x_mark: Tensor, y_mark: Tensor) -> Tensor:
        return self.model(x, x_mark, y_mark)
