"""Random tiles of images with masks as a function of the step, and whole images for evaluation."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from longseq.core.errors import DataError
from longseq.vision.data.batches import Batch
from longseq.vision.data.masks import IGNORED, MaskedImages, Values
from longseq.vision.data.parts import Part
from longseq.vision.data.pixels import unit
from longseq.vision.data.transforms import Normalise

Turns = Literal["none", "flip", "flip_turn"]
_KEPT_BYTES = 1 << 30


class Pairs:
    """Images of a part with their masks as classes; the last ones read stay in memory.

    Args:
        part: of ``MaskedImages``.
        values: of the masks.
    """

    def __init__(self, part: Part, values: Values) -> None:
        self.part, self.values = part, values
        self._kept: OrderedDict[int, tuple[Tensor, Tensor]] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self.part)

    def __getstate__(self) -> dict[str, Any]:  # a worker process keeps its own
        return {**self.__dict__, "_kept": OrderedDict(), "_bytes": 0}

    def pair(self, index: int) -> tuple[Tensor, Tensor]:
        """Returns an image (C, H, W), bytes or float32, and its classes (H, W), int16.

        Raises:
            DataError: if one of them cannot be read, or their sizes differ.
        """
        if index in self._kept:
            self._kept.move_to_end(index)
            return self._kept[index]
        images = self.part.images
        assert isinstance(images, MaskedImages)
        number = int(self.part.indices[index])
        image, where = images.image(number), images.mask_where(number)
        classes = self.values.classes(images.mask(number), where)
        if classes.shape != image.shape[1:]:
            (h, w), (height, width) = classes.shape, image.shape[1:]
            raise where.error(
                f"has {w} × {h} pixels, its image {images.name(number)} has {width} × {height}"
            )
        found = image, torch.from_numpy(classes.astype(np.int16))
        self._kept[index] = found
        self._bytes += _size(found)
        while self._bytes > _KEPT_BYTES and len(self._kept) > 1:
            self._bytes -= _size(self._kept.popitem(last=False)[1])
        return found


def _size(pair: tuple[Tensor, Tensor]) -> int:
    return sum(one.numel() * one.element_size() for one in pair)


class TileBatches:
    """Batch n of random tiles as a pure function of n.

    Args:
        pairs: of the training part.
        batch_size: tiles per batch and process.
        tile: side in pixels; what lies outside an image mirrors it and does not count.
        normalise: of a batch.
        augment: "none", "flip", or "flip_turn" for all eight positions of a square.
        foreground: share of the tiles that are laid over a pixel of a class other than 0, the
            classes of an image equally often.
        seed: of everything random.
        rank: of this process.
        world: number of processes.
    """

    def __init__(
        self,
        pairs: Pairs,
        batch_size: int,
        tile: int,
        normalise: Normalise,
        augment: Turns = "flip_turn",
        foreground: float = 0.33,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.pairs, self.batch_size, self.tile, self.normalise = pairs, batch_size, tile, normalise
        self.augment, self.foreground = augment, foreground
        self.seed, self.rank, self.world = seed, rank, world
        self.per_epoch = max(1, len(pairs) // (batch_size * world))

    def __getitem__(self, step: int) -> Batch:
        random = np.random.default_rng((self.seed, step, self.rank))
        tiles = [self._tile(random) for _ in range(self.batch_size)]
        images = torch.stack([unit(image) for image, _ in tiles])
        target = torch.stack([classes for _, classes in tiles])
        return {"image": self.normalise(images), "target": target}

    def _tile(self, random: np.random.Generator) -> tuple[Tensor, Tensor]:
        image, classes = self.pairs.pair(int(random.integers(len(self.pairs))))
        height, width = classes.shape
        span = [max(height - self.tile, 0), max(width - self.tile, 0)]
        corner = [int(random.integers(one + 1)) for one in span]
        if random.random() < self.foreground:
            there = np.unique(classes.numpy())
            there = there[there > 0]
            if len(there):
                chosen = np.argwhere(classes.numpy() == random.choice(there))
                middle = chosen[random.integers(len(chosen))] - random.integers(self.tile, size=2)
                corner = [int(np.clip(m, 0, most)) for m, most in zip(middle, span)]
        rows, columns = (slice(at, at + self.tile) for at in corner)
        image, classes = padded(image[:, rows, columns], classes[rows, columns], self.tile)
        if self.augment != "none" and random.random() < 0.5:
            image, classes = image.flip(-1), classes.flip(-1)
        if self.augment == "flip_turn":
            turns = int(random.integers(4))
            image, classes = (torch.rot90(one, turns, (-2, -1)) for one in (image, classes))
        return image, classes.long()


def padded(image: Tensor, classes: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Returns an image and its classes with sides of at least ``size``: mirrored, and not counted.

    Args:
        image: (C, H, W).
        classes: (H, W).
        size: in pixels.
    """
    height, width = classes.shape
    more = max(size - height, 0), max(size - width, 0)
    if not any(more):
        return image, classes
    rows, columns = (
        np.pad(np.arange(side), (0, extra), "symmetric")
        for side, extra in zip((height, width), more)
    )
    grown = torch.full((height + more[0], width + more[1]), IGNORED, dtype=classes.dtype)
    grown[:height, :width] = classes
    return image[:, rows][:, :, columns], grown


class WholeImages(Dataset[Batch | None]):
    """Images one by one with their classes, as they are tested; None for one that cannot be read.

    Args:
        pairs: of a part.
        normalise: of an image.
    """

    def __init__(self, pairs: Pairs, normalise: Normalise) -> None:
        self.pairs, self.normalise = pairs, normalise

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Batch | None:
        try:
            image, classes = self.pairs.pair(index)
        except DataError as error:
            self.pairs.part.note(index, error)
            return None
        return {"image": self.normalise(image), "target": classes.long()}
