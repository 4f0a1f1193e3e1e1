"""Maps of large images from overlapping tiles, band by band, in memory of one row of tiles."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from longseq.core.checks import check_positive
from longseq.core.errors import ConfigError

Window = Callable[[int, int], Tensor]
"""Rows from … to … of an image, (C, rows, W)."""


def starts(side: int, tile: int, overlap: int) -> list[int]:
    """Returns where tiles begin along a side; the last one ends with it.

    Args:
        side: in pixels.
        tile: side of a tile, at most ``side``.
        overlap: of neighbours, at least.
    """
    step = tile - overlap
    return [*range(0, side - tile, step), side - tile]


def taper(length: int, overlap: int) -> Tensor:
    """Returns weights of a tile along a side, float32: 1 in its middle, falling to its edges.

    Args:
        length: of the tile.
        overlap: pixels over which they fall.
    """
    at = torch.arange(length, dtype=torch.float32)
    edge = torch.minimum(at, length - 1 - at) + 1
    return (edge / (overlap + 1)).clamp(max=1.0)


def probabilities(logits: Tensor) -> Tensor:
    """Returns class probabilities of logits (B, K, h, w)."""
    return torch.softmax(logits, 1)


def tiled(
    model: Callable[[Tensor], Tensor],
    window: Window,
    height: int,
    width: int,
    tile: int,
    overlap: int | None = None,
    batch_size: int = 4,
    finish: Callable[[Tensor], Tensor] = probabilities,
    scale: int = 1,
) -> Iterator[tuple[int, Tensor]]:
    """Yields the mean of the tiles' results, of a classifier of pixels their class probabilities,
    from top to bottom.

    An image that is no larger than a tile goes through the model as it is.

    Args:
        model: (B, C, h, w) to logits (B, K, s h, s w).
        window: returns rows of the image.
        height: of the image.
        width: of the image.
        tile: side of a tile in pixels.
        overlap: of neighbouring tiles; a quarter of a tile if None.
        batch_size: tiles at once.
        finish: of what the model returns, before the mean is taken.
        scale: s, by which the model enlarges.

    Yields:
        The first row of a band of the result, and the band (K, rows, s W), float32.

    Raises:
        ConfigError: unless the overlap is smaller than a tile.
    """
    check_positive("tile", tile)
    check_positive("batch_size", batch_size)
    overlap = tile // 4 if overlap is None else overlap
    if not 0 <= overlap < tile:
        raise ConfigError(f"overlap must lie between 0 and tile - 1 ({tile - 1}), got {overlap}")
    high, wide = min(tile, height), min(tile, width)
    tops = starts(height, high, min(overlap, high - 1))
    lefts = starts(width, wide, min(overlap, wide - 1))
    weight = taper(scale * high, scale * overlap)[:, None] * taper(scale * wide, scale * overlap)
    total = norm = torch.zeros(0)
    for number, top in enumerate(tops):
        rows = window(top, top + high)
        fresh_norm = torch.zeros(scale * high, scale * width)
        fresh: Tensor | None = None
        for first in range(0, len(lefts), batch_size):
            chosen = lefts[first : first + batch_size]
            parts = torch.stack([rows[:, :, left : left + wide] for left in chosen])
            with torch.inference_mode():
                found = finish(model(parts).float()).cpu()
            if fresh is None:
                fresh = torch.zeros(found.shape[1], *fresh_norm.shape)
            for left, one in zip(chosen, found):
                columns = slice(scale * left, scale * (left + wide))
                fresh[:, :, columns] += one * weight
                fresh_norm[:, columns] += weight
        assert fresh is not None
        if number:  # what the rows of tiles above have said of these rows
            kept = total.shape[1]
            fresh[:, :kept] += total
            fresh_norm[:kept] += norm
        done = scale * ((tops[number + 1] if number + 1 < len(tops) else height) - top)
        yield scale * top, fresh[:, :done] / fresh_norm[:done]
        total, norm = fresh[:, done:].clone(), fresh_norm[done:].clone()


def whole_logits(
    model: Callable[[Tensor], Tensor], image: Tensor, tile: int, overlap: int | None = None
) -> Tensor:
    """Returns the logarithms of the class probabilities of a whole image, (K, H, W).

    Args:
        model: see ``tiled``.
        image: normalised, (C, H, W).
        tile: side of a tile in pixels.
        overlap: see ``tiled``.
    """
    height, width = image.shape[1:]
    bands = tiled(model, lambda a, b: image[:, a:b], height, width, tile, overlap)
    return torch.cat([band for _, band in bands], 1).clamp(min=1e-12).log()
