"""Training tasks of vision: image classification."""

from __future__ import annotations

import argparse
import copy
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError

from longseq.core.errors import ConfigError, DataError, with_article
from longseq.core.training.facts import Fact
from longseq.core.training.loading import load_task
from longseq.core.training.task import BaseTask
from longseq.vision import fine_tuning
from longseq.vision.data.module import ImageData
from longseq.vision.metrics import MeanRecall
from longseq.vision.models.published import load_published
from longseq.vision.models.registry import create_model
from longseq.vision.recompute import recompute_blocks


class Mirrored(nn.Module):
    """The mean of a model's logits over images (B, C, H, W) and their mirror images.

    Not that of the probabilities: on CIFAR images that were kept back the logits' had the lower
    cross-entropy, and it is one sum for classes and for labels, which an exported file can hold.

    Args:
        model: that gives logits (B, K).
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W)."""
        if torch.compiler.is_exporting():
            # The file holds the model's operations once, and its weights as 8-bit numbers too.
            return self.model(torch.cat((x, x.flip(3)))).unflatten(0, (2, -1)).mean(0)
        return (self.model(x) + self.model(x.flip(3))) / 2


class ImageClassifier(BaseTask):
    """Classification of images; all evaluation uses the averaged weights, where there are any.

    The names of the classes and the preprocessing travel in the checkpoint: ``predict`` needs
    nothing else.

    Args:
        model: one of ``longseq.vision.list_models()``.
        num_classes: number of classes.
        in_chans: channels of the images.
        img_size: side in pixels.
        model_kwargs: further hyper-parameters of the model.
        pretrained: published weights to start from.
        label_smoothing: probability spread over all classes.
        ema_decay: decay of averaged weights; 0 for none.
        freeze: lowest parts that are not trained: 1 the stem, 2 the first block too, and so on; -1
            all but the head.
        layer_decay: factor on the learning rate for every block further from the head; 1 for none.
        recompute: compute blocks twice, for less memory.
        mirrored: evaluate mirror images too.
        **recipe: optimiser, schedule, loss and further metrics, see ``BaseTask``.
    """

    unit = "images"
    copies = ("ema",)
    evaluation_only = ("mirrored",)
    one_class: ClassVar[bool] = True
    """Whether an image is of one class; otherwise each class has a probability of its own."""

    classes = Fact(list)
    preprocess = Fact(dict)

    defaults = {
        "lr": 2e-3,
        "weight_decay": 0.05,
        "betas": (0.9, 0.999),
        "warmup_steps": 100,
        "min_lr_ratio": 0.01,
    }

    def __init__(
        self,
        model: str = "vmamba_nano",
        num_classes: int = 10,
        in_chans: int = 3,
        img_size: int = 32,
        model_kwargs: dict[str, Any] | None = None,
        pretrained: str | None = None,
        label_smoothing: float = 0.0,
        ema_decay: float = 0.0,
        freeze: int = 0,
        layer_decay: float = 1.0,
        recompute: bool = False,
        mirrored: bool = False,
        **recipe: Any,
    ) -> None:
        super().__init__(**recipe)
        if not 0 <= ema_decay < 1 or not 0 <= label_smoothing < 1:
            raise ConfigError(
                f"ema_decay and label_smoothing must lie in [0, 1), got {ema_decay} and "
                f"{label_smoothing}"
            )
        if num_classes < 2:
            raise ConfigError(f"num_classes must be at least 2, got {num_classes}")
        if not 0 < layer_decay <= 1:
            raise ConfigError(f"layer_decay must lie in (0, 1], got {layer_decay}")
        common = {"num_classes": num_classes, "in_chans": in_chans, "img_size": img_size}
        self.model = create_model(model, **{**common, **(model_kwargs or {})})
        self.start_from = pretrained
        self.num_classes, self.in_chans, self.img_size = num_classes, in_chans, img_size
        self.label_smoothing, self.ema_decay = label_smoothing, ema_decay
        self.layer_decay = layer_decay
        self.mirrored = mirrored
        fine_tuning.freeze(self.model, freeze)
        self.ema = copy.deepcopy(self.model).requires_grad_(False) if ema_decay else None
        if recompute:
            recompute_blocks(self.model)

    def make_optimizer(self) -> Optimizer:
        """Returns the recipe's optimiser, with smaller rates further from the head."""
        optimizer = super().make_optimizer()
        if self.layer_decay < 1:
            fine_tuning.decay_rates(optimizer, self.model, self.layer_decay)
        return optimizer

    def train(self, mode: bool = True) -> ImageClassifier:
        """Leaves the batch norms of frozen parts as they are."""
        super().train(mode)
        if mode:
            fine_tuning.still_norms(self.model)
        return self

    def make_metrics(self) -> Mapping[str, Metric]:
        """Returns accuracy, its mean over the classes, top-5 accuracy and the calibration error."""
        classes = max(2, int(self.hparams["num_classes"]))
        return {
            "accuracy": MulticlassAccuracy(classes, average="micro"),
            "balanced_accuracy": MeanRecall(classes),
            "top5": MulticlassAccuracy(classes, top_k=min(5, classes), average="micro"),
            "calibration_error": MulticlassCalibrationError(classes, n_bins=15),
        }

    @property
    def best(self) -> nn.Module:
        """What is evaluated: the averaged model, or the model itself if there is none."""
        found = self.model if self.ema is None else self.ema
        return Mirrored(found) if self.mirrored else found

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits (B, classes) of normalised images (B, C, H, W)."""
        return (self.model if self.training else self.best)(images)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Returns the probability of every class (B, K), float64."""
        return torch.softmax(logits.double(), 1)

    def compute(self, batch: Mapping[str, Tensor]) -> dict[str, Any]:
        """Returns the mean cross-entropy in nats, and what the metrics need."""
        target, logits = batch["target"], self(batch["image"])
        smoothing = self.label_smoothing if self.training else 0.0
        plain = functools.partial(F.cross_entropy, label_smoothing=smoothing)
        loss, pair = self.criterion(logits.float(), target, plain), (logits, target)
        # torchmetrics takes logits that happen to lie in [0, 1] for probabilities.
        preds = self.probabilities(logits.detach())
        return {"loss": loss, "count": len(logits), "preds": preds, "target": target, "pair": pair}

    def check_data(self, data: Any) -> None:
        """See ``BaseTask``."""
        if not isinstance(data, ImageData):
            return
        if len(data.classes) != self.num_classes:
            raise ConfigError(
                f"model.num_classes is {self.num_classes}, but {data.source} has "
                f"{len(data.classes)} classes"
            )
        if data.channels != self.in_chans:
            raise ConfigError(
                f"model.in_chans is {self.in_chans}, but data.channels is {data.channels}"
            )

    def check_facts(self, known: Mapping[str, Any], found: Mapping[str, Any], stage: str) -> None:
        """The classes must be those of the training, in the same order; pixels are read alike."""
        if (
            "classes" in found
            and found["classes"] != known.get("classes")
            and isinstance(self.data, ImageData)
        ):
            ours, theirs = known.get("classes", []), found["classes"]
            other = [repr(one) for one in theirs if one not in ours][:4]
            absent = [repr(one) for one in ours if one not in theirs][:4]
            raise DataError(
                f"has {', '.join(other) or 'no other'} and lacks {', '.join(absent) or 'none'} of "
                "the classes that the checkpoint was trained on"
                if other or absent
                else "has the classes of the checkpoint in another order",
                path=self.data.source,
            )
        if isinstance(self.data, ImageData) and known.get("preprocess"):
            self.data.take(known["preprocess"])

    @classmethod
    def upgrade(cls, content: dict[str, Any]) -> None:
        """Also renames what was called ``checkpoint``, and drops what only trainings needed."""
        super().upgrade(content)
        hyper = content.get("hyper_parameters") or {}
        if "checkpoint" in hyper:
            hyper["pretrained"] = hyper.pop("checkpoint")
        hyper.pop("early_size", None)

    def setup(self, stage: str) -> None:
        """Also loads the weights to start from."""
        super().setup(stage)
        if stage == "fit" and self.start_from is not None:
            self._start_from(self.start_from)

    def _start_from(self, path: str) -> None:
        """Loads published weights."""
        load_published(self.model, path)
        if self.ema is not None:
            self.ema.load_state_dict(self.model.state_dict())

    def stepped(self, step: int) -> None:
        """Averages the weights, see ``BaseTask``."""
        if self.ema is None:
            return
        # Early on the average forgets faster, or it would keep the random start for 1 / (1 - decay)
        # steps.
        decay = min(self.ema_decay, (1 + step) / (10 + step))
        with torch.no_grad():
            pairs = list(zip(self.ema.state_dict().values(), self.model.state_dict().values()))
            weights = [pair for pair in pairs if pair[0].is_floating_point()]
            torch._foreach_lerp_(*(list(side) for side in zip(*weights)), 1 - decay)
            for averaged, current in pairs:
                if not averaged.is_floating_point():
                    averaged.copy_(current)  # what batch norms count


def add_mirrored(parser: argparse.ArgumentParser, *names: str) -> None:
    """Adds ``--model.mirrored``, spelled as for ``fit`` and ``test``.

    Args:
        parser: of a command that evaluates classifiers.
        *names: older names of ``--model.mirrored true``.
    """
    parser.add_argument(
        "--model.mirrored",
        dest="mirrored",
        choices=("true", "false"),
        help="classes: mean of the logits over each image and its mirror image (as the checkpoint "
        "says)",
    )
    for name in names:
        parser.add_argument(
            name,
            dest="mirrored",
            action="store_const",
            const="true",
            help="the same as --model.mirrored true",
        )


def take_mirrored(task: BaseTask, mirrored: str | None, path: str | Path) -> None:
    """Makes a task evaluate mirror images too, or not, where that was asked for.

    Args:
        task: of any kind.
        mirrored: "true", "false", or None for what the checkpoint says.
        path: of the checkpoint, for the message.

    Raises:
        ConfigError: if it was asked for and the task gives no classes of images.
    """
    if mirrored is None:
        return
    if not isinstance(task, ImageClassifier):
        kind = type(task).__name__
        raise ConfigError(
            f"--model.mirrored, --flip: is for classes, and {path} is {with_article(kind)}"
        )
    task.mirrored = mirrored == "true"


def load_classifier(path: str | Path, model: str | None = None) -> BaseTask:
    """Returns the task of a checkpoint, or a classifier of published weights.

    Published weights have classes without names, 0, 1, …, and are prepared as those who published
    them evaluate them (``pretrained_cfg``).

    Args:
        path: written by ``fit``; or published.
        model: of published weights: one of ``list_models()``. None for a checkpoint of ``fit``.

    Raises:
        ConfigError: if the model's published preprocessing is not known.
        DataError: if the file is unusable.
    """
    if model is None:
        return load_task(path, "vision")
    made = create_model(model, pretrained=path)
    how = dict(made.pretrained_cfg)
    if not how:
        raise ConfigError(
            f"no weights of {model} are published: it is not known how to prepare images"
        )
    classes = made.get_submodule(made.head_key)
    assert isinstance(classes, nn.Linear)
    task = ImageClassifier(model, classes.out_features, made.in_chans, how["img_size"])
    task.model.load_state_dict(made.state_dict())
    task.classes = [str(i) for i in range(classes.out_features)]
    reading = {"channels": made.in_chans}
    task.preprocess = {**how, "channels": made.in_chans, "reading": reading}
    return task.eval()
