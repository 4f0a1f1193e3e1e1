"""Transforms of images (torchvision v2): training augmentation, and the one way to evaluate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torchvision.transforms import v2

from longseq.core.checks import check_positive
from longseq.core.errors import ConfigError

Augment = Literal["none", "flip", "shift", "shift_flip", "crop_flip", "trivial"]


def normalise(mean: Sequence[float], std: Sequence[float]) -> list[Any]:
    """Returns the last transforms: bytes to float32 in [0, 1], then (x - mean) / std.

    Args:
        mean: of every channel, or one for all.
        std: likewise.

    Raises:
        ConfigError: unless the deviations are positive.
    """
    if not mean or not std or min(std) <= 0:
        raise ConfigError(
            f"mean and std need a value each, std positive; got {list(mean)} and {list(std)}"
        )
    return [v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(mean), list(std))]


def evaluation_transform(
    size: int, mean: Sequence[float], std: Sequence[float], crop_ratio: float = 1.0
) -> v2.Transform:
    """Returns what validation, test and prediction do: resize the shorter side, centre crop,
    normalise.

    Args:
        size: side in pixels.
        mean: of every channel.
        std: of every channel.
        crop_ratio: side of the crop over the shorter side, 0.875 for ImageNet's custom.
    """
    check_positive("img_size - 1", size - 1)  # torch cannot resize to a single pixel
    if not 0 < crop_ratio <= 1:
        raise ConfigError(f"crop_ratio must lie in (0, 1], got {crop_ratio}")
    shorter = round(size / crop_ratio)
    return v2.Compose(
        [v2.Resize(shorter, antialias=True), v2.CenterCrop(size), *normalise(mean, std)]
    )


def training_transform(
    size: int, mean: Sequence[float], std: Sequence[float], augment: Augment = "shift_flip"
) -> v2.Transform:
    """Returns the training transform.

    Args:
        size: side in pixels.
        mean: of every channel.
        std: of every channel.
        augment: "none"; "flip", half of them mirrored, which suits short trainings; "shift" by up
            to an eighth of the side; "shift_flip", both; "crop_flip", a random resized crop, half
            of them mirrored; "trivial", crop_flip and TrivialAugment (arXiv 2103.10158).

    Raises:
        ConfigError: for an unknown augmentation.
    """
    check_positive("img_size", size)
    resize = [v2.Resize(size, antialias=True), v2.CenterCrop(size)]
    shift = [v2.RandomCrop(size, padding=max(1, size // 8))]
    crop = [v2.RandomResizedCrop(size, scale=(0.3, 1.0), antialias=True), v2.RandomHorizontalFlip()]
    steps: dict[str, list[Any]] = {
        "none": resize,
        "flip": [*resize, v2.RandomHorizontalFlip()],
        "shift": resize + shift,
        "shift_flip": [*resize, *shift, v2.RandomHorizontalFlip()],
        "crop_flip": crop,
        "trivial": [*crop, v2.TrivialAugmentWide()],
    }
    if augment not in steps:
        raise ConfigError(f"augment must be one of {', '.join(steps)}, got {augment!r}")
    return v2.Compose([*steps[augment], *normalise(mean, std)])


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
