"""Training tasks of models that read all series at once: TPGN and the inverted forecaster."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from longseq.timeseries.forecast_task import ForecastTask
from longseq.timeseries.models.inverted_forecaster import InvertedForecaster as InvertedModel
from longseq.timeseries.models.tpgn import TPGN as TPGNModel


class TPGN(ForecastTask):
    """TPGN, for any context, horizon and period; see ``models.tpgn``.

    Args:
        channels: number of series C.
        context: known rows L.
        horizon: predicted rows h.
        period: rows of a season P.
        features: calendar features: 4 for hourly rows, 5 below an hour, 3 for days.
        d_model: width D.
        normalise: take the context's mean and deviation out first.
        **recipe: optimiser, schedule, loss and further metrics, see ``BaseTask``.
    """

    channel_independent = False
    defaults = {"lr": 1e-3, "weight_decay": 0.0, "betas": (0.9, 0.999), "min_lr_ratio": 0.03}

    def __init__(
        self,
        channels: int = 7,
        context: int = 168,
        horizon: int = 168,
        period: int = 24,
        features: int = 4,
        d_model: int = 16,
        normalise: bool = True,
        **recipe: Any,
    ) -> None:
        super().__init__(**recipe)
        self.context, self.horizon = context, horizon
        self.channels, self.features = channels, features
        self.model = TPGNModel(channels, context, horizon, period, features, d_model, normalise)

    def forward(self, x: Tensor, x_mark: Tensor, y_mark: Tensor) -> Tensor:
        return self.model(x, x_mark)


class InvertedForecaster(ForecastTask):
    """Series as positions around any mixer of the core; see ``models.inverted_forecaster``.

    Args:
        context: known rows L.
        horizon: predicted rows h.
        d_model: width D.
        n_layers: number of layers.
        mixer: a mixer's name or a pattern of names; attention that is not causal if None.
        mixer_kwargs: the mixer's hyper-parameters.
        mlp_ratio: hidden width of the MLPs as a multiple of D.
        norm: "rms" or "layer".
        dropout: on residual branches.
        **recipe: optimiser, schedule, loss and further metrics, see ``BaseTask``.
    """

    channel_independent = False
    defaults = {"lr": 1e-3, "weight_decay": 0.0, "betas": (0.9, 0.999), "min_lr_ratio": 0.03}

    def __init__(
        self,
        context: int = 336,
        horizon: int = 96,
        d_model: int = 128,
        n_layers: int = 2,
        mixer: str | list[Any] | None = None,
        mixer_kwargs: dict[str, Any] | None = None,
        mlp_ratio: float = 2.0,
        norm: Literal["rms", "layer"] = "layer",
        dropout: float = 0.1,
        **recipe: Any,
    ) -> None:
        super().__init__(**recipe)
        self.context, self.horizon = context, horizon
        self.model = InvertedModel(
            *(context, horizon, d_model, n_layers, mixer, mixer_kwargs, dropout),
            mlp_ratio=mlp_ratio,
            norm=norm,
        )

    def forward(self, x: Tensor, x_mark: Tensor, y_mark: Tensor) -> Tensor:
        return self.model(x)
