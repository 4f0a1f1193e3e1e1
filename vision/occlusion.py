"""Occlusion maps: which part of an image the predicted class rests on (Zeiler and Fergus 2014,
arXiv 1311.2901)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from longseq.core.checks import check_positive
from longseq.core.errors import ConfigError
from longseq.core.figures import new_figure, save_png
from longseq.vision.tiles import starts


def occlusion_map(
    model: Callable[[Tensor], Tensor],
    image: Tensor,
    target: int | None = None,
    patch: int | None = None,
    stride: int | None = None,
    batch_size: int = 32,
) -> Tensor:
    """Returns by how much a class's probability falls where a square is covered, float32 (H, W).

    A pixel has the mean of the squares that cover it. The covered square has the mean colour of the
    training images, 0 after the normalisation.

    Args:
        model: (B, C, H, W) to logits, in evaluation mode.
        image: normalised, (C, H, W).
        target: the class; that of greatest probability if None.
        patch: side of the square in pixels; an eighth of the shorter side if None.
        stride: of the square; half of its side if None.
        batch_size: covered images at once.

    Raises:
        ConfigError: if the square is larger than the image, or steps over pixels.
    """
    height, width = image.shape[1:]
    patch = max(1, min(height, width) // 8) if patch is None else check_positive("patch", patch)
    stride = max(1, patch // 2) if stride is None else check_positive("stride", stride)
    if patch > min(height, width) or stride > patch:
        raise ConfigError(
            f"stride <= patch <= sides of the image is needed, got stride {stride}, patch {patch} "
            f"and {width} x {height} pixels"
        )
    tops, lefts = (starts(side, patch, patch - stride) for side in (height, width))
    places = [(top, left) for top in tops for left in lefts]
    total, count = torch.zeros(height, width), torch.zeros(height, width)
    with torch.inference_mode():
        plain = torch.softmax(model(image[None])[0].float(), 0)
        target = int(plain.argmax()) if target is None else target
        for first in range(0, len(places), batch_size):
            chosen = places[first : first + batch_size]
            covered = image.repeat(len(chosen), 1, 1, 1)
            for one, (top, left) in zip(covered, chosen):
                one[:, top : top + patch, left : left + patch] = 0
            found = torch.softmax(model(covered).float(), 1)[:, target]
            for fall, (top, left) in zip((plain[target] - found).cpu(), chosen):
                total[top : top + patch, left : left + patch] += fall
                count[top : top + patch, left : left + patch] += 1
    return total / count


def draw_occlusion(
    pictures: Sequence[np.ndarray], maps: Sequence[Tensor], titles: Sequence[str], path: str | Path
) -> None:
    """Draws images beside their maps, as PNG: red where the class rests, blue what speaks against.

    Args:
        pictures: (H, W) or (H, W, 3), in [0, 1].
        maps: of ``occlusion_map``.
        titles: one each.
        path: the file.
    """
    figure = new_figure(4.6, 2.3 * len(maps))
    rows = figure.subplots(len(maps), 2, squeeze=False)
    for (left, right), picture, found, title in zip(rows, pictures, maps, titles):
        most = max(float(found.abs().max()), 1e-6)
        left.imshow(picture, cmap="gray", vmin=0, vmax=1)
        shown = right.imshow(found.numpy(), cmap="RdBu_r", vmin=-most, vmax=most)
        figure.colorbar(shown, ax=right)
        left.set_title(title, fontsize=7)
        for axes in (left, right):
            axes.axis("off")
    save_png(figure, path)
