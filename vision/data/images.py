"""Images by number, wherever they lie: arrays in memory, files in folders, members of a zip."""

from __future__ import annotations

import io
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from longseq.core.errors import DataError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
_CACHE_BYTES = 1 << 30


def decode(content: bytes, channels: int, path: str | Path, record: str | None = None) -> Tensor:
    """Returns an image as bytes (C, H, W).

    Args:
        content: the file's bytes.
        channels: 1 for grey, 3 for RGB; transparency is left out.
        path: the file or archive, for messages.
        record: the archive's member.

    Raises:
        DataError: if it is empty, truncated or no image.
    """
    from PIL import Image, UnidentifiedImageError

    if not content:
        raise DataError("the image is empty", path=path, record=record)
    try:
        with Image.open(io.BytesIO(content)) as image:
            array = np.array(image.convert("L" if channels == 1 else "RGB"))
    except UnidentifiedImageError as error:
        raise DataError("is not an image of a known format", path=path, record=record) from error
    except Image.DecompressionBombError as error:
        raise DataError("the image is too large", path=path, record=record) from error
    except (OSError, SyntaxError, ValueError, EOFError, zlib.error) as error:
        raise DataError("the image is truncated or damaged", path=path, record=record) from error
    return torch.from_numpy(array.reshape(*array.shape[:2], channels)).permute(2, 0, 1)


class ImageSet(ABC):
    """Images with labels, by number.

    Args:
        labels: class of every image (N,); empty if there are none.
        classes: names of the classes.
    """

    def __init__(self, labels: Sequence[int] | np.ndarray, classes: Sequence[str]) -> None:
        self.labels, self.classes = np.asarray(labels, np.int64), list(classes)

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def image(self, index: int) -> Tensor:
        """Returns image ``index``, bytes (C, H, W)."""

    def name(self, index: int) -> str:
        """Returns a name for messages and results."""
        return str(index)

    def check(self) -> list[tuple[int, DataError]]:
        """Reads every image once and returns those that cannot be read, with the reason."""
        bad = []
        for index in range(len(self)):
            try:
                self.image(index)
            except DataError as error:
                bad.append((index, error))
        return bad


class ArrayImages(ImageSet):
    """Images that are in memory.

    Args:
        images: bytes (N, H, W) or (N, H, W, C).
        labels: (N,).
        classes: names.
        channels: 1 or 3; grey is repeated, colour becomes luminance.
    """

    def __init__(
        self, images: np.ndarray, labels: np.ndarray, classes: Sequence[str], channels: int
    ) -> None:
        super().__init__(labels, classes)
        images = images[..., None] if images.ndim == 3 else images
        if channels == 1 and images.shape[3] == 3:
            weights = np.array([0.299, 0.587, 0.114], np.float32)
            images = np.rint(images.astype(np.float32) @ weights).astype(np.uint8)[..., None]
        self.images, self.channels = images, channels

    def image(self, index: int) -> Tensor:
        """Returns image ``index``, bytes (C, H, W)."""
        found = torch.from_numpy(self.images[index].copy()).permute(2, 0, 1)
        return found.expand(self.channels, -1, -1)

    def check(self) -> list[tuple[int, DataError]]:
        """Returns nothing: arrays were checked when they were read."""
        return []


class FileImages(ImageSet):
    """Image files in a folder or in a zip, decoded when asked for and kept while memory allows.

    Args:
        root: the folder or the zip.
        names: paths inside it.
        labels: (N,).
        classes: names.
        channels: 1 or 3.
    """

    def __init__(
        self,
        root: Path,
        names: Sequence[str],
        labels: Sequence[int],
        classes: Sequence[str],
        channels: int,
    ) -> None:
        super().__init__(labels, classes)
        self.root, self.names, self.channels = root, list(names), channels
        self._archive: zipfile.ZipFile | None = None
        self._cache: dict[int, Tensor] = {}
        self._cached = 0

    def __getstate__(self) -> dict[str, Any]:  # a worker process opens the archive for itself
        return {**self.__dict__, "_archive": None}

    def _read(self, name: str) -> bytes:
        if self.root.is_dir():
            return (self.root / name).read_bytes()
        if self._archive is None:
            self._archive = zipfile.ZipFile(self.root)
        return self._archive.read(name)

    def image(self, index: int) -> Tensor:
        """Returns image ``index``, bytes (C, H, W).

        Raises:
            DataError: naming the file, if it cannot be read.
        """
        if index in self._cache:
            return self._cache[index]
        name = self.names[index]
        where = (self.root / name, None) if self.root.is_dir() else (self.root, name)
        try:
            content = self._read(name)
        except (
            OSError,
            zipfile.BadZipFile,
            RuntimeError,
            NotImplementedError,
            zlib.error,
        ) as error:
            raise DataError("cannot be read", path=where[0], record=where[1]) from error
        image = decode(content, self.channels, *where)
        if self._cached + image.numel() <= _CACHE_BYTES:
            self._cache[index] = image
            self._cached += image.numel()
        return image

    def name(self, index: int) -> str:
        """Returns the path inside the folder or zip."""
        return self.names[index]


def open_zip(path: Path) -> list[str]:
    """Returns the names of the files in a zip, sorted.

    Raises:
        DataError: if it is not a readable zip.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return sorted(info.filename for info in archive.infolist() if not info.is_dir())
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise DataError("is not a zip archive, or is truncated", path=path) from error


def list_files(root: Path) -> list[str]:
    """Returns the paths of all files in a folder or zip, relative to it, sorted; hidden ones left
    out.

    Args:
        root: folder or zip.
    """
    if not root.is_dir():
        names: Iterable[str] = open_zip(root)
    else:
        names = sorted(
            path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()
        )
    hidden = (".", "__MACOSX")
    return [name for name in names if not any(part.startswith(hidden) for part in name.split("/"))]


def is_image(name: str) -> bool:
    """Returns whether a file's name ends like an image's."""
    return name.lower().endswith(SUFFIXES)
