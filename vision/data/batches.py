"""Training batches as a function of the step, and images one by one for evaluation."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from longseq.core.errors import DataError
from longseq.vision.data.parts import Part, Prepared
from longseq.vision.data.pixels import unit
from longseq.vision.data.transforms import Normalise, Training, apply_mixing

Batch = dict[str, Tensor]


class TrainingBatches:
    """Batch n as a pure function of n: the shuffling, the augmentation and the mixing too.

    In the place of an image that cannot be read stands the next one that can.

    Args:
        part: training images.
        batch_size: images per batch and process.
        transform: of the images, up to the normalisation.
        normalise: of a batch.
        prepared: the images after the transform's fixed step; None where it has none.
        mixing: of a batch, or None.
        balanced: whether classes are drawn equally often, with replacement, instead of every image
            once per epoch.
        seed: of everything random.
        rank: of this process.
        world: number of processes.
    """

    def __init__(
        self,
        part: Part,
        batch_size: int,
        transform: Training,
        normalise: Normalise,
        prepared: Prepared | None = None,
        mixing: Any = None,
        balanced: bool = False,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.part, self.batch_size, self.transform = part, batch_size, transform
        self.normalise, self.prepared, self.mixing = normalise, prepared, mixing
        self.seed, self.rank, self.world = seed, rank, world
        self.per_epoch = max(1, len(part) // (batch_size * world))
        self.chances: np.ndarray | None = None
        if balanced:
            labels = part.labels
            counts = np.bincount(labels).astype(float)
            self.chances = 1 / counts[labels] / (counts > 0).sum()

    def _order(self, epoch: int) -> np.ndarray:
        """Returns the numbers of an epoch's images, in order."""
        generator = np.random.default_rng((self.seed, 1, epoch))
        if self.chances is None:
            return generator.permutation(len(self.part))
        return generator.choice(len(self.part), len(self.part), p=self.chances)

    def _image(self, index: int) -> tuple[int, Tensor]:
        """Returns an image and its number: that of the next one where it cannot be read."""
        for number in range(index, index + len(self.part)):
            number %= len(self.part)
            try:
                if self.prepared is not None:
                    image = self.prepared.image(number)
                else:
                    image = self.part.image(number)
                single = self.transform.single
                return number, image if single is None else single(image)
            except DataError as error:
                self.part.note(number, error)
        raise self.part.where(index).error("there is no training image that can be read")

    def __getitem__(self, step: int) -> Batch:
        epoch, index = divmod(step, self.per_epoch)
        first = (index * self.world + self.rank) * self.batch_size
        chosen = np.take(self._order(epoch), range(first, first + self.batch_size), mode="wrap")
        # torchvision draws from torch's global stream: fork it, so that the training's own is left
        # alone.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(
                int(np.random.SeedSequence((self.seed, step, self.rank)).generate_state(1)[0])
            )
            found = [self._image(int(i)) for i in chosen]
            numbers = np.asarray([number for number, _ in found])
            images = stack([image for _, image in found])
            if self.transform.batch is not None:
                images = self.transform.batch(images)
            labels = torch.from_numpy(self.part.targets(numbers))
            images, target = apply_mixing(self.mixing, self.normalise(images), labels)
        return {
            "index": torch.from_numpy(self.part.indices[numbers]),
            "image": images,
            "target": target,
        }


class EvaluationImages(Dataset[Batch | None]):
    """Images one by one, as they are evaluated; None for one that cannot be read.

    Args:
        part: the images.
        transform: of one image, up to the normalisation.
        normalise: of an image.
    """

    def __init__(self, part: Part, transform: Any, normalise: Normalise) -> None:
        self.part, self.transform, self.normalise = part, transform, normalise

    def __len__(self) -> int:
        return len(self.part)

    def __getitem__(self, index: int) -> Batch | None:
        try:
            image = self.normalise(self.transform(self.part.image(index)))
        except DataError as error:
            self.part.note(index, error)
            return None
        return {
            "index": torch.tensor(int(self.part.indices[index])),
            "image": image,
            "target": torch.as_tensor(self.part.targets([index])[0]),
        }


class EvaluationLoader(DataLoader[Any]):
    """A loader that leaves out what cannot be read, and batches of nothing else."""

    def __iter__(self) -> Any:
        return (batch for batch in super().__iter__() if batch is not None)


def together(items: list[Batch | None]) -> Batch | None:
    """Returns a batch of the items that could be read; None if there are none."""
    good = [item for item in items if item is not None]
    return default_collate(good) if good else None


def stack(images: list[Tensor]) -> Tensor:
    """Returns images as a batch, in bytes if all are."""
    if len({image.dtype for image in images}) > 1:
        images = [unit(image) for image in images]
    return torch.stack(images)
