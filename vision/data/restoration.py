"""The data module of restoration: clean images, made worse by noise and a smaller size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from longseq.core.checks import check_choice, check_positive
from longseq.core.errors import ConfigError, DataError
from longseq.core.training.hyper import BaseData
from longseq.core.training.loader import step_dataloader
from longseq.vision.data.batches import Batch, EvaluationLoader, together
from longseq.vision.data.images import FileImages, list_images
from longseq.vision.data.parts import Part, checked_reading, learn_pixels, readable
from longseq.vision.data.pixels import MAX_PIXELS, Reading, unit
from longseq.vision.data.sources import by_part, split_indices
from longseq.vision.data.tile_batches import Turns

LEAST_SIDE = 11
"""Sides of a smaller image have no structural similarity (a window of 11 pixels)."""


def open_clean(source: str | Path, reading: Reading) -> dict[str, FileImages]:
    """Returns the parts of a set of images: "train", and perhaps "valid" and "test".

    Args:
        source: folder or zip, searched to any depth; a part is what lies in a folder of its name.
        reading: how images become channels.

    Raises:
        DataError: if there are none for training.
    """
    root = Path(source)
    if not root.exists():
        raise DataError("no such folder or file", path=root, hint="give a folder or a zip")
    if root.is_file() and root.suffix.lower() != ".zip":
        raise DataError("is neither a folder nor a zip", path=root)
    found = by_part(root, list_images(root))
    if "train" not in found:
        raise DataError("holds no images for training", path=root)
    return {
        part: FileImages(root, names, [0] * len(names), [], reading)
        for part, names in found.items()
    }


def degrade(clean: Tensor, scale: int, sigma: float, random: np.random.Generator) -> Tensor:
    """Returns an image made smaller, bicubically with antialiasing, and noisy.

    Values are neither cut off nor rounded, as is the custom for such tests.

    Args:
        clean: (C, H, W) with values of 0 to 1, sides multiples of ``scale``.
        scale: by which it is made smaller.
        sigma: standard deviation of the white Gaussian noise, a share of the range.
        random: of the noise.
    """
    worse = clean
    if scale > 1:
        size = [side // scale for side in clean.shape[1:]]
        worse = F.interpolate(clean[None], size, mode="bicubic", antialias=True)[0]
    if sigma > 0:
        noise = random.standard_normal(tuple(worse.shape), dtype=np.float32)
        worse = worse + sigma * torch.from_numpy(noise)
    return worse


class RestorationData(BaseData):
    """Clean images in a folder or zip; what the model sees is made of them by the step's seed.

    Args:
        source: folder or zip, searched to any depth; ``train/``, ``valid/``, ``test/`` are parts.
        scale: by which images are made smaller, 1 for the noise alone.
        noise: standard deviation of white Gaussian noise as a share of the range (25/255 is 0.098),
            or its least and greatest value.
        tile: side in pixels of the clean tiles that training cuts, a multiple of ``scale``.
        channels: 1 for grey, 3 for colour, or the number of bands.
        batch_size: tiles per training batch.
        value_range: see ``ImageData``.
        bands: numbers of the stored bands to take, from 0.
        page: of a stack: its number from 0, or "channels".
        background: behind transparent pixels: 0 black, 1 white.
        truncated: whether to keep files that end early.
        max_pixels: larger images are refused in training.
        augment: "none", "flip" (left and right), or "flip_turn" for all eight positions.
        valid_fraction: share of the training images for validation where there is no such part.
        test_fraction: likewise for the test.
        seed: of the splits, the tiles and the noise.
        num_workers: processes that make batches.
    """

    fits = ("in_chans", "scale")

    def __init__(
        self,
        source: str,
        scale: int = 1,
        noise: float | Sequence[float] = 0.098,
        tile: int = 64,
        channels: int = 3,
        batch_size: int = 8,
        value_range: str | Sequence[float] = "auto",
        bands: Sequence[int] | None = None,
        page: int | str | None = None,
        background: float = 1.0,
        truncated: bool = False,
        max_pixels: int = MAX_PIXELS,
        augment: Turns = "flip_turn",
        valid_fraction: float = 0.15,
        test_fraction: float = 0.15,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        self.reading = checked_reading(
            (channels, bands, page, background, truncated, max_pixels), (value_range, None, None)
        )
        check_choice("augment", augment, Turns)
        bounds = [noise] * 2 if isinstance(noise, (int, float)) else list(noise)
        if len(bounds) != 2 or not 0 <= bounds[0] <= bounds[1]:
            raise ConfigError(f"noise must be a number of at least 0 or two rising, got {noise!r}")
        self.noise = float(bounds[0]), float(bounds[1])
        self.scale, self.tile = check_positive("scale", scale), check_positive("tile", tile)
        if scale == 1 and self.noise[1] == 0:
            raise ConfigError("noise is 0 and scale is 1: there is nothing to restore")
        if tile % scale or tile < LEAST_SIDE:
            raise ConfigError(
                f"tile must be a multiple of scale ({scale}) of at least {LEAST_SIDE}, got {tile}"
            )
        self.source, self.channels = source, channels
        self.batch_size, self.augment = check_positive("batch_size", batch_size), augment
        self.value_range = value_range
        self.fractions = valid_fraction, test_fraction
        self.seed, self.num_workers = seed, num_workers
        self._parts: dict[str, Part] | None = None
        self._known: Mapping[str, Any] | None = None

    @property
    def parts(self) -> dict[str, Part]:
        """The parts "train", "valid" and "test" of whole images; opened and split at first use."""
        if self._parts is None:
            found = open_clean(self.source, self.reading)
            train = readable(found["train"])
            fractions = [
                0.0 if part in found else share
                for part, share in zip(("valid", "test"), self.fractions)
            ]
            valid, test, rest = split_indices(np.zeros(len(train), int), fractions, self.seed)
            if not len(rest):
                raise DataError("the splits leave no images for training", path=self.source)
            chosen = {"train": train[rest], "valid": train[valid], "test": train[test]}
            self._parts = {part: Part(found["train"], which) for part, which in chosen.items()}
            for part in ("valid", "test"):
                if part in found:
                    self._parts[part] = Part(found[part], readable(found[part]))
            self._learn()
        return self._parts

    def _learn(self) -> None:
        assert self._parts is not None
        learn_pixels(
            self._parts, self.reading, self.value_range, ([0.0], [1.0]), self._known, _same
        )

    def take(self, preprocess: Mapping[str, Any]) -> None:
        """Takes what a checkpoint learnt of its training images in place of what these would say.

        Args:
            preprocess: of ``Restoration``.
        """
        self._known = {"mean": [0.0], "std": [1.0], **preprocess}
        if self._parts is not None:
            self._learn()

    def facts(self) -> dict[str, Any]:
        """Returns how pixels are read, and what the model was trained to undo."""
        reading = self.parts["train"].images.reading.facts()
        noise = list(self.noise)
        return {"preprocess": {"tile": self.tile, "reading": reading, "noise": noise}}

    def model_arguments(self) -> dict[str, Any]:
        """Returns the channels of the images, and the scale."""
        return {"in_chans": self.channels, "scale": self.scale}

    def setup(self, stage: str | None = None) -> None:
        """Opens and checks the images, so that bad input fails before training starts."""
        _ = self.parts

    def train_dataloader(self) -> Any:
        """Returns the loader of training tiles, which resumes at any step."""
        trainer = self.trainer
        rank, world = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        batches = NoisyTiles(self, rank, world)
        return step_dataloader(batches, trainer, batches.per_epoch, self.num_workers)

    def evaluation(self, part: str) -> Any:
        """Returns the loader of a part's whole images in order, one at a time.

        Args:
            part: "train", "valid" or "test".
        """
        mine, first, world = self.parts[part], 0, 1
        if self.trainer is not None:
            first, world = self.trainer.global_rank, self.trainer.world_size
        if not len(mine):
            return []
        images = NoisyImages(self, mine, range(first, len(mine), world))
        return EvaluationLoader(images, 1, num_workers=self.num_workers, collate_fn=together)

    def val_dataloader(self) -> Any:
        """Returns the validation images in order."""
        return self.evaluation("valid")

    def test_dataloader(self) -> Any:
        """Returns the test images in order."""
        return self.evaluation("test")


def _same(image: Tensor) -> Tensor:
    return image


class NoisyTiles:
    """Batch n of random tiles and what is left of them, as a pure function of n.

    Args:
        data: with the images, the tiles' side and what is done to them.
        rank: of this process.
        world: number of processes.
    """

    def __init__(self, data: RestorationData, rank: int = 0, world: int = 1) -> None:
        self.part, self.tile, self.batch_size = data.parts["train"], data.tile, data.batch_size
        self.scale, self.noise, self.augment = data.scale, data.noise, data.augment
        self.seed, self.rank = data.seed, rank
        self.per_epoch = max(1, len(self.part) // (self.batch_size * world))
        self._kept: dict[int, Tensor] = {}

    def __getstate__(self) -> dict[str, Any]:  # a worker process keeps its own
        return {**self.__dict__, "_kept": {}}

    def __getitem__(self, step: int) -> Batch:
        random = np.random.default_rng((self.seed, step, self.rank))
        clean, worse, levels = [], [], []
        for _ in range(self.batch_size):
            tile = self._tile(random)
            sigma = float(random.uniform(*self.noise))
            clean.append(tile)
            worse.append(degrade(tile, self.scale, sigma, random))
            levels.append(sigma)
        images, target = torch.stack(worse), torch.stack(clean)
        return {"image": images, "target": target, "sigma": torch.tensor(levels)}

    def _image(self, index: int) -> Tensor:
        if index not in self._kept:
            image = self.part.image(index)
            size = image.numel() * image.element_size()
            if size * len(self.part) > 1 << 30:
                return image
            self._kept[index] = image
        return self._kept[index]

    def _tile(self, random: np.random.Generator) -> Tensor:
        image = self._image(int(random.integers(len(self.part))))
        height, width = image.shape[1:]
        rows, columns = (
            int(random.integers(max(side - self.tile, 0) + 1)) for side in (height, width)
        )
        image = image[:, rows : rows + self.tile, columns : columns + self.tile]
        if min(image.shape[1:]) < self.tile:
            more = [(0, 0), *((0, self.tile - side) for side in image.shape[1:])]
            image = torch.from_numpy(np.pad(image.numpy(), more, "symmetric"))
        if self.augment != "none" and random.random() < 0.5:
            image = image.flip(-1)
        if self.augment == "flip_turn":
            image = torch.rot90(image, int(random.integers(4)), (-2, -1))
        return unit(image)


class NoisyImages(Dataset[Batch | None]):
    """Whole images with what is left of them, the same at every run; None for an unreadable one.

    Args:
        data: with what is done to the images.
        part: of them.
        numbers: which of the part.
    """

    def __init__(self, data: RestorationData, part: Part, numbers: Sequence[int]) -> None:
        self.part, self.numbers = part, numbers
        self.scale, self.noise, self.seed = data.scale, data.noise, data.seed

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Batch | None:
        number = self.numbers[index]
        try:
            clean = unit(self.part.image(number))
            height, width = (side - side % self.scale for side in clean.shape[1:])
            if min(height, width) < LEAST_SIDE:
                raise self.part.where(number).error(
                    f"has {clean.shape[2]} × {clean.shape[1]} pixels, at least {LEAST_SIDE} are "
                    "needed to compare structure"
                )
        except DataError as error:
            self.part.note(number, error)
            return None
        clean = clean[:, :height, :width]
        # Never a seed of training: those have three numbers.
        random = np.random.default_rng((self.seed, number))
        sigma = float(random.uniform(*self.noise))
        worse = degrade(clean, self.scale, sigma, random)
        return {"image": worse, "target": clean, "sigma": torch.tensor(sigma)}
