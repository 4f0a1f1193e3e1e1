"""Photographs of a folder or zip as bytes, read when they are asked for."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from longseq.core.errors import DataError
from longseq.vision.data.images import FileImages, list_images
from longseq.vision.data.pixels import Reading, unit

KEPT = 1 << 30
"""Bytes of photographs that stay in memory."""


def image_files(source: str) -> FileImages:
    """Returns the images of a folder or zip, in colour.

    Raises:
        DataError: if there are none.
    """
    root = Path(source)
    if not root.exists():
        raise DataError("no such folder or zip of photographs", path=root)
    names = list_images(root)
    if not names:
        raise DataError("holds no images", path=root)
    return FileImages(root, names, [0] * len(names), [], Reading(channels=3))


def as_bytes(picture: np.ndarray) -> np.ndarray:
    """Returns a picture from 0 to 1 as bytes, rounded."""
    return np.rint(255 * picture).clip(0, 255).astype(np.uint8)


class Photographs(Sequence[np.ndarray]):
    """Photographs, bytes (H, W, 3); those asked for last stay in memory.

    Args:
        files: where they are.
        kept: bytes that may stay in memory; the last photograph stays in any case.
    """

    def __init__(self, files: FileImages, kept: int = KEPT) -> None:
        self.files, self.kept = files, kept
        self._memory: OrderedDict[int, np.ndarray] = OrderedDict()

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: Any) -> Any:
        """Returns a photograph.

        Args:
            index: its number.

        Raises:
            DataError: naming the file, if it cannot be read.
        """
        picture = self._memory.pop(index, None)
        if picture is None:
            image = unit(self.files.image(range(len(self))[index])).permute(1, 2, 0)
            picture = as_bytes(image.numpy())
        self._memory[index] = picture
        while len(self._memory) > 1 and sum(x.nbytes for x in self._memory.values()) > self.kept:
            self._memory.popitem(last=False)
        return picture
