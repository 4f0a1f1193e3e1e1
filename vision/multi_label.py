"""The training task of images that carry any number of labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import (
    MultilabelAveragePrecision,
    MultilabelExactMatch,
    MultilabelF1Score,
)

from longseq.core.errors import ConfigError
from longseq.vision.data.labels import MultiLabelData
from longseq.vision.task import ImageClassifier


class ByLabel(MultilabelAveragePrecision):
    """The mean average precision of the labels that images have; what it has seen gives every
    label's own scores too."""

    def compute(self) -> Tensor:
        """Returns the mean, (); 0 if no image has a label."""
        found = [score for score, _, images in self.scores() if images]
        return torch.tensor(sum(found) / max(1, len(found)))

    def scores(self) -> list[tuple[float, float, int]]:
        """Returns average precision, F1 at a probability of 0.5, and the images of every label."""
        if not self.preds:
            return []
        preds, target = torch.cat(list(self.preds)), torch.cat(list(self.target))
        # Of a label that no image has there is no average precision.
        ap = MultilabelAveragePrecision(self.num_labels, average="none")(preds, target)
        f1 = MultilabelF1Score(self.num_labels, average="none")(preds, target)
        counts = target.sum(0).long()
        return [
            (float(a) if n else float("nan"), float(f), int(n))
            for a, f, n in zip(ap, f1, counts, strict=True)
        ]


class MultiLabelClassifier(ImageClassifier):
    """Any number of labels for every image: one probability each, by binary cross-entropy.

    Args:
        model: see ``ImageClassifier``.
        num_classes: number of labels.
        in_chans: see ``ImageClassifier``.
        img_size: likewise.
        model_kwargs: likewise.
        pretrained: likewise.
        label_smoothing: what 0 and 1 are moved towards 0.5 by, twice.
        ema_decay: see ``ImageClassifier``.
        freeze: likewise.
        layer_decay: likewise.
        recompute: likewise.
        mirrored: likewise.
        **recipe: optimiser, schedule, loss and further metrics, see ``BaseTask``.
    """

    one_class = False

    def make_metrics(self) -> Mapping[str, Metric]:
        """Returns the labels' mean average precision and F1, and how often all are right."""
        labels = max(2, int(self.hparams["num_classes"]))
        return {
            "map": ByLabel(labels, average="macro"),
            "f1": MultilabelF1Score(labels, average="macro"),
            "exact": MultilabelExactMatch(labels),
        }

    def probabilities(self, logits: Tensor) -> Tensor:
        """Returns the probability of every label on its own."""
        return torch.sigmoid(logits.double())

    def compute(self, batch: Mapping[str, Tensor]) -> dict[str, Any]:
        """Returns the mean binary cross-entropy in nats, and what the metrics need."""
        target, logits = batch["target"], self(batch["image"])
        smoothing = self.label_smoothing if self.training else 0.0
        wanted = target * (1 - smoothing) + smoothing / 2
        loss = self.criterion(logits.float(), wanted, F.binary_cross_entropy_with_logits)
        preds, pair = self.probabilities(logits.detach()), (logits, target)
        return {
            "loss": loss,
            "count": len(logits),
            "preds": preds,
            "target": target.long(),
            "pair": pair,
        }

    def check_data(self, data: Any) -> None:
        """See ``BaseTask``."""
        if not isinstance(data, MultiLabelData) and hasattr(data, "evaluation"):
            raise ConfigError("a MultiLabelClassifier needs --data MultiLabelData")
        super().check_data(data)

    def on_test_epoch_end(self) -> None:
        """Prints every label's average precision, F1 and share, by which chance would score."""
        metric = self.metrics["test"]["map"]  # type: ignore[index]
        if self.trainer.world_size > 1 or not isinstance(metric, ByLabel):
            return
        rows = metric.scores()
        images = sum(len(part) for part in metric.preds)
        width = max([5, *(len(name) for name in self.classes)])
        print(f"{'label':<{width}}      AP      F1   share")
        for name, (ap, f1, count) in zip(self.classes, rows):
            print(f"{name:<{width}}  {ap:6.4f}  {f1:6.4f}  {count / images:6.4f}")
