"""Training of forecasts at irregular stations of a generated flow: data and task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric

from longseq.core.checks import check_number, check_positive
from longseq.core.errors import ConfigError
from longseq.core.training.task import BaseTask
from longseq.weather.forecasting.places import draw_places, sample
from longseq.weather.forecasting.stations import StationModel, fill_forward
from longseq.weather.forecasting.task import PARTS, FlowData, FlowWindows
from longseq.weather.video.task import FrameError, PersistenceError


class _StationWindows(FlowWindows):
    """Windows with the stations' places; without a seed the frames after the context are whole."""

    def __init__(self, windows: FlowWindows, places: Tensor, whole: Tensor, context: int) -> None:
        vars(self).update(vars(windows))
        self.places, self.whole, self.context = places, whole, context

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        found = super().__getitem__(index)
        if self.seed is not None:
            return {**found, "places": self.places.expand(self.batch, -1, -1)}
        run, start = divmod(index, len(self.starts))
        first = self.starts[start] + self.context
        after = self.whole[run, first : first + self.length - self.context]
        return {"video": torch.cat([found["video"][: self.context], after]), "places": self.places}


class StationData(FlowData):
    """Values of a generated flow at stations in irregular places, (M, T, C, 1, K). What is observed
    lacks values at random; forecasts of validation and test are held to all values.

    Args:
        stations: K.
        missing: share of the times at which a station has observed nothing, in [0, 1).
        **flow: as for ``FlowData``.
    """

    on_grid = False

    def __init__(self, stations: int = 64, missing: float = 0.0, **flow: Any) -> None:
        super().__init__(**flow)
        check_positive("stations", stations)
        if not 0 <= check_number("missing", missing) < 1:
            raise ConfigError(f"missing must be in [0, 1), got {missing}")
        self.stations, self.missing = stations, missing
        self.places = draw_places(stations, self.flow.shape, self.seed)
        self._whole: dict[str, Tensor] = {}
        self._seen: dict[str, Tensor] = {}

    def runs(self, part: str) -> Tensor:
        """Returns what is observed of a part, float32 (M, T, C, 1, K), NaN where missing."""
        if part not in self._seen:
            whole = self.whole(part)
            generator = torch.Generator().manual_seed(3 * self.seed + PARTS.index(part))
            lost = torch.rand(whole[:, :, :1].shape, generator=generator) < self.missing
            self._seen[part] = whole.masked_fill(lost, float("nan"))
        return self._seen[part]

    def whole(self, part: str) -> Tensor:
        """Returns all values of a part, float32 (M, T, C, 1, K)."""
        if part not in self._whole:
            self._whole[part] = sample(super().runs(part), self.places)[..., None, :]
        return self._whole[part]

    def fill(self, frames: Tensor) -> Tensor:
        """Returns frames (B, L, C, 1, K) with what was last known where values are missing, or,
        before anything was, the mean of the training flows."""
        climate = self.runs("train").nanmean((0, 1)).nan_to_num()
        return fill_forward(frames, climate.expand(len(frames), 1, *climate.shape))

    def train_windows(self) -> FlowWindows:
        """Returns the drawn windows of training."""
        made = super().train_windows()
        return _StationWindows(made, self.places, self.whole("train"), self.context)

    def windows(self, part: str) -> FlowWindows:
        """Returns windows of an observed context and all values of the leads."""
        return _StationWindows(super().windows(part), self.places, self.whole(part), self.context)


class StationForecaster(BaseTask):
    """Forecasts the values at irregular stations that follow a context, by messages between
    neighbours and a virtual node. Trained as ``FlowForecaster``, on the values that are there.

    Args:
        width: channels inside.
        n_layers: layers.
        neighbours: nearest stations of each that send it messages.
        virtual: whether there is a virtual node.
        mixer: over time at every station: a causal mixer's name, or "none".
        reach: length in sides of the domain that is 1 in the filters.
        context: frames that are given.
        channels: fields; those of the data in ``fit``.
        **recipe: optimiser, schedule, loss and further metrics, see ``BaseTask``.
    """

    unit = "flows"

    defaults = {"lr": 3e-3, "weight_decay": 1e-5, "warmup_steps": 20, "min_lr_ratio": 0.02}

    def __init__(
        self,
        width: int = 48,
        n_layers: int = 3,
        neighbours: int = 8,
        virtual: bool = True,
        mixer: str = "rg_lru",
        reach: float = 0.1,
        context: int = 4,
        channels: int = 2,
        **recipe: Any,
    ) -> None:
        super().__init__(**recipe)
        self.model = StationModel(channels, width, n_layers, neighbours, virtual, mixer, reach)
        self.context = check_positive("context", context)

    def make_metrics(self) -> Mapping[str, Metric]:
        """Returns the mean squared error over all leads and persistence's."""
        return {"mse": FrameError(), "persistence_mse": PersistenceError()}

    def check_data(self, data: Any) -> None:
        """Checks that model and data agree on stations, context and channels."""
        if not isinstance(data, StationData):
            raise ConfigError(
                f"StationForecaster needs --data StationData, got {type(data).__name__}"
            )
        if data.context != self.context:
            raise ConfigError(
                f"--model.context {self.context} and --data.context {data.context} must agree"
            )
        if data.flow.channels != self.model.channels:
            raise ConfigError(
                f"--model.channels is {self.model.channels}, but the flow has "
                f"{data.flow.channels} channels"
            )

    def forward(self, context: Tensor, places: Tensor, count: int) -> Tensor:
        """Returns the ``count`` frames after a context (B, L, C, 1, K) at places (B, K, 2)."""
        return torch.stack(list(self.model.rollout(context, places, count)), 1)

    def _loss(self, made: Tensor, target: Tensor) -> Tensor:
        there = ~target.isnan()
        if not bool(there.any()):
            return 0 * made.sum()
        return self.criterion(made[there], target[there], F.mse_loss)

    def compute(self, batch: Mapping[str, Tensor]) -> dict[str, Any]:
        """Returns the loss; in evaluation also the rolled-out frames and the true ones."""
        video, places = batch["video"], batch["places"]
        context, target = video[:, : self.context], video[:, self.context :]
        forecast = self(context, places, target.shape[1])
        loss = self._loss(forecast, target)
        if self.training:
            predicted, _ = self.model(video[:, :-1], places)
            return {"loss": (loss + self._loss(predicted, video[:, 1:])) / 2, "count": len(video)}
        found = {"loss": loss, "count": len(video), "forecast": forecast, "target": target}
        last = fill_forward(context, torch.zeros_like(context[:, :1]))[:, -1:]
        return {**found, "last": last.expand_as(target), "pair": (forecast, target)}
