"""Training tasks of time series: forecasters that are scored in z-scores of the training rows."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric

from longseq.core.errors import ConfigError
from longseq.core.training.task import BaseTask
from longseq.timeseries.data.calendar import N_FEATURES, resolution
from longseq.timeseries.data.module import FACTS, ForecastData
from longseq.timeseries.data.windows import Scaler
from longseq.timeseries.metrics import ForecastError
from longseq.timeseries.models.autoformer import Autoformer as AutoformerModel
from longseq.timeseries.models.informer import Informer as InformerModel
from longseq.timeseries.models.mixer_forecaster import MixerForecaster as MixerForecasterModel
from longseq.timeseries.models.spacetime import SpaceTime as SpaceTimeModel


class ForecastTask(BaseTask):
    """A model that maps a context to the mean forecast of a horizon.

    Subclasses set ``context`` and ``horizon``. ``fit`` takes the scaler from the data (training
    rows only), with the time at which these end; it travels with the checkpoint, so that
    predictions use the same.

    Attributes:
        channel_independent: whether series go through the network one by one, so that it takes any
            number.
        features: number of calendar features that the model was made for; None if it takes none.
    """

    unit = "windows"

    channel_independent = True
    features: int | None = None
    context: int
    horizon: int
    channels: int | None = None

    def make_metrics(self) -> Mapping[str, Metric]:
        """Returns mean squared and mean absolute error."""
        return {"mse": ForecastError("mse"), "mae": ForecastError("mae")}

    @abstractmethod
    def forward(self, x: Tensor, x_mark: Tensor, y_mark: Tensor) -> Tensor:
        """Returns the forecast (B, h, C) of z-scores x (B, L, C); the marks are calendar
        features."""

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
        loss = self.training_loss(batch, mask) if self.training and self.own_loss is None else None
        if loss is not None:
            return {"loss": loss, "count": count}
        forecast = self(batch["x"], batch["x_mark"], batch["y_mark"])
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
        return found | {"mask": mask, "pair": pair}

    @property
    def scaler(self) -> dict[str, Any] | None:
        """Means and deviations of the training rows by series, and their end; None before
        ``fit``."""
        return self.facts or None

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
        self.check_series(data.panel.ids, N_FEATURES[resolution(data.panel.freq)], data.path)

    def check_facts(self, known: Mapping[str, Any], found: Mapping[str, Any], stage: str) -> None:
        """Other training rows would need another scaler; evaluation may be on any."""
        if stage != "fit" or not isinstance(self.data, ForecastData):
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
        **recipe: optimiser, schedule, loss and further metrics, see ``BaseTask``.
    """

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
        **recipe: Any,
    ) -> None:
        super().__init__(**recipe)
        self.context, self.horizon = context, horizon
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
        )

    def forward(self, x: Tensor, x_mark: Tensor, y_mark: Tensor) -> Tensor:
        return self.model(x)


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
