"""The training task of segmentation: a class for every pixel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import MulticlassF1Score, MulticlassJaccardIndex

from longseq.core.errors import ConfigError, DataError
from longseq.core.training.facts import Fact
from longseq.core.training.task import BaseTask
from longseq.vision.data.masks import IGNORED
from longseq.vision.data.segmentation import SegmentationData
from longseq.vision.models.published import load_published
from longseq.vision.models.unet import DecoderKind, create_segmenter
from longseq.vision.recompute import recompute_blocks
from longseq.vision.tiles import whole_logits


class ForegroundDice(MulticlassF1Score):
    """The mean Dice coefficient of the classes but the first, over all pixels together.

    Classes that neither mask nor prediction has do not count.

    Args:
        num_classes: K.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes, average="none", ignore_index=IGNORED)

    def compute(self) -> Tensor:
        there = (self.tp + self.fp + self.fn)[1:] > 0  # type: ignore[operator]
        scores = super().compute()[1:]
        return scores[there].mean() if there.any() else torch.tensor(torch.nan)


class BoundaryF1(Metric):
    """Agreement of the borders between classes, within a tolerance (Csurka et al. 2013).

    Harmonic mean of the share of predicted border pixels that lie near a true one, and the
    reverse, over all images.

    Args:
        tolerance: in pixels, along rows and columns.
    """

    hits: Tensor
    counts: Tensor

    def __init__(self, tolerance: int = 2) -> None:
        super().__init__()
        self.tolerance = tolerance
        for name in ("hits", "counts"):
            self.add_state(name, torch.zeros(2, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """preds, target: classes (B, H, W); negative ones of the target do not count."""
        valid = target >= 0
        edges = [_borders(torch.where(valid, one, target), valid) for one in (preds, target)]
        size = 2 * self.tolerance + 1
        for i, (own, other) in enumerate((edges, edges[::-1])):
            near = F.max_pool2d(other[:, None].float(), size, 1, self.tolerance)[:, 0] > 0
            self.hits[i] += (own & near).sum()
            self.counts[i] += own.sum()

    def compute(self) -> Tensor:
        if self.counts.sum() == 0:
            return torch.tensor(1.0)  # no borders, and none predicted
        precision, recall = (self.hits / self.counts.clamp(min=1)).unbind()
        both = precision + recall
        return (2 * precision * recall / both.clamp(min=1e-12)).float()


def _borders(classes: Tensor, valid: Tensor) -> Tensor:
    """Returns where the next pixel below or to the right is of another class, bool (B, H, W)."""
    found = torch.zeros_like(valid)
    down = (classes[:, 1:] != classes[:, :-1]) & valid[:, 1:] & valid[:, :-1]
    right = (classes[:, :, 1:] != classes[:, :, :-1]) & valid[:, :, 1:] & valid[:, :, :-1]
    found[:, :-1] |= down
    found[:, :, :-1] |= right
    return found


def dice_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Returns one minus the soft Dice coefficient, the mean over the classes that the batch has
    (Milletari et al. 2016, arXiv 1606.04797).

    Args:
        logits: (B, K, H, W).
        target: classes (B, H, W); negative ones do not count.
    """
    valid = target >= 0
    chances = torch.softmax(logits, 1) * valid[:, None]
    truth = F.one_hot(target.clamp(min=0), logits.shape[1]).permute(0, 3, 1, 2) * valid[:, None]
    both, each = (chances * truth).sum((0, 2, 3)), (chances + truth).sum((0, 2, 3))
    there = truth.sum((0, 2, 3)) > 0
    scores = (2 * both / each.clamp(min=1e-6))[there]
    return 1 - scores.mean() if len(scores) else logits.sum() * 0


class Segmentation(BaseTask):
    """Segmentation of images; classes, values of masks and preprocessing travel in the checkpoint.

    Args:
        encoder: one of ``longseq.vision.list_models()``, whose maps are joined upwards.
        num_classes: classes of pixels, the background among them.
        in_chans: channels of the images.
        decoder: "conv", "scan" for state-space blocks as in VM-UNet, or "own" for MHS-VM's.
        encoder_kwargs: further hyper-parameters of the encoder.
        pretrained: published weights of the encoder to start from.
        dice_weight: of the Dice loss, which is added to the cross-entropy.
        class_weights: of the classes in the cross-entropy; None for equal ones.
        recompute: whether the encoder's blocks keep only their input, see ``ImageClassifier``.
        **recipe: optimiser, schedule, loss and further metrics, see ``BaseTask``.
    """

    unit = "tiles"
    classes = Fact(list)
    values = Fact(list)
    preprocess = Fact(dict)

    defaults = {"lr": 4e-3, "weight_decay": 0.05, "warmup_steps": 50, "min_lr_ratio": 0.01}

    def __init__(
        self,
        encoder: str = "unet",
        num_classes: int = 2,
        in_chans: int = 3,
        decoder: DecoderKind = "conv",
        encoder_kwargs: dict[str, Any] | None = None,
        pretrained: str | None = None,
        dice_weight: float = 1.0,
        class_weights: Sequence[float] | None = None,
        recompute: bool = False,
        **recipe: Any,
    ) -> None:
        super().__init__(**recipe)
        if dice_weight < 0:
            raise ConfigError(f"dice_weight must be at least 0, got {dice_weight}")
        if class_weights is not None and (
            len(class_weights) != num_classes or min(class_weights) < 0
        ):
            raise ConfigError(
                f"class_weights must be {num_classes} numbers of at least 0, one for each class, "
                f"got {list(class_weights)}"
            )
        self.model = create_segmenter(
            encoder, num_classes, decoder, **{"in_chans": in_chans, **(encoder_kwargs or {})}
        )
        if recompute:
            recompute_blocks(self.model.published)
        self.num_classes, self.in_chans, self.start_from = num_classes, in_chans, pretrained
        self.dice_weight = dice_weight
        weights = None if class_weights is None else torch.tensor(list(class_weights))
        self.register_buffer("weights", weights, persistent=False)

    def make_metrics(self) -> Mapping[str, Metric]:
        """Returns Dice of the foreground, mean IoU of all classes, and agreement of borders."""
        classes = int(self.hparams["num_classes"])
        return {
            "dice": ForegroundDice(classes),
            "iou": MulticlassJaccardIndex(classes, average="macro", ignore_index=IGNORED),
            "boundary_f1": BoundaryF1(),
        }

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits (B, K, H, W) of normalised images (B, C, H, W)."""
        return self.model(images)

    def _loss(self, logits: Tensor, target: Tensor) -> Tensor:
        weights = self.weights
        assert weights is None or isinstance(weights, Tensor)
        entropy = F.cross_entropy(logits, target, weights, ignore_index=IGNORED, reduction="sum")
        valid = target[target >= 0]
        total = torch.as_tensor(len(valid)) if weights is None else weights[valid].sum()
        loss = entropy / total.clamp(min=1)
        return loss + self.dice_weight * dice_loss(logits, target) if self.dice_weight else loss

    def compute(self, batch: Mapping[str, Tensor]) -> dict[str, Any]:
        """Returns the loss, and what the metrics need: a whole image in evaluation."""
        images, target = batch["image"], batch["target"]
        tile = int(self.preprocess.get("tile", max(images.shape[2:])))
        if self.training or max(images.shape[2:]) <= tile:
            logits = self(images).float()
        else:  # a large image: by its tiles, as prediction does
            logits = torch.stack([whole_logits(self, image, tile) for image in images])
            logits = logits.to(images.device)
        loss, preds = self.criterion(logits, target, self._loss), logits.detach().argmax(1)
        return {
            "loss": loss,
            "count": len(images),
            "preds": preds,
            "target": target,
            "pair": (preds, target),
        }

    def check_data(self, data: Any) -> None:
        """See ``BaseTask``."""
        if not isinstance(data, SegmentationData):
            return
        values = self.facts.get("values", data.values)
        if len(values) != self.num_classes:
            raise ConfigError(
                f"model.num_classes is {self.num_classes}, but the masks of {data.source} have "
                f"{len(values)} classes"
            )
        if data.channels != self.in_chans:
            raise ConfigError(
                f"model.in_chans is {self.in_chans}, but data.channels is {data.channels}"
            )

    def check_facts(self, known: Mapping[str, Any], found: Mapping[str, Any], stage: str) -> None:
        """The masks' values must be among those of the training; pixels are read alike."""
        if not isinstance(self.data, SegmentationData) or not known:
            return
        if not set(found["values"]) <= set(known["values"]):
            raise DataError(
                f"has masks of the values {found.get('values')}, but the checkpoint was trained "
                f"on {known.get('values')}",
                path=self.data.source,
            )
        self.data.take(known["preprocess"], known["values"])

    def setup(self, stage: str) -> None:
        """Also loads the encoder's weights to start from."""
        super().setup(stage)
        if stage == "fit" and self.start_from is not None:
            load_published(self.model.published, self.start_from)
