"""Images by number, wherever they lie: arrays in memory, files in folders, members of a zip."""

from __future__ import annotations

import io
import os
import sys
import zipfile
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from tokenize import TokenError
from typing import Any

import numpy as np
from torch import Tensor

from longseq.core.errors import DataError
from longseq.core.files import ZIP_ERRORS
from longseq.core.formats import Formats
from longseq.vision.data.medical import is_dicom, read_dicom, read_nifti
from longseq.vision.data.pillow import read_pillow
from longseq.vision.data.pixels import Pixels, Reading, Where, stored, to_unit
from longseq.vision.data.tiff import MAGIC, read_tiff

SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".bmp", ".dib", ".gif", ".webp"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".jp2", ".j2k", ".jxl", ".avif", ".heic", ".heif"),
    *(".tif", ".tiff", ".dcm", ".nii", ".nii.gz", ".npy"),
)

MAX_BYTES = 1 << 29
"""A larger member of a zip is refused: it may be a small file made to fill the memory."""

FORMATS: Formats[Callable[[bytes], np.ndarray]] = Formats("image")
"""Images of other formats: a reader takes a file's bytes and returns (H, W) or (H, W, bands)."""


def read_file(content: bytes, reading: Reading, where: Where) -> tuple[np.ndarray, int | None]:
    """Returns the bands that are asked for (H, W, C), as stored, and the bits of a value.

    Args:
        content: the file's bytes; its kind is told by its beginning, not by its name, but for the
            suffixes of ``FORMATS``.
        reading: how files become channels.
        where: the file, for messages.

    Returns:
        The array in the file's own dtype (float32 where pixels were computed), and the number of
        bits that values use where their dtype has more, or None.

    Raises:
        DataError: if it is empty, damaged, no image, or other than what is asked for.
    """
    if not content:
        raise where.error("the image is empty")
    if FORMATS.suffix_of(where.record or where.path):
        pixels = _read_outside(content, where)
    elif content.startswith(MAGIC):
        pixels = read_tiff(content, reading, where)
    elif content.startswith(b"\x93NUMPY"):
        pixels = _read_npy(content, reading, where)
    elif is_dicom(content):
        pixels = read_dicom(content, reading, where)
    elif content[:2] == b"\x1f\x8b" or content[344:348] in (b"n+1\0", b"ni1\0"):
        pixels = read_nifti(content, reading, where)
    else:
        pixels = read_pillow(content, reading, where)
    if min(pixels.array.shape[1:]) == 0:
        raise where.error("has no pixels")
    return stored(pixels, reading, where), pixels.bits


def _read_npy(content: bytes, reading: Reading, where: Where) -> Pixels:
    """Reads an array of numpy, (H, W) or (H, W, bands)."""
    try:
        array = np.load(io.BytesIO(content), allow_pickle=False)
    except (
        ValueError,
        EOFError,
        OSError,
        SyntaxError,
        TokenError,
        TypeError,
        KeyError,
        OverflowError,
        MemoryError,
    ) as error:
        raise where.error("is not an array of numbers, or is truncated") from error
    return _pixels_of(array, where)


def _read_outside(content: bytes, where: Where) -> Pixels:
    """Reads an image by the reader that its suffix is registered for."""
    array = FORMATS.read(where.record or where.path, content)
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "buif":
        raise where.error("its reader returned no numpy array of numbers")
    return _pixels_of(array, where)


def _pixels_of(array: np.ndarray, where: Where) -> Pixels:
    if array.ndim not in (2, 3):
        raise where.error(f"has the shape {array.shape}, not (H, W) or (H, W, bands)")
    array = array.astype(array.dtype.newbyteorder("="))
    array = array.astype(np.uint8) * 255 if array.dtype.kind == "b" else array
    array = array[None, ..., None] if array.ndim == 2 else array[None]
    missing = ~np.isfinite(array) if array.dtype.kind == "f" else None
    return Pixels(array, "grey" if array.shape[3] == 1 else "bands", missing=missing)


def decode(content: bytes, reading: Reading, path: str | Path, record: str | None = None) -> Tensor:
    """Returns an image (C, H, W): bytes, or float32 with its range at 0 to 1.

    Args:
        content: the file's bytes.
        reading: how files become channels.
        path: the file or archive, for messages.
        record: the archive's member.

    Raises:
        DataError: as ``read_file``, and for a type of pixels of which no range is known.
    """
    where = Where(path, record)
    return to_unit(read_file(content, reading, where)[0], reading, where)


class ImageSet(ABC):
    """Images with labels, by number.

    Args:
        labels: class of every image (N,); empty if there are none.
        classes: names of the classes.
        reading: how they become channels.
    """

    def __init__(
        self, labels: Sequence[int] | np.ndarray, classes: Sequence[str], reading: Reading
    ) -> None:
        self.labels, self.classes = np.asarray(labels, np.int64), list(classes)
        self.reading = reading
        self.targets: np.ndarray | None = None
        """Rows of labels (N, K), where images have any number of them."""

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def stored(self, index: int) -> tuple[np.ndarray, int | None]:
        """Returns image ``index`` (H, W, C) in its own dtype, and its bits; see ``read_file``."""

    def image(self, index: int) -> Tensor:
        """Returns image ``index`` (C, H, W): bytes, or float32 with its range at 0 to 1."""
        return to_unit(self.stored(index)[0], self.reading, self.where(index))

    def where(self, index: int) -> Where:
        """Returns its place, for messages."""
        return Where(f"image {index}")

    def name(self, index: int) -> str:
        """Returns a name for messages and results."""
        return str(index)

    @property
    def in_memory(self) -> bool:
        """Whether all images are read, so that none can turn out to be damaged."""
        return False


class ArrayImages(ImageSet):
    """Images that are in memory.

    Args:
        images: bytes (N, H, W) or (N, H, W, C).
        labels: (N,).
        classes: names.
        reading: 1 channel makes luminance of colour, 3 repeat grey.
    """

    in_memory = True

    def __init__(
        self, images: np.ndarray, labels: np.ndarray, classes: Sequence[str], reading: Reading
    ) -> None:
        super().__init__(labels, classes, reading)
        self.images = images[..., None] if images.ndim == 3 else images

    def stored(self, index: int) -> tuple[np.ndarray, int | None]:
        image = self.images[index]
        colour = {1: "grey", 3: "rgb"}.get(image.shape[2], "bands")
        return stored(Pixels(image[None], colour), self.reading, self.where(index)), None


class FileImages(ImageSet):
    """Image files in a folder or in a zip, decoded when asked for.

    Args:
        root: the folder or the zip.
        names: paths inside it.
        labels: (N,).
        classes: names.
        reading: how they become channels.
    """

    def __init__(
        self,
        root: Path,
        names: Sequence[str],
        labels: Sequence[int],
        classes: Sequence[str],
        reading: Reading,
    ) -> None:
        super().__init__(labels, classes, reading)
        self.root, self.names = root, list(names)
        self._archive: zipfile.ZipFile | None = None
        self._owner = 0

    def __getstate__(self) -> dict[str, Any]:  # a worker process opens the archive for itself
        return {**self.__dict__, "_archive": None}

    def _read(self, name: str) -> bytes:
        if self.root.is_dir():
            return (self.root / name).read_bytes()
        # A forked worker shares its parent's position in the file: it opens the archive for itself.
        if self._archive is None or self._owner != os.getpid():
            self._archive, self._owner = zipfile.ZipFile(self.root), os.getpid()
        if self._archive.getinfo(name).file_size > MAX_BYTES:
            message = f"unpacks to more than {MAX_BYTES >> 20} MiB"
            raise DataError(message, path=self.root, record=name)
        return self._archive.read(name)

    def where(self, index: int) -> Where:
        name = self.names[index]
        return Where(self.root / name) if self.root.is_dir() else Where(self.root, name)

    def content(self, index: int) -> bytes:
        """Returns the bytes of file ``index``.

        Raises:
            DataError: naming the file, if it cannot be read.
        """
        try:
            return self._read(self.names[index])
        except MemoryError as error:  # LZMA asks for what its header says, up to 4 GiB
            raise self.where(index).error("asks for more memory than there is") from error
        except ZIP_ERRORS as error:
            if isinstance(error, DataError):
                raise
            raise self.where(index).error("cannot be read") from error

    def stored(self, index: int) -> tuple[np.ndarray, int | None]:
        """Returns image ``index`` (H, W, C) in its own dtype, and its bits.

        Raises:
            DataError: naming the file, if it cannot be read.
        """
        return read_file(self.content(index), self.reading, self.where(index))

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
            names = sorted(info.filename for info in archive.infolist() if not info.is_dir())
    except ZIP_ERRORS as error:
        raise DataError("is not a zip archive, or is truncated", path=path) from error
    # Results are written under the names of their images.
    ways = (name for name in names if name.startswith("/") or ".." in name.split("/"))
    if outside := next(ways, ""):
        said = "has a member whose path leads outside of it"
        raise DataError(said, path=path, record=outside, hint="pack it again by relative paths")
    return names


def list_files(root: Path) -> list[str]:
    """Returns the paths of all files in a folder or zip, relative to it, sorted; hidden ones left
    out.

    Args:
        root: folder or zip.
    """
    if not root.is_dir():
        names: Iterable[str] = open_zip(root)
    else:
        # Paths as text: a hundred thousand Path objects take seconds.
        base = str(root)
        names = sorted(
            "/".join([*where, name])
            for folder, files in _walk(base)
            for where in [[] if folder == base else os.path.relpath(folder, base).split(os.sep)]
            for name in files
        )
    hidden = (".", "__MACOSX")
    return [name for name in names if not any(part.startswith(hidden) for part in name.split("/"))]


def _walk(base: str) -> Iterator[tuple[str, list[str]]]:
    """Yields folders with their files; links to folders are followed, but not back to where they
    lie."""
    for folder, folders, files in os.walk(base, followlinks=True):
        yield folder, files
        inside = os.path.relpath(folder, base).split(os.sep)
        above = [os.path.join(base, *inside[:depth]) for depth in range(len(inside) + 1)]
        for name in [one for one in folders if os.path.islink(os.path.join(folder, one))]:
            target = os.path.realpath(os.path.join(folder, name))
            if any(os.path.commonpath([target, os.path.realpath(one)]) == target for one in above):
                folders.remove(name)


def named(root: Path, suits: Callable[[str], bool], kind: str) -> list[str]:
    """Returns the files of a folder or zip whose names suit, as ``list_files``; says on stderr
    which do not, where some do.

    Args:
        root: folder or zip.
        suits: whether a file's name does.
        kind: what these files are, for the message: "images".
    """
    files = list_files(root)
    found = [name for name in files if suits(name)]
    if found and len(files) > len(found):
        others = sorted(set(files) - set(found))
        kinds = Counter(PurePosixPath(name).suffix.lower() or "no ending" for name in others)
        shown = ", ".join(f"{count} {ending}" for ending, count in kinds.most_common(4))
        more = ", …" if len(kinds) > 4 else ""
        print(
            f"note: {root}: left out, not {kind} by name: {shown}{more}, such as {others[0]}",
            file=sys.stderr,
        )
    return found


def list_images(root: Path) -> list[str]:
    """Returns the images of a folder or zip, see ``named``."""
    return named(root, is_image, "images")


def is_image(name: str) -> bool:
    """Returns whether a file's name ends like an image's."""
    return name.lower().endswith(SUFFIXES) or FORMATS.suffix_of(name) is not None
