"""The training task of video models: the next frame, from true frames and from the model's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric

from longseq.core.checks import check_choice
from longseq.core.errors import ConfigError
from longseq.core.mixers import State
from longseq.core.training.task import BaseTask
from longseq.weather.video.moving_digits import MovingDigits
from longseq.weather.video.next_frame import Core, NextFrame

Own = Literal["pass", "rollout"]


class FrameError(Metric):
    """Mean squared error a pixel over all frames that were seen."""

    full_state_update = False
    higher_is_better = False
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, forecast: Tensor, target: Tensor) -> None:
        """Adds frames of any shape."""
        self.total += (forecast - target).double().square().sum()
        self.count += target.numel()

    def compute(self) -> Tensor:
        return self.total / self.count


class VideoForecaster(BaseTask):
    """Predicts the frames that follow a context with ConvS5 (arXiv 2310.19694) or a ConvLSTM.

    In training all frames are predicted at once from the true ones; then again with the frames
    after the context replaced by the model's own, so that it learns to go on from what it made: by
    its predictions of the pass before, ``passes`` times, or with ``own="rollout"`` by a rollout
    without gradients, frames as far from the truth as in use. In validation and test it rolls out.

    Args:
        channels: of a frame.
        patch: side of the patches that become channels, in pixels.
        depths: channels of the encoder at every resolution, from the finest.
        n_layers: blocks.
        d_state: real state dimensions of a pixel; the ConvLSTM's hidden channels.
        kernel: side of the core's kernels.
        init: "legs" or "ptd".
        groups: of the group norms.
        dropout: in the blocks.
        context: frames that are given.
        passes: training passes on own predictions; a rollout has one, 0 for none.
        own: where the model's own frames come from in training: "pass" or "rollout".
        core: "conv_s5", "gated_conv_s5" or "conv_lstm".
        dt_min: shortest time step of ConvS5's states at the start: the slowest forget in some
            2 / dt_min frames.
        dt_max: longest one: the fastest forget in some 2 / dt_max frames.
        **recipe: optimiser, schedule, loss and further metrics, see ``BaseTask``.
    """

    unit = "videos"

    defaults = {"lr": 3e-3, "weight_decay": 1e-5, "warmup_steps": 50, "min_lr_ratio": 0.02}

    def __init__(
        self,
        channels: int = 1,
        patch: int = 2,
        depths: Sequence[int] = (24,),
        n_layers: int = 2,
        d_state: int = 24,
        kernel: int = 3,
        init: Literal["legs", "ptd"] = "legs",
        groups: int = 8,
        dropout: float = 0.0,
        context: int = 15,
        passes: int = 1,
        own: Own = "pass",
        core: Core = "conv_s5",
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        **recipe: Any,
    ) -> None:
        super().__init__(**recipe)
        if context < 1 or passes < 0:
            raise ConfigError(f"context must be ≥ 1 and passes ≥ 0, got {context} and {passes}")
        self.model = NextFrame(
            channels,
            patch,
            list(depths),
            n_layers,
            d_state,
            kernel,
            init,
            groups,
            dropout,
            core,
            dt_min,
            dt_max,
        )
        if check_choice("own", own, Own) == "rollout" and passes > 1:
            raise ConfigError(f"a rollout has one pass on own frames, got passes {passes}")
        self.context, self.passes, self.own = context, passes, own

    def make_metrics(self) -> Mapping[str, Metric]:
        """Returns the rollout's mean squared error and persistence's."""
        return {"mse": FrameError(), "persistence_mse": PersistenceError()}

    def check_data(self, data: Any) -> None:
        """Checks that model and data agree on the context and the frames' sides.

        Args:
            data: the data module; any that is no ``MovingDigits`` is taken.

        Raises:
            ConfigError: if they do not.
        """
        if not isinstance(data, MovingDigits):
            return
        if data.context != self.context:
            raise ConfigError(
                f"--model.context {self.context} and --data.context {data.context} must agree"
            )
        if data.size % self.model.factor:
            raise ConfigError(f"--data.size {data.size} must be a multiple of {self.model.factor}")

    def forward(self, context: Tensor, count: int) -> Tensor:
        """Returns the ``count`` frames that follow a context (B, L, C, H, W)."""
        return torch.stack(list(self.model.rollout(context, count)), 1)

    def compute(self, batch: Mapping[str, Tensor]) -> dict[str, Any]:
        """Returns the loss; in evaluation also the rolled-out frames and the true ones."""
        video = batch["video"]
        if not self.training:
            context, target = video[:, : self.context], video[:, self.context :]
            forecast = self(context, target.shape[1])
            last = context[:, -1:].expand_as(target)
            loss, pair = self.criterion(forecast, target, F.mse_loss), (forecast, target)
            found = {"loss": loss, "count": len(video), "forecast": forecast, "target": target}
            return {**found, "last": last, "pair": pair}
        known, target = self.context, video[:, 1:]
        before, states = self.model(video[:, : known - 1]) if known > 1 else (None, None)
        # From the last frame of the context on, with the true frames and then with the model's own.
        frames, after = video[:, known - 1 : -1], target[:, known - 1 :]
        predicted, _ = self.model(frames, states)
        losses = [self.criterion(predicted, after, F.mse_loss)]
        if before is not None:
            losses.append(self.criterion(before, target[:, : known - 1], F.mse_loss))
        for _ in range(self.passes):
            # Frame t + 1 as it was predicted stands in for the true one.
            own = self._rolled(frames, states) if self.own == "rollout" else predicted.detach()
            frames = torch.cat([frames[:, :1], own[:, :-1]], 1)
            predicted, _ = self.model(frames, states)
            losses.append(self.criterion(predicted, after, F.mse_loss))
        return {"loss": torch.stack(losses).mean(), "count": len(video)}

    @torch.no_grad()
    def _rolled(self, frames: Tensor, states: list[State] | None) -> Tensor:
        """Returns the model's own frames after the first one of ``frames``."""
        return torch.stack(list(self.model.rollout(frames[:, :1], frames.shape[1], states)), 1)


class PersistenceError(FrameError):
    """The same error of repeating the last frame of the context."""

    def update(self, last: Tensor, target: Tensor) -> None:
        """Adds frames (B, L, C, H, W), the last one of the context repeated."""
        super().update(last, target)
