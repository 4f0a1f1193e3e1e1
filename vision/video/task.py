"""The training tasks of video: an alpha matte per frame, or a class per clip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy

from longseq.core.errors import ConfigError
from longseq.core.results import Score
from longseq.core.training.facts import Fact
from longseq.core.training.task import BaseTask
from longseq.vision.video.mattes import MatteError, MedianMatte, matte_loss
from longseq.vision.video.moving_shapes import MOTIONS, MovingShapes
from longseq.vision.video.network import ClipNetwork, FrameMemory, MatteNetwork, States

_ERRORS = ("mad", "mse", "gradient", "dt")
_RECIPE = {"lr": 4e-3, "weight_decay": 0.05, "warmup_steps": 30, "min_lr_ratio": 0.01}


def _shown(encoder: FrameMemory) -> tuple[str, Literal["model", "baseline"]]:
    if encoder.memory:
        return f"{encoder.mixer} over frames", "model"
    return "the same network without memory", "baseline"


class VideoMatting(BaseTask):
    """The opacity of what moves, for every pixel of every frame, with a state from frame to frame.

    Args:
        in_chans: channels of a frame.
        dims: widths of the encoder's levels.
        n_layers: layers of memory.
        mixer: a causal mixer of the core, over time.
        mixer_kwargs: its hyper-parameters.
        memory: whether a state is carried; without it every frame stands alone.
        **recipe: optimiser, schedule, loss and further metrics, see ``BaseTask``.
    """

    unit = "clips"
    defaults = _RECIPE
    headline = "mad", True
    """The metric that ``longseq vision score`` compares, and whether less is better."""

    def __init__(
        self,
        in_chans: int = 3,
        dims: Sequence[int] = (8, 16, 32),
        n_layers: int = 2,
        mixer: str = "mamba",
        mixer_kwargs: dict[str, Any] | None = None,
        memory: bool = True,
        **recipe: Any,
    ) -> None:
        super().__init__(**recipe)
        encoder = FrameMemory(in_chans, dims, n_layers, mixer, mixer_kwargs, memory)
        self.model = MatteNetwork(encoder)

    def make_metrics(self) -> Mapping[str, Metric]:
        """Returns the errors of mattes, times 1,000."""
        return {kind: MatteError(kind) for kind in _ERRORS}

    @property
    def shown(self) -> tuple[str, Literal["model", "baseline"]]:
        """Its name in a table, and whether it is a baseline there."""
        return _shown(self.model.encoder)

    def forward(self, frames: Tensor, states: States | None = None) -> tuple[Tensor, States]:
        """Returns alpha (B, L, 1, H, W) of frames from 0 to 1, and the states after the last."""
        logits, states = self.model(frames, states)
        return torch.sigmoid(logits), states

    def compute(self, batch: Mapping[str, Tensor]) -> dict[str, Any]:
        """Returns the loss, and alpha for the metrics."""
        logits, _ = self.model(batch["frames"])
        logits, target = logits.float(), batch["alpha"]
        loss, alpha = self.criterion(logits, target, matte_loss), torch.sigmoid(logits.detach())
        found = {"loss": loss, "count": len(target), "alpha": alpha, "target": target}
        return {**found, "pair": (alpha, target)}

    def baselines(self, data: MovingShapes) -> list[Score]:
        """Returns the mean absolute errors of nothing at all and of median backgrounds, on the test
        clips; thresholds are chosen on validation clips.

        Args:
            data: of the checkpoint.
        """
        valid = [(batch["frames"], batch["alpha"]) for batch in data.evaluation("valid")]
        rules = {
            "median of the whole clip": MedianMatte().fit(valid),
            "median of the frames so far": MedianMatte(running=True).fit(valid),
        }
        scores = {name: MatteError("mad") for name in ("nothing moves", *rules)}
        for batch in data.evaluation("test"):
            scores["nothing moves"].update(torch.zeros_like(batch["alpha"]), batch["alpha"])
            for name, rule in rules.items():
                scores[name].update(rule.alpha(batch["frames"]), batch["alpha"])
        return [Score(name, float(metric.compute())) for name, metric in scores.items()]


class VideoClassifier(BaseTask):
    """A class per clip, known after every frame and scored after the last.

    Args:
        num_classes: K.
        in_chans: channels of a frame.
        dims: widths of the encoder's levels.
        n_layers: layers of memory.
        mixer: a causal mixer of the core, over time.
        mixer_kwargs: its hyper-parameters.
        memory: whether a state is carried; without it the last frame decides alone.
        **recipe: optimiser, schedule, loss and further metrics, see ``BaseTask``.
    """

    unit = "clips"
    classes = Fact(list)
    defaults = _RECIPE
    headline = "accuracy", False

    def __init__(
        self,
        num_classes: int = len(MOTIONS),
        in_chans: int = 3,
        dims: Sequence[int] = (8, 16, 32),
        n_layers: int = 2,
        mixer: str = "mamba",
        mixer_kwargs: dict[str, Any] | None = None,
        memory: bool = True,
        **recipe: Any,
    ) -> None:
        super().__init__(**recipe)
        encoder = FrameMemory(in_chans, dims, n_layers, mixer, mixer_kwargs, memory)
        self.model = ClipNetwork(encoder, num_classes)
        self.num_classes = num_classes

    def make_metrics(self) -> Mapping[str, Metric]:
        """Returns the accuracy over clips."""
        classes = int(self.hparams["num_classes"])
        return {"accuracy": MulticlassAccuracy(classes, average="micro")}

    def check_data(self, data: Any) -> None:
        """See ``BaseTask``."""
        if isinstance(data, MovingShapes) and self.num_classes != len(MOTIONS):
            raise ConfigError(
                f"model.num_classes is {self.num_classes}, but there are {len(MOTIONS)} motions"
            )

    @property
    def shown(self) -> tuple[str, Literal["model", "baseline"]]:
        """See ``VideoMatting.shown``."""
        return _shown(self.model.encoder)

    def forward(self, frames: Tensor, states: States | None = None) -> tuple[Tensor, States]:
        """Returns logits after every frame (B, L, K), and the states after the last one."""
        return self.model(frames, states)

    def compute(self, batch: Mapping[str, Tensor]) -> dict[str, Any]:
        """Returns the loss after the last frame, and what the accuracy needs."""
        logits, target = self(batch["frames"])[0][:, -1].float(), batch["label"]
        loss, preds = self.criterion(logits, target, F.cross_entropy), logits.detach()
        found = {"loss": loss, "count": len(target), "preds": preds, "target": target}
        return {**found, "pair": (preds, target)}

    def baselines(self, data: MovingShapes) -> list[Score]:
        """Returns the accuracy of the most frequent class of the validation clips, and of logistic
        regression on differences between the last frames and the first.

        Args:
            data: of the checkpoint.
        """
        from longseq.vision.video.baselines import motion_baselines

        return motion_baselines(data)
