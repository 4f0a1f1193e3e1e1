"""Parts of a set of images: which images, those that cannot be read, and a cache at target size."""

from __future__ import annotations

import math
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from longseq.core.checks import check_positive
from longseq.core.errors import DataError
from longseq.vision.data.images import ImageSet
from longseq.vision.data.pixels import Reading, Where, learn_ranges, unit
from longseq.vision.data.transforms import Normalise

CHECKED = 2000
"""Sets of up to so many images are read once when they are opened; of larger ones a sample is."""
SAMPLE = 256
"""Training images of which ranges, means and deviations are measured."""
_CACHE_BYTES = 4 << 30


class Part:
    """Some images of a set.

    Args:
        images: the whole set.
        indices: which of them.
    """

    def __init__(self, images: ImageSet, indices: np.ndarray) -> None:
        self.images, self.indices = images, indices
        self._noted: set[int] = set()

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def labels(self) -> np.ndarray:
        """Class of every image, int64 (N,)."""
        return self.images.labels[self.indices]

    def targets(self, numbers: Sequence[int] | np.ndarray) -> np.ndarray:
        """Returns what images of this part should give: classes (N,), or rows of labels (N, K).

        Args:
            numbers: of the images.
        """
        rows = self.images.labels if self.images.targets is None else self.images.targets
        return rows[self.indices[numbers]]

    def image(self, index: int) -> Tensor:
        """Returns image ``index`` of this part, bytes or float32 (C, H, W)."""
        return self.images.image(int(self.indices[index]))

    def stored(self, index: int) -> tuple[np.ndarray, int | None]:
        """Returns image ``index`` in its own dtype, and its bits."""
        return self.images.stored(int(self.indices[index]))

    def where(self, index: int) -> Where:
        """Returns its place, for messages."""
        return self.images.where(int(self.indices[index]))

    def name(self, index: int) -> str:
        """Returns its name."""
        return self.images.name(int(self.indices[index]))

    def note(self, index: int, error: DataError) -> None:
        """Says once that an image cannot be read and is left out."""
        if index not in self._noted:
            self._noted.add(index)
            print(f"note: left out: {error}", file=sys.stderr, flush=True)

    def sample(self, count: int = SAMPLE) -> list[int]:
        """Returns numbers of images that are spread evenly over the part.

        Args:
            count: at most so many.
        """
        few = min(count, len(self))
        return np.linspace(0, len(self) - 1, few).round().astype(int).tolist() if few else []


class Prepared:
    """The images of a part at one size; made when first asked for, kept in a file in memory.

    The file has no name and is shared by worker processes that are forked; where it would be too
    large, or there is no room, images are made anew every time.

    Args:
        part: the images.
        transform: of one image to (C, S, S), without chance.
        shape: (C, S, S).
    """

    def __init__(
        self, part: Part, transform: Callable[[Tensor], Tensor], shape: tuple[int, int, int]
    ) -> None:
        self.part, self.transform = part, transform
        # Without learnt ranges every image that can be read is bytes.
        self._bytes = bytes_only = not part.images.reading.ranges
        size = len(part) * math.prod(shape) * (1 if bytes_only else 4)
        self._kept: np.ndarray | None = None
        self._made = np.zeros(0, np.bool_)
        room = shutil.disk_usage(tempfile.gettempdir()).free
        if not part.images.in_memory and 0 < size <= min(_CACHE_BYTES, room // 2):
            dtype = np.uint8 if bytes_only else np.float32
            with tempfile.TemporaryFile() as file:
                self._kept = np.memmap(file, dtype, "w+", shape=(len(part), *shape))
            with tempfile.TemporaryFile() as file:
                self._made = np.memmap(file, np.bool_, "w+", shape=(len(part),))

    def __getstate__(self) -> dict[str, Any]:  # a spawned worker makes its images itself
        return {**self.__dict__, "_kept": None}

    def image(self, index: int) -> Tensor:
        """Returns image ``index`` of the part, prepared.

        Raises:
            DataError: if it cannot be read.
        """
        if self._kept is not None and self._made[index]:
            return torch.from_numpy(np.array(self._kept[index]))
        image = self.transform(self.part.image(index))
        if self._kept is not None and (image.dtype == torch.uint8) == self._bytes:
            self._kept[index] = image.numpy()
            self._made[index] = True
        return image


def readable(images: ImageSet) -> np.ndarray:
    """Returns the numbers of the images of a set that can be read, and lists the others on stderr.

    Of a large set only a sample is read; what turns out to be damaged later is left out then.

    Args:
        images: the set.

    Raises:
        DataError: of the first image, if none of those that were read can be.
    """
    everything = np.arange(len(images))
    if images.in_memory:
        return everything
    small = len(images) <= CHECKED
    tried = everything if small else np.asarray(Part(images, everything).sample())
    bad: dict[int, DataError] = {}
    for index in tried:
        try:
            images.stored(int(index))
        except DataError as error:
            bad[int(index)] = error
    if bad and len(bad) == len(tried):
        raise next(iter(bad.values()))
    if bad:
        print(
            f"note: {len(bad)} of {len(tried)} images cannot be read and are left out:",
            file=sys.stderr,
        )
        for error in list(bad.values())[:10]:
            print(f"  {error}", file=sys.stderr)
        if len(bad) > 10:
            print(f"  and {len(bad) - 10} more", file=sys.stderr)
    return np.setdiff1d(everything, list(bad))


def moments(part: Part, transform: Callable[[Tensor], Tensor]) -> tuple[list[float], list[float]]:
    """Returns mean and standard deviation of every channel over a sample of a part.

    Args:
        part: training images.
        transform: of one image, as it is evaluated.
    """
    total = square = torch.zeros(())
    count = 0
    for index in part.sample():
        try:
            image = unit(transform(part.image(index))).double()
        except DataError as error:
            part.note(index, error)
            continue
        total, square = total + image.sum((1, 2)), square + (image**2).sum((1, 2))
        count += image[0].numel()
    if not count:
        raise DataError("none of its images can be read", path=str(part.where(0).path))
    mean = total / count
    std = (square / count - mean**2).clamp(min=0).sqrt()
    std[std < 1e-6] = 1.0  # a channel that is the same everywhere
    return [round(float(v), 6) for v in mean], [round(float(v), 6) for v in std]


def checked_reading(
    how: tuple[int, Sequence[int] | None, int | str | None, float, bool, int],
    scale: tuple[str | Sequence[float], Sequence[float] | None, Sequence[float] | None],
) -> Reading:
    """Returns how a data module reads its images; a bad value fails here, before any is read.

    Args:
        how: channels, bands, page, background, truncated and max_pixels.
        scale: value_range, mean and std.

    Raises:
        ConfigError: for a value that is out of range.
    """
    (channels, bands, page, background, truncated, max_pixels), (value_range, mean, std) = (
        how,
        scale,
    )
    reading = Reading(
        channels,
        None if bands is None else tuple(bands),
        int(page) if isinstance(page, str) and page.isdecimal() else page,  # type: ignore[arg-type]
        background,
        truncated=truncated,
        max_pixels=check_positive("max_pixels", max_pixels),
    )
    learn_ranges([], value_range)
    if mean is not None or std is not None:
        Normalise(mean or (0.5,), std or (0.5,), channels)
    return reading


def learn_pixels(
    parts: Mapping[str, Part],
    reading: Reading,
    value_range: str | Sequence[float],
    given: tuple[Sequence[float] | None, Sequence[float] | None],
    known: Mapping[str, Any] | None,
    transform: Callable[[Tensor], Tensor],
) -> tuple[list[float], list[float]]:
    """Finds the ranges of pixels on training images, and returns mean and deviation of the
    channels.

    Args:
        parts: with the part "train"; their readings take the ranges.
        reading: how files become channels.
        value_range: see ``learn_ranges``.
        given: mean and deviation, None where they are to be measured.
        known: of a checkpoint, in place of what these images would say.
        transform: of one image, as it is evaluated.
    """
    train = parts["train"]
    if known and isinstance(value_range, str):
        ranges = dict(Reading.of(known).ranges)
    else:
        ranges = learn_ranges(_stored(train), value_range)
    for part in parts.values():
        part.images.reading = replace(reading, ranges=ranges)
    mean, std = given
    if known:
        found = list(known["mean"]), list(known["std"])
    elif mean is None or std is None:
        found = moments(train, transform)
    else:
        found = list(mean), list(std)
    return (found[0] if mean is None else list(mean)), (found[1] if std is None else list(std))


def _stored(part: Part) -> list[tuple[np.ndarray, int | None]]:
    """Returns a sample of a part's images in their own dtypes."""
    found = []
    for index in part.sample():
        try:
            found.append(part.stored(index))
        except DataError as error:
            part.note(index, error)
    return found
