"""Training tasks of time series: forecasters that are scored in z-scores of the training rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor

from longseq.timeseries.forecast_task import ForecastTask
from longseq.timeseries.models.autoformer import Autoformer as AutoformerModel
from longseq.timeseries.models.informer import Informer as InformerModel
from longseq.timeseries.models.mixer_forecaster import MixerForecaster as MixerForecasterModel
from longseq.timeseries.models.spacetime import SpaceTime as SpaceTimeModel

__all__ = ["Autoformer", "ForecastTask", "Informer", "MixerForecaster", "SpaceTime"]
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
        **recipe: Any,
    ) -> None:
        super().__init__(**recipe)
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
        )

    def forward(self, x: Tensor, x_mark: Tensor, y_mark: Tensor) -> Tensor:
        return self.model(x)

    def predict_windows(self, batch: Mapping[str, Tensor]) -> Tensor:
        return self.model(batch["x"], *(batch.get(key) for key in ("x_cov", "y_cov", "static")))


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
