"""The training task of point clouds: a class per cloud."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy

from longseq.core.checks import check_choice
from longseq.core.errors import ConfigError, DataError
from longseq.core.registry import check_keywords
from longseq.core.results import Score
from longseq.core.training.facts import Fact
from longseq.core.training.task import BaseTask
from longseq.vision.metrics import MeanRecall
from longseq.vision.points.baselines import cloud_baselines
from longseq.vision.points.data import PointClouds
from longseq.vision.points.network import GroupPoints, PointNet

Kind = Literal["groups", "pointnet"]


class PointClassifier(BaseTask):
    """A class per point cloud; the order of the points changes nothing.

    Args:
        num_classes: K.
        model: "groups", recurrences over groups of voxels after LION; or "pointnet", to compare
            with.
        model_kwargs: further hyper-parameters of ``GroupPoints`` or ``PointNet``.
        **recipe: optimiser, schedule, loss and further metrics, see ``BaseTask``.
    """

    unit = "clouds"
    classes = Fact(list)
    defaults = {"lr": 4e-3, "weight_decay": 0.05, "warmup_steps": 30, "min_lr_ratio": 0.01}
    headline = "accuracy", False
    """The metric that ``longseq vision score`` compares, and whether less is better."""

    def __init__(
        self,
        num_classes: int = 8,
        model: Kind = "groups",
        model_kwargs: dict[str, Any] | None = None,
        **recipe: Any,
    ) -> None:
        super().__init__(**recipe)
        check_choice("model", model, Kind)
        made = GroupPoints if model == "groups" else PointNet
        check_keywords(f"model {model!r}", made, model_kwargs or {})
        self.model = made(num_classes, **(model_kwargs or {}))
        self.num_classes, self.kind = num_classes, model

    def make_metrics(self) -> Mapping[str, Metric]:
        """Returns the accuracy, over clouds and as the mean of the classes' recalls."""
        classes = int(self.hparams["num_classes"])
        return {
            "accuracy": MulticlassAccuracy(classes, average="micro"),
            "balanced_accuracy": MeanRecall(classes),
        }

    @property
    def shown(self) -> tuple[str, Literal["model", "baseline"]]:
        """Its name in a table, and whether it is a baseline there."""
        return ("groups of voxels", "model") if self.kind == "groups" else ("pointnet", "baseline")

    def check_data(self, data: Any) -> None:
        """See ``BaseTask``."""
        if isinstance(data, PointClouds) and len(data.classes) != self.num_classes:
            raise ConfigError(
                f"model.num_classes is {self.num_classes}, but {data.source} has "
                f"{len(data.classes)} classes"
            )

    def check_facts(self, known: Mapping[str, Any], found: Mapping[str, Any], stage: str) -> None:
        """The classes must be those of the training."""
        if isinstance(self.data, PointClouds) and known and known["classes"] != found["classes"]:
            raise DataError(
                f"has the classes {found['classes']}, the checkpoint {known['classes']}",
                path=self.data.source,
            )

    def forward(self, points: Tensor, cloud: Tensor, clouds: int) -> Tensor:
        """Returns logits (clouds, K), see ``GroupPoints``."""
        return self.model(points, cloud, clouds)

    def count_units(self, batch: Any) -> int:
        """See ``BaseTask``."""
        return len(batch["label"])

    def compute(self, batch: Mapping[str, Tensor]) -> dict[str, Any]:
        """Returns the loss, and what the metrics need."""
        target = batch["label"]
        logits = self(batch["points"], batch["cloud"], len(target)).float()
        loss, preds = self.criterion(logits, target, F.cross_entropy), logits.detach()
        found = {"loss": loss, "count": len(target), "preds": preds, "target": target}
        return {**found, "pair": (preds, target)}

    def baselines(self, data: PointClouds) -> list[Score]:
        """Returns the accuracy of the most frequent class, and of a random forest on distances.

        Args:
            data: of the checkpoint.
        """
        return cloud_baselines(data)
