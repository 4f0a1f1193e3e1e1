"""Training of forecasts on generated flows: data and task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchmetrics import Metric

from longseq.core.checks import check_number, check_positive
from longseq.core.errors import ConfigError
from longseq.core.training.hyper import BaseData
from longseq.core.training.loader import step_dataloader
from longseq.core.training.task import BaseTask
from longseq.weather.forecasting.flows import make_flow
from longseq.weather.forecasting.masked_transformer import MaskedTransformer
from longseq.weather.forecasting.models import FlowModel, Kind
from longseq.weather.video.task import FrameError, PersistenceError

PARTS = ("train", "valid", "test")
_LEAST = 1e-12


class FlowWindows(Dataset[dict[str, Tensor]]):
    """Windows of runs (M, T, C, H, W): drawn batches with a seed, one after the other without."""

    def __init__(
        self, runs: Tensor, length: int, seed: int | None, batch: int = 1, every: int = 1
    ) -> None:
        self.runs, self.length, self.seed, self.batch = runs, length, seed, batch
        self.starts = list(range(0, runs.shape[1] - length + 1, every))

    def __len__(self) -> int:
        return len(self.starts) * len(self.runs)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if self.seed is None:
            run, start = divmod(index, len(self.starts))
            first = self.starts[start]
            return {"video": self.runs[run, first : first + self.length]}
        rng = np.random.default_rng((self.seed, index))
        runs = rng.integers(len(self.runs), size=self.batch)
        starts = rng.integers(self.runs.shape[1] - self.length + 1, size=self.batch)
        windows = [self.runs[r, s : s + self.length] for r, s in zip(runs, starts)]
        return {"video": torch.stack(windows)}


class FlowData(BaseData):
    """Generated flows, of unit variance in every channel; every part has its own flows.

    Args:
        size: points along a side.
        members: training flows.
        frames: of a flow.
        every: time steps of the solver between frames; the flow's own if None.
        spin_up: time steps before the first frame; the flow's own if None.
        context: frames that are given.
        horizon: frames that follow, in training.
        leads: frames that follow, in validation and test.
        eval_members: flows of validation and of test.
        batch_size: windows a training step.
        steps_per_epoch: batches between two ends of an epoch.
        seed: of everything random.
        num_workers: processes that make batches.
        flow: "quasigeostrophic", "shallow_water", "kuramoto_sivashinsky", or the class path of a
            ``Flow`` of one's own.
        options: further arguments of the flow's class by name.
    """

    fits = ("channels",)
    on_grid = True
    """Whether frames are fields (H, W) of neighbouring points."""

    def __init__(
        self,
        size: int = 32,
        members: int = 6,
        frames: int = 400,
        every: int | None = None,
        spin_up: int | None = None,
        context: int = 4,
        horizon: int = 4,
        leads: int = 20,
        eval_members: int = 2,
        batch_size: int = 8,
        steps_per_epoch: int = 50,
        seed: int = 0,
        num_workers: int = 0,
        flow: str = "quasigeostrophic",
        options: dict[str, float] | None = None,
    ) -> None:
        super().__init__()
        sizes = {"members": members, "frames": frames, "context": context}
        sizes |= {"horizon": horizon, "leads": leads, "eval_members": eval_members}
        sizes |= {"batch_size": batch_size}
        sizes |= {} if every is None else {"every": every}
        sizes |= {} if spin_up is None else {"spin_up": spin_up}
        for name, value in sizes.items():
            check_positive(name, value)
        if frames < context + max(horizon, leads):
            raise ConfigError(f"data.frames ({frames}) must hold the context and the leads")
        self.flow = make_flow(flow, size, options)
        self.members, self.eval_members, self.frames = members, eval_members, frames
        self.every, self.spin_up, self.seed = every, spin_up, seed
        self.context, self.horizon, self.leads = context, horizon, leads
        self.batch_size, self.steps_per_epoch = batch_size, steps_per_epoch
        self.num_workers = num_workers
        self._runs: dict[str, Tensor] = {}

    def model_arguments(self) -> dict[str, Any]:
        """Returns the channels of the flow."""
        return {"channels": self.flow.channels}

    def runs(self, part: str) -> Tensor:
        """Returns the flows of a part, float32 (M, T, C, H, W), made once."""
        if not self._runs:
            counts = (self.members, self.eval_members, self.eval_members)
            made = self.flow.run(sum(counts), self.frames, self.every, self.spin_up, self.seed)
            own = made.split(counts)
            scale = own[0].square().mean((0, 1, 3, 4), keepdim=True).sqrt()
            self._runs = {name: one / scale for name, one in zip(PARTS, own)}
        return self._runs[part]

    def share_runs(self, other: FlowData) -> None:
        """Takes the flows of a module that makes the same ones, in place of making them again.

        Args:
            other: of the same flow, members, frames and seed.
        """
        for part in PARTS:
            self._runs[part] = other.runs(part)

    def fill(self, frames: Tensor) -> Tensor:
        """Returns frames (B, L, C, H, W) without gaps, for plain forecasts; here there are none."""
        return frames

    def train_dataloader(self) -> Any:
        """Returns the loader of drawn windows, which resumes at any step."""
        windows = self.train_windows()
        return step_dataloader(windows, self.trainer, self.steps_per_epoch, self.num_workers)

    def train_windows(self) -> FlowWindows:
        """Returns the drawn windows of training."""
        length = self.context + self.horizon
        return FlowWindows(self.runs("train"), length, self.seed, self.batch_size)

    def windows(self, part: str) -> FlowWindows:
        """Returns windows of a context and all leads, a context's length between their starts."""
        length = self.context + self.leads
        return FlowWindows(self.runs(part), length, None, every=4 * self.context)

    def val_dataloader(self) -> Any:
        """Returns the validation windows."""
        return DataLoader(self.windows("valid"), 32)

    def test_dataloader(self) -> Any:
        """Returns the test windows."""
        return DataLoader(self.windows("test"), 32)


class FlowForecaster(BaseTask):
    """Forecasts the frames of a flow that follow a context.

    In training frames are predicted from the true ones, and those after the context once more from
    the model's own predictions, with the gradient through all of them. The masked transformer, in
    place of the former, forecasts frames of which patches are hidden and makes them whole.

    Args:
        kind: see ``FlowModel``; or "masked_transformer", see ``MaskedTransformer``.
        width: channels inside.
        n_layers: layers.
        d_state: see ``FlowModel``.
        modes: see ``FlowModel``.
        context: frames that are given.
        channels: fields per frame; those of the data in ``fit``.
        hidden: share of the patches that is hidden from the masked transformer in training.
        dt_min: shortest time step of ConvS5's states at the start: the slowest forget in some
            2 / dt_min frames.
        dt_max: longest one: the fastest forget in some 2 / dt_max frames.
        patch: side of the patches of points that become channels inside; the masked transformer
            has patches of its own.
        by_lead: whether the loss is the mean over frames of each one's root, in place of the mean
            over all: errors grow with the lead, and those of late frames would outweigh the rest.
        read_kernel: see ``FlowModel``.
        **recipe: optimiser, schedule, loss and further metrics, see ``BaseTask``.
    """

    unit = "flows"

    defaults = {"lr": 3e-3, "weight_decay": 1e-5, "warmup_steps": 20, "min_lr_ratio": 0.02}

    def __init__(
        self,
        kind: Kind | Literal["masked_transformer"] = "fno",
        width: int = 24,
        n_layers: int = 3,
        d_state: int = 24,
        modes: int = 10,
        context: int = 4,
        channels: int = 2,
        hidden: float = 0.5,
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        patch: int = 1,
        by_lead: bool = False,
        read_kernel: int = 3,
        **recipe: Any,
    ) -> None:
        super().__init__(**recipe)
        self.by_lead = by_lead
        self.model: FlowModel | MaskedTransformer
        if kind == "masked_transformer":
            self.model = MaskedTransformer(channels, width, n_layers)
        else:
            times = dt_min, dt_max
            self.model = FlowModel(
                channels, kind, width, n_layers, d_state, modes, *times, patch, read_kernel
            )
        if not 0 <= check_number("hidden", hidden) < 1:
            raise ConfigError(f"hidden must be in [0, 1), got {hidden}")
        self.hidden = hidden
        self.context = check_positive("context", context)

    def make_metrics(self) -> Mapping[str, Metric]:
        """Returns the mean squared error over all leads and persistence's."""
        return {"mse": FrameError(), "persistence_mse": PersistenceError()}

    def check_data(self, data: Any) -> None:
        """Checks that model and data agree on the context and the channels.

        Args:
            data: the data module; any that is no ``FlowData`` is taken.

        Raises:
            ConfigError: if they do not.
        """
        if not isinstance(data, FlowData):
            return
        if not data.on_grid:
            raise ConfigError(
                f"FlowForecaster needs fields on a grid, and {type(data).__name__} has irregular "
                "places: StationForecaster forecasts StationData, FieldQuery answers QueryData"
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

    def forward(self, context: Tensor, count: int, window: int = 0) -> Tensor:
        """Returns the ``count`` frames that follow a context (B, L, C, H, W).

        Args:
            context: (B, L, C, H, W).
            count: number of frames.
            window: see ``FlowModel.rollout``; the masked transformer has no state to carry.
        """
        if isinstance(self.model, MaskedTransformer):
            return torch.stack(list(self.model.rollout(context, count)), 1)
        return torch.stack(list(self.model.rollout(context, count, window)), 1)

    def compute(self, batch: Mapping[str, Tensor]) -> dict[str, Any]:
        """Returns the loss; in evaluation also the rolled-out frames and the true ones."""
        video = batch["video"]
        context, target = video[:, : self.context], video[:, self.context :]
        if self.training:
            if isinstance(self.model, MaskedTransformer):
                forecast = self(context, target.shape[1])
                own = self._loss(*self.model.masked_pairs(video, self.hidden), 0)
            else:
                made, forecast = self.model.both(video, self.context)
                own = self._loss(made, video[:, 1:])
            loss = self._loss(forecast, target) + own
            return {"loss": loss / 2, "count": len(video)}
        forecast = self(context, target.shape[1])
        loss = self.criterion(forecast, target, F.mse_loss)
        found = {"loss": loss, "count": len(video), "forecast": forecast, "target": target}
        return {**found, "last": context[:, -1:].expand_as(target), "pair": (forecast, target)}

    def _loss(self, made: Tensor, true: Tensor, lead: int = 1) -> Tensor:
        """Returns the loss of frames (B, L, C, H, W), or with their leads along another axis."""
        if not self.by_lead:
            return self.criterion(made, true, F.mse_loss)
        frames = zip(made.unbind(lead), true.unbind(lead))
        losses = torch.stack([self.criterion(*pair, F.mse_loss) for pair in frames])
        return (losses + _LEAST).sqrt().mean()  # the root of a perfect frame has no gradient
