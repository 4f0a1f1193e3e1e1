"""The data module of segmentation: images with masks, in folders or a zip."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from longseq.core.checks import check_choice, check_positive
from longseq.core.errors import ConfigError, DataError
from longseq.core.training.hyper import BaseData
from longseq.core.training.loader import step_dataloader
from longseq.vision.data.batches import EvaluationLoader, together
from longseq.vision.data.doubles import say_doubles
from longseq.vision.data.masks import Values, find_values, open_pairs
from longseq.vision.data.parts import SAMPLE, Part, checked_reading, learn_pixels, readable
from longseq.vision.data.pixels import MAX_PIXELS
from longseq.vision.data.sources import split_indices
from longseq.vision.data.tile_batches import Pairs, TileBatches, Turns, WholeImages
from longseq.vision.data.transforms import Normalise


class SegmentationData(BaseData):
    """Images with masks of classes: ``images/`` and ``masks/`` side by side, in a folder or a zip.

    Both may lie in ``train/``, ``valid/`` and ``test/``. Masks are PNG, TIFF or .npy with one whole
    number for each pixel (palettes by index); the values that those of the training hold are the
    classes, in ascending order.

    Args:
        source: folder or zip.
        tile: side in pixels of the tiles that training cuts and prediction goes through.
        channels: 1 for grey, 3 for colour, or the number of bands.
        batch_size: tiles per training batch.
        mean: of every channel where 0 to 1 is the range of values; None measures it.
        std: likewise.
        value_range: see ``ImageData``.
        bands: numbers of the stored bands to take, from 0.
        page: of a stack: its number from 0, or "channels".
        background: behind transparent pixels: 0 black, 1 white.
        truncated: whether to keep files that end early.
        max_pixels: larger images are refused in training.
        augment: "none", "flip" (left and right), or "flip_turn", for images without an up.
        foreground: share of the tiles that are laid over a pixel of a class other than the first.
        ignore_value: value of masks that neither trains nor counts, for example 255.
        binary: whether every value but 0 is one class, for example numbers of objects.
        names: of the classes, in the order of their values; the values themselves if None.
        valid_fraction: share of the training images for validation where there is no such part.
        test_fraction: likewise for the test.
        seed: of the splits, the tiles and the augmentation.
        num_workers: processes that make batches.
    """

    fits = ("num_classes", "in_chans")

    def __init__(
        self,
        source: str,
        tile: int = 128,
        channels: int = 3,
        batch_size: int = 8,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        value_range: str | Sequence[float] = "auto",
        bands: Sequence[int] | None = None,
        page: int | str | None = None,
        background: float = 1.0,
        truncated: bool = False,
        max_pixels: int = MAX_PIXELS,
        augment: Turns = "flip_turn",
        foreground: float = 0.33,
        ignore_value: int | None = None,
        binary: bool = False,
        names: Sequence[str] | None = None,
        valid_fraction: float = 0.15,
        test_fraction: float = 0.15,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        self.reading = checked_reading(
            (channels, bands, page, background, truncated, max_pixels), (value_range, mean, std)
        )
        check_choice("augment", augment, Turns)
        if not 0 <= foreground <= 1:
            raise ConfigError(f"foreground must lie in [0, 1], got {foreground}")
        self.source, self.channels, self.tile = source, channels, check_positive("tile", tile)
        self.batch_size, self.augment = check_positive("batch_size", batch_size), augment
        self.value_range, self.foreground = value_range, foreground
        self.mean, self.std = mean, std
        self.fractions = valid_fraction, test_fraction
        self.names, self.seed, self.num_workers = names, seed, num_workers
        self._values = Values((0, 1) if binary else (), ignore_value, binary)
        self._pairs: dict[str, Pairs] | None = None
        self._known: Mapping[str, Any] | None = None

    @property
    def pairs(self) -> dict[str, Pairs]:
        """The parts "train", "valid" and "test"; opened, checked and split at first use."""
        if self._pairs is None:
            self._pairs = self._open()
            self._learn()
        return self._pairs

    def _open(self) -> dict[str, Pairs]:
        found = open_pairs(self.source, self.reading)
        train = readable(found["train"])
        fractions = [
            0.0 if part in found else share
            for part, share in zip(("valid", "test"), self.fractions)
        ]
        valid, test, rest = split_indices(np.zeros(len(train), int), fractions, self.seed)
        if not len(rest):
            raise DataError("the splits leave no images for training", path=self.source)
        parts = {
            "train": Part(found["train"], train[rest]),
            "valid": Part(found["train"], train[valid]),
            "test": Part(found["train"], train[test]),
        }
        parts |= {
            part: Part(found[part], readable(found[part]))
            for part in ("valid", "test")
            if part in found
        }
        say_doubles(parts, self.source)
        if not self._values.binary:
            indices = parts["train"].indices
            few = indices[np.linspace(0, len(indices) - 1, min(SAMPLE, len(indices))).astype(int)]
            masks = [(found["train"].mask(int(i)), found["train"].mask_where(int(i))) for i in few]
            ignored = self._values.ignored
            self._values = Values(find_values(masks, ignored), ignored)
            self._say_values()
        count = len(self._values.values)
        if self.names is not None and len(self.names) != count:
            raise ConfigError(
                f"data.names has {len(self.names)} names, the masks of {self.source} have {count} "
                f"values: {', '.join(map(str, self._values.values))}"
            )
        return {name: Pairs(part, self._values) for name, part in parts.items()}

    def _say_values(self) -> None:
        """Says which values are classes where they are no plain 0, 1, 2, …: one may be a border."""
        values = self._values.values
        if len(values) > 2 and values != tuple(range(len(values))):
            shown = ", ".join(map(str, values[:12])) + (", …" if len(values) > 12 else "")
            print(
                f"note: {self.source}: the masks' values {shown} are {len(values)} classes; "
                f"data.ignore_value {values[-1]} would leave that one out",
                file=sys.stderr,
            )

    def _learn(self) -> None:
        """Finds the ranges of pixels and their moments, where they are not given."""
        assert self._pairs is not None
        given = self.hparams
        self.mean, self.std = learn_pixels(
            {name: pairs.part for name, pairs in self._pairs.items()},
            self.reading,
            self.value_range,
            (given["mean"], given["std"]),
            self._known,
            lambda image: image,
        )

    def take(self, preprocess: Mapping[str, Any], values: Sequence[int]) -> None:
        """Takes what a checkpoint learnt of its training images in place of what these would say.

        Args:
            preprocess: of ``Segmentation``.
            values: of the masks, by class.
        """
        self._known = dict(preprocess)
        if self._pairs is not None:
            self._values = replace(self._values, values=tuple(values))
            self._pairs = {name: Pairs(one.part, self._values) for name, one in self._pairs.items()}
            self._learn()

    @property
    def values(self) -> list[int]:
        """The stored value of every class."""
        _ = self.pairs
        return list(self._values.values)

    @property
    def classes(self) -> list[str]:
        """Names of the classes."""
        _ = self.pairs
        return [str(one) for one in self.names or self._values.values]

    @property
    def normalise(self) -> Normalise:
        """The normalisation, measured if need be."""
        _ = self.pairs
        assert self.mean is not None and self.std is not None
        return Normalise(self.mean, self.std, self.channels)

    def facts(self) -> dict[str, Any]:
        """Returns classes, the values that masks have for them, and the preprocessing."""
        reading = self.pairs["train"].part.images.reading.facts()
        assert self.mean is not None and self.std is not None
        preprocess = {
            "tile": self.tile,
            "channels": self.channels,
            "mean": list(self.mean),
            "std": list(self.std),
            "reading": reading,
        }
        return {
            "classes": self.classes,
            "values": self.values,
            "preprocess": preprocess,
        }

    def model_arguments(self) -> dict[str, Any]:
        """Returns the number of classes and the channels of the images."""
        return {"num_classes": len(self.classes), "in_chans": self.channels}

    def setup(self, stage: str | None = None) -> None:
        """Opens and checks the images, so that bad input fails before training starts."""
        _ = self.pairs

    def train_dataloader(self) -> Any:
        """Returns the loader of training tiles, which resumes at any step."""
        trainer = self.trainer
        rank, world = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        batches = TileBatches(
            self.pairs["train"],
            self.batch_size,
            self.tile,
            self.normalise,
            self.augment,
            self.foreground,
            self.seed,
            rank,
            world,
        )
        return step_dataloader(batches, trainer, batches.per_epoch, self.num_workers)

    def evaluation(self, part: str) -> Any:
        """Returns the loader of a part's whole images in order, one at a time.

        Args:
            part: "train", "valid" or "test".
        """
        mine = self.pairs[part]
        if self.trainer is not None and self.trainer.world_size > 1:
            share = mine.part.indices[self.trainer.global_rank :: self.trainer.world_size]
            mine = Pairs(Part(mine.part.images, share), mine.values)
        if not len(mine):
            return []
        images = WholeImages(mine, self.normalise)
        return EvaluationLoader(images, 1, num_workers=self.num_workers, collate_fn=together)

    def val_dataloader(self) -> Any:
        """Returns the validation images in order."""
        return self.evaluation("valid")

    def test_dataloader(self) -> Any:
        """Returns the test images in order."""
        return self.evaluation("test")
