"""The data module of images: any source of classified images, split, augmented, in batches by
step."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from longseq.core.checks import check_positive
from longseq.core.errors import ConfigError, DataError
from longseq.core.training.hyper import BaseData
from longseq.core.training.loader import step_dataloader
from longseq.vision.data.images import ImageSet
from longseq.vision.data.sources import open_source, split_indices
from longseq.vision.data.transforms import (
    Augment,
    apply_mixing,
    evaluation_transform,
    mixing_transform,
    training_transform,
)

Batch = dict[str, Tensor]


class Part:
    """Some images of a set.

    Args:
        images: the whole set.
        indices: which of them.
    """

    def __init__(self, images: ImageSet, indices: np.ndarray) -> None:
        self.images, self.indices = images, indices

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def labels(self) -> np.ndarray:
        """Class of every image, int64 (N,)."""
        return self.images.labels[self.indices]

    def image(self, index: int) -> Tensor:
        """Returns image ``index`` of this part, bytes (C, H, W)."""
        return self.images.image(int(self.indices[index]))

    def name(self, index: int) -> str:
        """Returns its name."""
        return self.images.name(int(self.indices[index]))


class TrainingBatches:
    """Batch n as a pure function of n: the shuffling, the augmentation and the mixing too.

    Args:
        part: training images.
        batch_size: images a batch and process.
        transform: of one image.
        mixing: of a batch, or None.
        seed: of everything random.
        rank: of this process.
        world: number of processes.
    """

    def __init__(
        self,
        part: Part,
        batch_size: int,
        transform: Any,
        mixing: Any,
        seed: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.part, self.batch_size, self.transform, self.mixing = (
            part,
            batch_size,
            transform,
            mixing,
        )
        self.seed, self.rank, self.world = seed, rank, world
        self.per_epoch = max(1, len(part) // (batch_size * world))

    def __getitem__(self, step: int) -> Batch:
        epoch, index = divmod(step, self.per_epoch)
        order = np.random.default_rng((self.seed, 1, epoch)).permutation(len(self.part))
        first = (index * self.world + self.rank) * self.batch_size
        chosen = np.take(order, range(first, first + self.batch_size), mode="wrap")
        # torchvision draws from torch's global stream: fork it, so that the training's own is left
        # alone.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(
                int(np.random.SeedSequence((self.seed, step, self.rank)).generate_state(1)[0])
            )
            images = torch.stack([self.transform(self.part.image(i)) for i in chosen])
            labels = torch.from_numpy(self.part.labels[chosen])
            images, target = apply_mixing(self.mixing, images, labels)
        return {
            "index": torch.from_numpy(self.part.indices[chosen]),
            "image": images,
            "target": target,
        }


class EvaluationImages(Dataset[Batch]):
    """Images one by one, as they are evaluated.

    Args:
        part: the images.
        transform: of one image.
    """

    def __init__(self, part: Part, transform: Any) -> None:
        self.part, self.transform = part, transform

    def __len__(self) -> int:
        return len(self.part)

    def __getitem__(self, index: int) -> Batch:
        where = torch.tensor(int(self.part.indices[index]))
        image = self.transform(self.part.image(index))
        return {
            "index": where,
            "image": image,
            "target": torch.tensor(int(self.part.labels[index])),
        }


class ImageData(BaseData):
    """Classified images from folders, a zip, IDX files or torchvision.

    Where the source has no validation part, ``valid_fraction`` of the training images is one, with
    the classes in proportion; where it has no test part, ``test_fraction`` likewise. Images that
    cannot be read are counted, listed and left out.

    Args:
        source: a packaged sample, a folder or zip of class folders (with or without train/, valid/,
            test/), a folder of IDX files, or ``torchvision:<Name>``.
        img_size: side in pixels that the model sees.
        channels: 1 for grey, 3 for colour.
        batch_size: images a training batch.
        eval_batch_size: images an evaluation batch; results do not depend on it.
        mean: of every channel in [0, 1], or one value for all; from the training images, not from
            the test's.
        std: likewise.
        augment: see ``transforms.training_transform``.
        crop_ratio: see ``transforms.evaluation_transform``.
        mixup: α of mixup; 0 for none.
        cutmix: α of CutMix; 0 for none.
        valid_fraction: share of the training images for validation.
        test_fraction: share for the test.
        max_train: at most so many training images, drawn with the classes in proportion; None for
            all.
        seed: of the splits, the order and the augmentation.
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
        mean: Sequence[float] = (0.5,),
        std: Sequence[float] = (0.5,),
        augment: Augment = "shift_flip",
        crop_ratio: float = 1.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        valid_fraction: float = 0.1,
        test_fraction: float = 0.1,
        max_train: int | None = None,
        seed: int = 0,
        num_workers: int = 0,
        root: str | None = None,
        download: bool = False,
    ) -> None:
        super().__init__()
        if channels not in (1, 3):
            raise ConfigError(f"channels must be 1 or 3, got {channels}")
        self.source, self.channels, self.root, self.download = source, channels, root, download
        self.batch_size = check_positive("batch_size", batch_size)
        self.eval_batch_size = check_positive("eval_batch_size", eval_batch_size)
        self.preprocess: dict[str, Any] = {
            "img_size": img_size,
            "channels": channels,
            "mean": list(mean),
            "std": list(std),
            "crop_ratio": crop_ratio,
        }
        self.train_transform = training_transform(img_size, mean, std, augment)
        self.eval_transform = evaluation_transform(img_size, mean, std, crop_ratio)
        self.mixup, self.cutmix = mixup, cutmix
        self.valid_fraction, self.test_fraction, self.max_train = (
            valid_fraction,
            test_fraction,
            max_train,
        )
        self.seed, self.num_workers = seed, num_workers
        self._parts: dict[str, Part] | None = None

    @property
    def parts(self) -> dict[str, Part]:
        """The parts "train", "valid" and "test"; opened, checked and split at first use."""
        if self._parts is None:
            self._parts = self._open()
        return self._parts

    def facts(self) -> dict[str, Any]:
        """Returns the names of the classes and the preprocessing."""
        return {"classes": list(self.classes), "preprocess": dict(self.preprocess)}

    @property
    def classes(self) -> list[str]:
        """Names of the classes."""
        return self.parts["train"].images.classes

    def model_arguments(self) -> dict[str, Any]:
        """Returns the number of classes, the channels and the side of the images."""
        size = self.preprocess["img_size"]
        return {"num_classes": len(self.classes), "in_chans": self.channels, "img_size": size}

    def _open(self) -> dict[str, Part]:
        source = open_source(self.source, self.channels, self.root, self.download)
        train = _readable(source.train)
        fractions = [
            self.valid_fraction if source.valid is None else 0.0,
            self.test_fraction if source.test is None else 0.0,
        ]
        labels = source.train.labels
        valid, test, rest = (
            train[piece] for piece in split_indices(labels[train], fractions, self.seed)
        )
        if self.max_train is not None and check_positive("max_train", self.max_train) < len(rest):
            share = self.max_train / len(rest)
            rest = rest[split_indices(labels[rest], [share], self.seed)[0]]
        if not len(rest):
            raise DataError("the splits leave no images for training", path=self.source)
        return {
            "train": Part(source.train, rest),
            "valid": Part(source.train, valid) if source.valid is None else _whole(source.valid),
            "test": Part(source.train, test) if source.test is None else _whole(source.test),
        }

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
        batches = TrainingBatches(
            self.parts["train"],
            self.batch_size,
            self.train_transform,
            mixing,
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
        images = EvaluationImages(mine, self.eval_transform)
        return DataLoader(images, self.eval_batch_size, num_workers=self.num_workers)

    def val_dataloader(self) -> Any:
        """Returns the validation images in order."""
        return self.evaluation("valid")

    def test_dataloader(self) -> Any:
        """Returns the test images in order."""
        return self.evaluation("test")


def _readable(images: ImageSet) -> np.ndarray:
    """Returns the numbers of the images that can be read, and lists the others on stderr."""
    bad = images.check()
    if bad and len(bad) == len(images):
        raise bad[0][1]
    if bad:
        print(
            f"note: {len(bad)} of {len(images)} images cannot be read and are left out:",
            file=sys.stderr,
        )
        for _, error in bad[:10]:
            print(f"  {error}", file=sys.stderr)
        if len(bad) > 10:
            print(f"  and {len(bad) - 10} more", file=sys.stderr)
    return np.setdiff1d(np.arange(len(images)), [index for index, _ in bad])


def _whole(images: ImageSet) -> Part:
    return Part(images, _readable(images))
