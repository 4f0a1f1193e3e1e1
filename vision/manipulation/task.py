"""The training task of manipulations: which pixels of an image were replaced."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torchmetrics import Metric
from torchmetrics.classification import BinaryJaccardIndex

from longseq.core.errors import ConfigError
from longseq.core.results import Score
from longseq.vision.data.masks import IGNORED
from longseq.vision.data.segmentation import SegmentationData
from longseq.vision.manipulation.baselines import manipulation_baselines
from longseq.vision.models.unet import DecoderKind
from longseq.vision.segmentation import Segmentation


class ManipulationLocaliser(Segmentation):
    """A segmentation of two classes, by a U-Net that also sees the image through high-pass filters.

    Args:
        encoder: see ``Segmentation``.
        num_classes: 2: as it was, and replaced.
        in_chans: channels of the images.
        decoder: see ``Segmentation``.
        encoder_kwargs: further hyper-parameters of the encoder; ``high_pass`` of the U-Net gives it
            the residuals of ``models/high_pass.py`` beside the image.
        pretrained: see ``Segmentation``.
        dice_weight: likewise.
        class_weights: likewise.
        recompute: likewise.
        **recipe: optimiser, schedule, loss and further metrics, see ``BaseTask``.
    """

    headline = "dice", False
    """The metric that ``longseq vision score`` compares: the F1 of replaced pixels."""
    defaults = Segmentation.defaults

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
        if num_classes != 2:
            raise ConfigError(f"num_classes must be 2, as it was and replaced, got {num_classes}")
        super().__init__(
            encoder,
            num_classes,
            in_chans,
            decoder,
            encoder_kwargs,
            pretrained,
            dice_weight,
            class_weights,
            recompute,
            **recipe,
        )
        self.residuals = bool((encoder_kwargs or {}).get("high_pass"))

    def make_metrics(self) -> Mapping[str, Metric]:
        """Returns those of ``Segmentation``, and the IoU of replaced pixels."""
        return {
            **super().make_metrics(),
            "replaced_iou": BinaryJaccardIndex(ignore_index=IGNORED),
        }

    @property
    def shown(self) -> tuple[str, Literal["model", "baseline"]]:
        """Its name in a table, and whether it is a baseline there."""
        name = str(self.hparams["encoder"])
        return (f"{name} with residuals", "model") if self.residuals else (name, "baseline")

    def baselines(self, data: SegmentationData) -> list[Score]:
        """Returns the F1 of rules without training, see ``manipulation_baselines``.

        Args:
            data: of the checkpoint.
        """
        return manipulation_baselines(data)
