"""Training of continuous queries on a generated flow: data and task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchmetrics import Metric

from longseq.core.checks import check_positive
from longseq.core.errors import ConfigError
from longseq.core.training.task import BaseTask
from longseq.weather.forecasting.places import sample
from longseq.weather.forecasting.queries import QueryModel
from longseq.weather.forecasting.task import PARTS, FlowData, FlowWindows
from longseq.weather.video.task import FrameError


def question(window: Tensor, count: int, asked: int, rng: np.random.Generator) -> dict[str, Tensor]:
    """Returns values (N, C), where (N, 3), ask (Q, 3) and target (Q, C) of a window.

    Args:
        window: (T, C, H, W).
        count: observations N.
        asked: questions Q.
        rng: of the draw.
    """
    points = count + asked
    places = torch.from_numpy(rng.random((points, 2), dtype=np.float32))
    places = places * torch.tensor([float(n > 1) for n in window.shape[-2:]])
    times = torch.from_numpy(rng.integers(len(window), size=points))
    found = sample(window, places)[times, :, torch.arange(points)]
    where = torch.cat([places, times[:, None].float()], 1)
    return {
        "values": found[:count],
        "where": where[:count],
        "ask": where[count:],
        "target": found[count:],
    }


class _Questions(Dataset[dict[str, Tensor]]):
    """Observations and questions of windows of a part: batches, or single windows if held."""

    def __init__(self, data: QueryData, part: str, count: int | None, held: bool) -> None:
        # Not the module itself, which knows the trainer and model: worker processes get this.
        self.seed, self.span, self.asked = data.seed, data.span, data.asked
        self.least, self.most, self.batch_size = data.least, data.most, data.batch_size
        self.part, self.count, self.held = part, count, held
        self.windows = FlowWindows(data.runs(part), data.span, None, every=data.span)

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        rng = np.random.default_rng((self.seed, PARTS.index(self.part), index))
        if self.held:
            count = self.count or self.most
            return question(self.windows[index]["video"], count, self.asked, rng)
        # As many small ones as large ones, by their logarithm.
        drawn = np.exp(rng.uniform(np.log(self.least), np.log(self.most)))
        count = round(drawn) if self.count is None else self.count
        runs, made = self.windows.runs, []
        for _ in range(self.batch_size):
            first = rng.integers(runs.shape[1] - self.span + 1)
            window = runs[rng.integers(len(runs)), first : first + self.span]
            made.append(question(window, count, self.asked, rng))
        return {name: torch.stack([one[name] for one in made]) for name in made[0]}


class QueryData(FlowData):
    """Observations and questions at irregular places and times of windows of a generated flow.

    Args:
        span: frames of a window; observations and questions are at any of them.
        least: fewest observations of a training window.
        most: most of them; so many in validation and test.
        questions: asked of a window.
        size: points along a side.
        members: training flows.
        frames: of a flow.
        every: time steps of the solver between frames; the flow's own if None.
        spin_up: time steps before the first frame; the flow's own if None.
        eval_members: flows of validation and of test.
        batch_size: windows a training step.
        steps_per_epoch: batches between two ends of an epoch.
        seed: of everything random.
        num_workers: processes that make batches.
        flow: as for ``FlowData``.
        options: further arguments of the flow's class by name.
    """

    on_grid = False

    def __init__(
        self,
        span: int = 9,
        least: int = 8,
        most: int = 128,
        questions: int = 64,
        size: int = 32,
        members: int = 6,
        frames: int = 400,
        every: int | None = None,
        spin_up: int | None = None,
        eval_members: int = 2,
        batch_size: int = 8,
        steps_per_epoch: int = 50,
        seed: int = 0,
        num_workers: int = 0,
        flow: str = "quasigeostrophic",
        options: dict[str, float] | None = None,
    ) -> None:
        super().__init__(
            size,
            members,
            frames,
            every,
            spin_up,
            context=span,
            horizon=1,
            leads=1,
            eval_members=eval_members,
            batch_size=batch_size,
            steps_per_epoch=steps_per_epoch,
            seed=seed,
            num_workers=num_workers,
            flow=flow,
            options=options,
        )
        for name, value in {"least": least, "most": most, "questions": questions}.items():
            check_positive(name, value)
        if least > most:
            raise ConfigError(f"data.least ({least}) must not be above data.most ({most})")
        self.span, self.least, self.most, self.asked = span, least, most, questions

    def questions_of(self, part: str, count: int | None = None) -> list[dict[str, Tensor]]:
        """Returns those of the windows of a part, one after the other.

        Args:
            part: "train", "valid" or "test".
            count: observations of each; ``most`` if None.
        """
        made = _Questions(self, part, count, held=True)
        return [made[index] for index in range(len(made))]

    def train_windows(self) -> Any:
        """Returns the drawn batches of training."""
        return _Questions(self, "train", None, held=False)

    def val_dataloader(self) -> Any:
        """Returns the validation windows."""
        return DataLoader(_Questions(self, "valid", None, held=True), 32)

    def test_dataloader(self) -> Any:
        """Returns the test windows."""
        return DataLoader(_Questions(self, "test", None, held=True), 32)


class FieldQuery(BaseTask):
    """Learns to say what a field is at any place and time from observations at others.

    Args:
        width: channels inside.
        n_layers: layers.
        heads: of the attention.
        waves: wavenumbers of the Fourier features along either axis.
        duration: time in frames that is 1 in the features.
        channels: fields; those of the data in ``fit``.
        **recipe: optimiser, schedule, loss and further metrics, see ``BaseTask``.
    """

    unit = "windows"

    defaults = {"lr": 5e-3, "weight_decay": 1e-5, "warmup_steps": 20, "min_lr_ratio": 0.02}

    def __init__(
        self,
        width: int = 48,
        n_layers: int = 2,
        heads: int = 8,
        waves: int = 8,
        duration: float = 8.0,
        channels: int = 2,
        **recipe: Any,
    ) -> None:
        super().__init__(**recipe)
        self.model = QueryModel(channels, width, n_layers, heads, waves, duration)

    def make_metrics(self) -> Mapping[str, Metric]:
        """Returns the mean squared error of all answers."""
        return {"mse": FrameError()}

    def check_data(self, data: Any) -> None:
        """Checks that model and data agree on what is asked and on the channels."""
        if not isinstance(data, QueryData):
            raise ConfigError(f"FieldQuery needs --data QueryData, got {type(data).__name__}")
        if data.flow.channels != self.model.channels:
            raise ConfigError(
                f"--model.channels is {self.model.channels}, but the flow has "
                f"{data.flow.channels} channels"
            )

    def forward(self, values: Tensor, where: Tensor, ask: Tensor) -> Tensor:
        """Answers questions, see ``QueryModel.forward``."""
        answer = self.model(values, where, ask)
        assert isinstance(answer, Tensor)
        return answer

    def field(self, values: Tensor, where: Tensor, time: float, shape: tuple[int, int]) -> Tensor:
        """Returns the whole field at one time (C, H, W) from observations of one window.

        Args:
            values: (N, C).
            where: rows, columns, times (N, 3).
            time: in frames.
            shape: rows and columns (H, W).
        """
        rows, columns = (torch.arange(n, dtype=values.dtype) / n for n in shape)
        grid = torch.cartesian_prod(rows, columns)
        ask = torch.cat([grid, torch.full_like(grid[:, :1], time)], 1)
        with torch.inference_mode():
            parts = [self(values[None], where[None], one[None])[0] for one in ask.split(1024)]
        return torch.cat(parts).T.unflatten(1, shape)

    def compute(self, batch: Mapping[str, Tensor]) -> dict[str, Any]:
        """Returns the loss; in evaluation also the answers and the true values."""
        answer = self(batch["values"], batch["where"], batch["ask"])
        target = batch["target"]
        loss = self.criterion(answer, target, F.mse_loss)
        if self.training:
            return {"loss": loss, "count": len(target)}
        pair = (answer, target)
        return {
            "loss": loss,
            "count": len(target),
            "forecast": answer,
            "target": target,
            "pair": pair,
        }
