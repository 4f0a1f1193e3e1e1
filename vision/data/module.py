"""The data module of images: any source of classified images, split, augmented, in batches by
step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from longseq.core.checks import check_positive
from longseq.core.errors import ConfigError, DataError
from longseq.core.training.hyper import BaseData
from longseq.core.training.loader import step_dataloader
from longseq.vision.data.batches import (
    EvaluationImages,
    EvaluationLoader,
    TrainingBatches,
    together,
)
from longseq.vision.data.doubles import say_doubles
from longseq.vision.data.images import ImageSet
from longseq.vision.data.parts import Part, Prepared, checked_reading, learn_pixels, readable
from longseq.vision.data.pixels import MAX_PIXELS
from longseq.vision.data.sources import Source, open_source, split_indices
from longseq.vision.data.transforms import (
    Augment,
    Interpolation,
    Normalise,
    mixing_transform,
    resize,
    training_transform,
)


class ImageData(BaseData):
    """Classified images from folders, a zip, IDX files or torchvision.

    Where the source has no validation part, ``valid_fraction`` of the training images is one, with
    the classes in proportion; where it has no test part, ``test_fraction`` likewise. Images that
    cannot be read are listed and left out: at the start of sets of up to 2,000 images, and when
    their turn comes in larger ones.

    Args:
        source: a packaged sample, a folder or zip of class folders (with or without train/, valid/,
            test/), tar shards, IDX files, ``torchvision:<Name>``, or ``canvas:<IDX files>``.
        img_size: side in pixels that the model sees.
        channels: number of bands: 1 grey, 3 colour.
        batch_size: images per training batch.
        eval_batch_size: images per evaluation batch; results do not depend on it.
        mean: of every channel where 0 to 1 is the range of values, or one value for all; None
            measures it on up to 256 training images.
        std: likewise.
        value_range: which stored values become 0 and 1. "auto": 0 and 255 of bytes, and for other
            types the 0.1% and 99.9% quantiles of up to 256 training images; "train": those for
            bytes too; "type": what the integer type can hold; or [low, high]. The checkpoint keeps
            it.
        bands: numbers of the stored bands to take, from 0, as many as channels; None for all.
        page: of a stack: its number from 0, or "channels": the pages are the channels.
        background: behind transparency: 0 black, 1 white.
        truncated: whether to keep files that end early, with what is missing left grey or black.
        max_pixels: larger images are refused.
        augment: see ``transforms.training_transform``.
        erasing: how often a rectangle is erased, 0 to 1.
        crop_ratio: see ``transforms.resize``.
        interpolation: "bilinear", "bicubic" or "nearest", when images are resized.
        mixup: α of mixup; 0 for none.
        cutmix: α of CutMix; 0 for none.
        balanced: whether training draws the classes equally often, whatever their sizes.
        valid_fraction: share of the images to validate on.
        test_fraction: share for the test.
        max_train: at most so many training images, drawn with the classes in proportion; None for
            all.
        seed: of splits, order and augmentation.
        num_workers: processes that make batches.
        root: folder of torchvision's data sets.
        download: whether torchvision may download.
    """

    fits = ("num_classes", "in_chans", "img_size")

    def __init__(
        self,
        source: str,
        img_size: int = 32,
        channels: int = 3,
        batch_size: int = 128,
        eval_batch_size: int = 256,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        value_range: str | Sequence[float] = "auto",
        bands: Sequence[int] | None = None,
        page: int | str | None = None,
        background: float = 1.0,
        truncated: bool = False,
        max_pixels: int = MAX_PIXELS,
        augment: Augment = "shift_flip",
        erasing: float = 0.0,
        crop_ratio: float = 1.0,
        interpolation: Interpolation = "bilinear",
        mixup: float = 0.0,
        cutmix: float = 0.0,
        balanced: bool = False,
        valid_fraction: float = 0.1,
        test_fraction: float = 0.1,
        max_train: int | None = None,
        seed: int = 0,
        num_workers: int = 0,
        root: str | None = None,
        download: bool = False,
    ) -> None:
        super().__init__()
        self.reading = checked_reading(
            (channels, bands, page, background, truncated, max_pixels), (value_range, mean, std)
        )
        self.source, self.channels, self.root, self.download = source, channels, root, download
        self.batch_size = check_positive("batch_size", batch_size)
        self.eval_batch_size = check_positive("eval_batch_size", eval_batch_size)
        self.img_size, self.value_range, self.balanced = img_size, value_range, balanced
        self.mean = None if mean is None else list(mean)
        self.std = None if std is None else list(std)
        self.crop_ratio, self.interpolation = crop_ratio, interpolation
        self.train_transform = training_transform(
            img_size, augment, erasing, channels, interpolation
        )
        self.eval_transform = resize(img_size, crop_ratio, interpolation)
        self.mixup, self.cutmix = mixup, cutmix
        self.valid_fraction, self.test_fraction, self.max_train = (
            valid_fraction,
            test_fraction,
            max_train,
        )
        self.seed, self.num_workers = seed, num_workers
        self._parts: dict[str, Part] | None = None
        self._known: Mapping[str, Any] | None = None

    @property
    def parts(self) -> dict[str, Part]:
        """The parts "train", "valid" and "test"; opened, checked and split at first use."""
        if self._parts is None:
            self._parts = self._open()
            self._learn()
        return self._parts

    @property
    def preprocess(self) -> dict[str, Any]:
        """How images become the model's input, as plain values; reads the data if need be."""
        parts = self.parts
        assert self.mean is not None and self.std is not None
        return {
            "img_size": self.img_size,
            "channels": self.channels,
            "mean": list(self.mean),
            "std": list(self.std),
            "crop_ratio": self.crop_ratio,
            "interpolation": self.interpolation,
            "reading": parts["train"].images.reading.facts(),
        }

    @property
    def normalise(self) -> Normalise:
        """The normalisation, measured if need be."""
        how = self.preprocess
        return Normalise(how["mean"], how["std"], self.channels)

    def take(self, preprocess: Mapping[str, Any]) -> None:
        """Takes what a checkpoint learnt of its training images in place of what these would say.

        Args:
            preprocess: of ``ImageClassifier``: ranges, mean and deviation.
        """
        self._known = dict(preprocess)
        if self._parts is not None:
            self._learn()

    def _learn(self) -> None:
        """Finds the ranges of pixels and their moments, where they are not given."""
        assert self._parts is not None
        given = self.hparams
        self.mean, self.std = learn_pixels(
            self._parts,
            self.reading,
            self.value_range,
            (given["mean"], given["std"]),
            self._known,
            self.eval_transform,
        )

    def facts(self) -> dict[str, Any]:
        """Returns the names of the classes and the preprocessing."""
        return {"classes": list(self.classes), "preprocess": dict(self.preprocess)}

    @property
    def classes(self) -> list[str]:
        """Names of the classes."""
        return self.parts["train"].images.classes

    def model_arguments(self) -> dict[str, Any]:
        """Returns the number of classes, the channels and the side of the images."""
        size = self.img_size
        return {"num_classes": len(self.classes), "in_chans": self.channels, "img_size": size}

    def _source(self) -> Source:
        return open_source(self.source, self.reading, self.root, self.download)

    def _open(self) -> dict[str, Part]:
        source = self._source()
        train = readable(source.train)
        fractions = [
            self.valid_fraction if source.valid is None else 0.0,
            self.test_fraction if source.test is None else 0.0,
        ]
        labels = source.train.labels
        lost = np.setdiff1d(labels, labels[train])
        if len(lost):
            said = f"none of the images of the class {source.train.classes[lost[0]]!r} can be read"
            raise DataError(said, path=self.source, hint="mend them, or take their folder away")
        valid, test, rest = (
            train[piece] for piece in split_indices(labels[train], fractions, self.seed)
        )
        if self.max_train is not None and check_positive("max_train", self.max_train) < len(rest):
            share = self.max_train / len(rest)
            rest = rest[split_indices(labels[rest], [share], self.seed)[0]]
        if not len(rest):
            raise DataError("the splits leave no images for training", path=self.source)
        parts = {
            "train": Part(source.train, rest),
            "valid": Part(source.train, valid) if source.valid is None else _whole(source.valid),
            "test": Part(source.train, test) if source.test is None else _whole(source.test),
        }
        say_doubles(parts, self.source)
        return parts

    def setup(self, stage: str | None = None) -> None:
        """Opens and checks the images, so that bad input fails before training starts."""
        parts = self.parts
        if stage in (None, "fit") and len(parts["train"]) < self.batch_size:
            raise ConfigError(
                f"{self.source}: {len(parts['train'])} training images are fewer than batch_size "
                f"({self.batch_size})"
            )

    def train_dataloader(self) -> Any:
        """Returns the loader of training batches, which resumes at any step."""
        rank, world = (
            (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        )
        mixing = mixing_transform(self.mixup, self.cutmix, len(self.classes))
        train, fixed = self.parts["train"], self.train_transform.fixed
        shape = (self.channels, self.img_size, self.img_size)
        batches = TrainingBatches(
            train,
            self.batch_size,
            self.train_transform,
            self.normalise,
            None if fixed is None else Prepared(train, fixed, shape),
            mixing,
            self.balanced,
            self.seed,
            rank,
            world,
        )
        return step_dataloader(batches, self.trainer, batches.per_epoch, self.num_workers)

    def evaluation(self, part: str) -> Any:
        """Returns the loader of a part's images in order; with several processes, every k-th image.

        Args:
            part: "train", "valid" or "test".
        """
        mine = self.parts[part]
        if self.trainer is not None and self.trainer.world_size > 1:
            mine = Part(
                mine.images, mine.indices[self.trainer.global_rank :: self.trainer.world_size]
            )
        if not len(mine):
            return []
        images = EvaluationImages(mine, self.eval_transform, self.normalise)
        return EvaluationLoader(
            images, self.eval_batch_size, num_workers=self.num_workers, collate_fn=together
        )

    def val_dataloader(self) -> Any:
        """Returns the validation images in order."""
        return self.evaluation("valid")

    def test_dataloader(self) -> Any:
        """Returns the test images in order."""
        return self.evaluation("test")


def _whole(images: ImageSet) -> Part:
    return Part(images, readable(images))
