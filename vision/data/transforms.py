"""Transforms of images: what may be kept once made, what is random, and the one way to evaluate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import v2

from longseq.core.checks import check_choice, check_positive
from longseq.core.errors import ConfigError
from longseq.vision.data.pixels import unit

Augment = Literal["none", "flip", "shift", "shift_flip", "crop_flip", "trivial", "randaugment"]
Interpolation = Literal["bilinear", "bicubic", "nearest"]
_MODES = {
    "bilinear": v2.InterpolationMode.BILINEAR,
    "bicubic": v2.InterpolationMode.BICUBIC,
    "nearest": v2.InterpolationMode.NEAREST,
}


@dataclass(frozen=True)
class Training:
    """The training transform in three steps.

    Args:
        fixed: of one image, without chance, so that its result may be kept; None for none.
        single: of one image, random; None for none.
        batch: of a batch (B, C, H, W), random; None for none.
    """

    fixed: Callable[[Tensor], Tensor] | None
    single: Callable[[Tensor], Tensor] | None = None
    batch: Callable[[Tensor], Tensor] | None = None


class Normalise:
    """(x - mean) / std of every channel, of bytes or of float32 whose range is 0 to 1.

    Args:
        mean: of every channel in [0, 1], or one for all.
        std: likewise.
        channels: of the images, to check against; None for any.

    Raises:
        ConfigError: unless the deviations are positive, and the numbers fit the channels.
    """

    def __init__(
        self, mean: Sequence[float], std: Sequence[float], channels: int | None = None
    ) -> None:
        if not mean or not std or min(std) <= 0:
            raise ConfigError(
                f"mean and std need a value each, std positive; got {list(mean)} and {list(std)}"
            )
        for name, values in (("mean", mean), ("std", std)):
            if channels is not None and len(values) not in (1, channels):
                raise ConfigError(
                    f"data.{name} has {len(values)} values, data.channels is {channels}: give one "
                    f"for each channel, one for all, or null to measure it on the training images"
                )
        self.mean, self.std = (torch.tensor(list(v)).view(-1, 1, 1) for v in (mean, std))

    def __call__(self, image: Tensor) -> Tensor:
        """image: (…, C, H, W)."""
        return (unit(image) - self.mean) / self.std


def resize(size: int, crop_ratio: float = 1.0, interpolation: Interpolation = "bilinear") -> Any:
    """Returns the transform of one image to a square: its shorter side resized, its centre cut out.

    Args:
        size: side in pixels.
        crop_ratio: side of the cut over the shorter side, 0.875 for ImageNet's custom.
        interpolation: between pixels; antialiased where the image becomes smaller.
    """
    check_positive("img_size - 1", size - 1)  # torch cannot resize to a single pixel
    check_choice("interpolation", interpolation, Interpolation)
    if not 0 < crop_ratio <= 1:
        raise ConfigError(f"crop_ratio must lie in (0, 1], got {crop_ratio}")
    mode = _MODES[interpolation]
    shorter = round(size / crop_ratio)
    steps = v2.Compose(
        [v2.Resize(shorter, interpolation=mode, antialias=True), v2.CenterCrop(size)]
    )
    return _Square(steps, size) if shorter == size else steps


@dataclass(frozen=True)
class _Square:
    """A transform to a square that leaves images of its size alone: it would not change them, but
    for small ones its calls cost more than reading them."""

    steps: Callable[[Tensor], Tensor]
    size: int

    def __call__(self, image: Tensor) -> Tensor:
        return image if image.shape[-2:] == (self.size, self.size) else self.steps(image)


def shift(images: Tensor, most: int) -> Tensor:
    """Returns the images of a batch each moved by up to ``most`` pixels, black moving in.

    Args:
        images: (B, C, H, W).
        most: pixels in each direction.
    """
    batch, _, height, width = images.shape
    padded = F.pad(images, (most,) * 4)
    down, right = torch.randint(0, 2 * most + 1, (2, batch, 1))
    rows, columns = down + torch.arange(height), right + torch.arange(width)
    index = torch.arange(batch)[:, None, None]
    found = padded.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None, :]]
    return found.permute(0, 3, 1, 2).contiguous()


def flip(images: Tensor) -> Tensor:
    """Returns a batch (B, C, H, W) with half of its images mirrored, at random."""
    chosen = torch.rand(len(images)) < 0.5
    return torch.where(chosen[:, None, None, None], images.flip(3), images)


@dataclass(frozen=True)
class ShiftFlip:
    """Moves and mirrors every image of a batch by chance.

    Args:
        pixels: by which they are moved at most; 0 for not at all.
        mirrored: whether half of them are mirrored.
    """

    pixels: int
    mirrored: bool

    def __call__(self, images: Tensor) -> Tensor:
        """Returns images (B, C, H, W) of the same shape."""
        if self.pixels:
            images = shift(images, self.pixels)
        return flip(images) if self.mirrored else images


def training_transform(
    size: int,
    augment: Augment = "shift_flip",
    erasing: float = 0.0,
    channels: int = 3,
    interpolation: Interpolation = "bilinear",
) -> Training:
    """Returns the training transform, up to the normalisation.

    Args:
        size: side in pixels.
        augment: "none"; "flip", half of them mirrored, which suits short trainings; "shift" by up
            to an eighth of the side; "shift_flip", both; "crop_flip", a random resized crop, half
            of them mirrored; "trivial", crop_flip and TrivialAugment (arXiv 2103.10158);
            "randaugment", crop_flip and RandAugment (arXiv 1909.13719).
        erasing: probability of erasing a random rectangle (arXiv 1708.04896).
        channels: of the images; TrivialAugment and RandAugment are for grey and colour.
        interpolation: between pixels.

    Raises:
        ConfigError: for an unknown augmentation, or one that the channels do not allow.
    """
    check_positive("img_size", size)
    check_choice("augment", augment, Augment)
    if not 0 <= erasing <= 1:
        raise ConfigError(f"erasing must lie in [0, 1], got {erasing}")
    if augment in ("trivial", "randaugment") and channels not in (1, 3):
        raise ConfigError(f"augment {augment} is for 1 or 3 channels, data.channels is {channels}")
    mode = _MODES[check_choice("interpolation", interpolation, Interpolation)]
    erase = v2.RandomErasing(p=erasing) if erasing else None
    if augment in ("crop_flip", "trivial", "randaugment"):
        crop = v2.RandomResizedCrop(size, scale=(0.3, 1.0), interpolation=mode, antialias=True)
        steps: list[Any] = [crop, v2.RandomHorizontalFlip()]
        if augment == "trivial":
            steps.append(v2.TrivialAugmentWide())
        if augment == "randaugment":
            steps.append(v2.RandAugment())
        return Training(None, v2.Compose(steps if erase is None else [*steps, erase]))

    square = resize(size, 1.0, interpolation)
    moved = ShiftFlip(max(1, size // 8) if "shift" in augment else 0, "flip" in augment)
    return Training(square, erase, None if augment == "none" else moved)


def mixing_transform(mixup: float, cutmix: float, num_classes: int) -> Any:
    """Returns a transform of a batch and its labels into mixed images and soft labels; None for
    neither.

    Args:
        mixup: parameter α of mixup (arXiv 1710.09412), 0 for none.
        cutmix: parameter α of CutMix (arXiv 1905.04899), 0 for none; with both, one is drawn a
            batch.
        num_classes: number of classes.
    """
    if mixup < 0 or cutmix < 0:
        raise ConfigError(f"mixup and cutmix must be at least 0, got {mixup} and {cutmix}")
    found: list[Any] = []
    if mixup:
        found.append(v2.MixUp(alpha=mixup, num_classes=num_classes))
    if cutmix:
        found.append(v2.CutMix(alpha=cutmix, num_classes=num_classes))
    return v2.RandomChoice(found) if found else None


def apply_mixing(mixing: Any, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the batch mixed, or as it is where there is no mixing.

    Args:
        mixing: from ``mixing_transform``.
        images: (B, C, H, W).
        labels: (B,) integers.
    """
    return (images, labels) if mixing is None or len(images) < 2 else mixing(images, labels)
