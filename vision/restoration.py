"""The training task of restoration: denoising and super-resolution."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure

from longseq.core.errors import ConfigError
from longseq.core.training.facts import Fact
from longseq.core.training.task import BaseTask
from longseq.vision.data.restoration import RestorationData
from longseq.vision.models.serpent import Serpent
from longseq.vision.tiles import tiled


class Restoration(BaseTask):
    """Restoration of images; how pixels are read travels in the checkpoint.

    Args:
        in_chans: channels of the images.
        scale: by which images are enlarged, 1 to restore at their size.
        model_kwargs: further hyper-parameters of ``models.serpent.Serpent``.
        **recipe: optimiser, schedule, loss (L1 if none) and further metrics, see ``BaseTask``.
    """

    unit = "tiles"
    preprocess = Fact(dict)

    defaults = {"lr": 2e-3, "weight_decay": 0.0, "warmup_steps": 50, "min_lr_ratio": 0.01}

    def __init__(
        self,
        in_chans: int = 3,
        scale: int = 1,
        model_kwargs: dict[str, Any] | None = None,
        **recipe: Any,
    ) -> None:
        super().__init__(**recipe)
        try:
            self.model = Serpent(in_chans, scale, **(model_kwargs or {}))
        except TypeError as error:
            raise ConfigError(f"model_kwargs: {error}") from error
        self.in_chans, self.scale = in_chans, scale

    def make_metrics(self) -> Mapping[str, Metric]:
        """Returns the mean peak signal-to-noise ratio in dB and structural similarity of images."""
        return {
            "psnr": PeakSignalNoiseRatio(data_range=1.0, dim=(1, 2, 3)),
            "ssim": StructuralSimilarityIndexMeasure(data_range=1.0),
        }

    def forward(self, images: Tensor) -> Tensor:
        """Returns restored images (B, C, s h, s w) of images (B, C, h, w) with values of 0 to 1."""
        return self.model(images)

    def whole(self, image: Tensor, tile: int | None = None) -> Tensor:
        """Returns one image (C, h, w) restored by tiles, float32 (C, s h, s w).

        Args:
            image: with values of 0 to 1.
            tile: side in pixels; see ``restore.tile_side`` if None.
        """
        bands = tiled(
            self,
            lambda first, last: image[:, first:last],
            *image.shape[1:],
            self.tile_side(tile),
            finish=_same,
            scale=self.scale,
        )
        return torch.cat([band for _, band in bands], 1)

    def tile_side(self, tile: int | None = None) -> int:
        """Returns the side of the tiles of a large image: four times that of the training, so that
        scans see far and edges are few, unless another is given.

        Args:
            tile: in pixels.
        """
        return tile or 4 * max(int(self.preprocess.get("tile", 64)) // self.scale, 16)

    def compute(self, batch: Mapping[str, Tensor]) -> dict[str, Any]:
        """Returns the loss, and what the metrics need: a whole image in evaluation."""
        images, target = batch["image"], batch["target"]
        if self.training or max(images.shape[2:]) <= self.tile_side():
            restored = self(images).float()
        else:
            restored = torch.stack([self.whole(image) for image in images]).to(images.device)
        loss = self.criterion(restored, target, F.l1_loss)
        preds = restored.detach().clamp(0, 1)
        pair = preds, target
        return {"loss": loss, "count": len(images), "preds": preds, "target": target, "pair": pair}

    def check_data(self, data: Any) -> None:
        """See ``BaseTask``."""
        if not isinstance(data, RestorationData):
            return
        for name, own, other in (
            ("in_chans", self.in_chans, data.channels),
            ("scale", self.scale, data.scale),
        ):
            if own != other:
                theirs = "channels" if name == "in_chans" else name
                raise ConfigError(f"model.{name} is {own}, but data.{theirs} is {other}")

    def check_facts(self, known: Mapping[str, Any], found: Mapping[str, Any], stage: str) -> None:
        """Pixels are read as in training."""
        if isinstance(self.data, RestorationData) and known.get("preprocess"):
            self.data.take(known["preprocess"])


def _same(found: Tensor) -> Tensor:
    return found
