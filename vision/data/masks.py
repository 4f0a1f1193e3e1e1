"""Masks of classes, read without changing a value, and how images and masks are paired."""

from __future__ import annotations

import io
import sys
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from longseq.core.errors import DataError
from longseq.vision.data.images import FileImages, list_images
from longseq.vision.data.pillow import check_stored
from longseq.vision.data.pixels import Reading, Where, oriented
from longseq.vision.data.sources import by_part
from longseq.vision.data.tiff import MAGIC, check_directories

IGNORED = -1
"""Class of a pixel that neither trains nor counts."""
MAX_CLASSES = 256
_IMAGES, _MASKS = ("images", "image", "imgs"), ("masks", "mask", "labels", "annotations")
_LOSSY = ("JPEG", "MPO", "WEBP", "AVIF", "JPEG2000")
_ORIENTATION = 0x0112


def read_mask(content: bytes, where: Where) -> np.ndarray:
    """Returns a mask's values as they are stored, int64 (H, W); of a palette its indices.

    Args:
        content: the file's bytes: PNG, TIFF, BMP, GIF or .npy.
        where: the file, for messages.

    Raises:
        DataError: if it is damaged, lossy, of colours, or of anything but whole numbers.
    """
    if not content:
        raise where.error("the mask is empty")
    try:
        array = _values(content, where)
    except DataError:
        raise
    except (OSError, SyntaxError, ValueError, EOFError, zlib.error) as error:
        raise where.error("the mask is truncated or damaged, or no image") from error
    array = array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
    if array.ndim == 3 and array.shape[2] == 3 and (array == array[..., :1]).all():
        array = array[..., 0]  # grey, saved as colour
    if array.ndim != 2:
        raise where.error(
            f"has {array.shape[-1]} bands: a mask has one whole number for each pixel",
            "save it as grey or with a palette",
        )
    if array.dtype.kind == "f" and (array == np.rint(array)).all():
        array = array.astype(np.int64)
    if array.dtype.kind not in "bui":
        raise where.error(f"holds values of type {array.dtype}: a mask has whole numbers")
    if 0 in array.shape:
        raise where.error("has no pixels")
    return array.astype(np.int64)


def _values(content: bytes, where: Where) -> np.ndarray:
    """Returns the array of a mask file."""
    if content.startswith(b"\x93NUMPY"):
        return np.load(io.BytesIO(content), allow_pickle=False)
    if content.startswith(MAGIC):
        import tifffile

        try:
            check_directories(io.BytesIO(content))
            with tifffile.TiffFile(io.BytesIO(content)) as file:
                if len(file.series) != 1:
                    raise where.error(f"is a stack of {len(file.series)} images")
                found = file.series[0]
                page = found.keyframe
                tag = page.tags.get(_ORIENTATION)
                array = np.squeeze(found.asarray())
                if array.ndim == 3 and "S" not in found.axes:
                    raise where.error(
                        f"is a stack of {len(array)} pages: a mask has one", "save one of them"
                    )
                if int(page.photometric) == 0 and array.dtype.kind in "bu":  # white is zero
                    array = 2 ** int(page.bitspersample) - 1 - array.astype(np.int64)
        except DataError:
            raise
        except Exception as error:  # of damaged bytes tifffile may raise anything
            raise where.error("the mask is truncated or damaged") from error
        return oriented(array, 1 if tag is None else int(tag.value))
    from PIL import Image

    check_stored(content, where)
    with Image.open(io.BytesIO(content)) as image:
        if image.format in _LOSSY:
            raise where.error(
                f"is a {image.format}, whose compression may change a mask's values",
                "save masks as PNG or TIFF",
            )
        count = int(getattr(image, "n_frames", 1))
        if count > 1:
            said = f"is an animation of {count} frames: a mask has one"
            raise where.error(said, "save one of them")
        image.load()
        if image.mode in ("LA", "RGBA", "PA"):
            raise where.error(
                "has transparency: a mask has one whole number for each pixel",
                "save it as grey or with a palette",
            )
        return oriented(np.asarray(image), image.getexif().get(_ORIENTATION, 1))


class MaskedImages(FileImages):
    """Images in a folder or zip with a mask each.

    Args:
        root: the folder or the zip.
        names: paths of the images inside it.
        masks: paths of their masks.
        reading: how images become channels.
    """

    def __init__(
        self, root: Path, names: Sequence[str], masks: Sequence[str], reading: Reading
    ) -> None:
        super().__init__(root, names, [0] * len(names), [], reading)
        self._masks = FileImages(root, masks, [0] * len(masks), [], reading)

    def mask(self, index: int) -> np.ndarray:
        """Returns the mask of image ``index``, int64 (H, W), as stored."""
        return read_mask(self._masks.content(index), self._masks.where(index))

    def mask_where(self, index: int) -> Where:
        """Returns the mask's place, for messages."""
        return self._masks.where(index)


@dataclass(frozen=True)
class Values:
    """Which stored values of masks are which classes.

    Args:
        values: the stored value of every class, from class 0; empty for "not zero is class 1".
        ignored: the stored value of pixels that neither train nor count; None for none.
        binary: whether every value but 0 is class 1, for example numbers of objects.
    """

    values: tuple[int, ...]
    ignored: int | None = None
    binary: bool = False

    def classes(self, mask: np.ndarray, where: Where) -> np.ndarray:
        """Returns a mask as classes, int64 (H, W), ``IGNORED`` where it says nothing.

        Args:
            mask: as stored.
            where: its file.

        Raises:
            DataError: for a value that is no class.
        """
        skip = np.zeros(mask.shape, bool) if self.ignored is None else mask == self.ignored
        if self.binary:
            return np.where(skip, IGNORED, (mask != 0).astype(np.int64))
        known = np.asarray(sorted(self.values))
        place = np.searchsorted(known, mask).clip(max=len(known) - 1)
        wrong = (known[place] != mask) & ~skip
        if wrong.any():
            found = np.unique(mask[wrong])[:5].tolist()
            raise where.error(
                f"holds {', '.join(map(str, found))}, which is the value of no class (those of "
                f"training: {', '.join(map(str, self.values[:10]))})",
                "data.ignore_value names pixels to leave out; data.binary takes all but 0 as one "
                "class",
            )
        number = np.asarray([self.values.index(int(value)) for value in known])
        return np.where(skip, IGNORED, number[place])


def find_values(masks: Sequence[tuple[np.ndarray, Where]], ignored: int | None) -> tuple[int, ...]:
    """Returns the values that masks hold, sorted.

    Args:
        masks: of training images, as stored, and their places.
        ignored: a value that is no class.

    Raises:
        DataError: if there are fewer than two, or so many that they are no classes.
    """
    found: set[int] = set()
    for mask, where in masks:
        found |= set(np.unique(mask).tolist())
        if len(found) > MAX_CLASSES:
            raise where.error(
                f"with it, the masks hold more than {MAX_CLASSES} values: these are no classes",
                "data.binary takes all but 0 as one class, as for numbers of objects",
            )
    found -= set() if ignored is None else {ignored}
    if len(found) < 2:
        shown = ", ".join(map(str, sorted(found))) or "none"
        raise DataError(f"the masks hold one value only ({shown})", path=masks[0][1].path)
    return tuple(sorted(found))


def open_pairs(source: str | Path, reading: Reading) -> dict[str, MaskedImages]:
    """Returns the parts of a set of images with masks: "train", and perhaps "valid" and "test".

    Images lie in a folder ``images/``, masks beside it in ``masks/`` under the same name, whatever
    their endings, or with ``_mask`` behind it; both in ``train/``, ``valid/`` and ``test/``, or
    alone.

    Args:
        source: folder or zip.
        reading: how images become channels.

    Raises:
        DataError: if there are none, or an image has no mask.
    """
    root = Path(source)
    if not root.exists():
        raise DataError("no such folder or file", path=root, hint="give a folder or a zip")
    if root.is_file() and root.suffix.lower() != ".zip":
        raise DataError("is neither a folder nor a zip", path=root)
    images: dict[str, list[str]] = {}
    masks: dict[tuple[str, str], list[str]] = {}
    for part, names in by_part(root, list_images(root)).items():
        for name in names:
            parts = [part.lower() for part in PurePosixPath(name).parts[:-1]]
            if any(one in _MASKS for one in parts):
                masks.setdefault((part, _key(name, _MASKS)), []).append(name)
            elif any(one in _IMAGES for one in parts):
                images.setdefault(part, []).append(name)
    if "train" not in images:
        raise DataError(
            "holds no images with masks", path=root, hint="expected images/ and masks/ side by side"
        )
    found = {}
    for part, names in images.items():
        chosen = []
        for name in names:
            key = (part, _key(name, _IMAGES))
            mine = masks.pop(key, None) or masks.pop((part, f"{key[1]}_mask"), [])
            if len(mine) != 1:
                what = "has no mask" if not mine else f"has {len(mine)} masks"
                raise DataError(
                    what,
                    path=root,
                    record=name,
                    hint="expected one file of the same name, without its ending, in masks/",
                )
            chosen += mine
        found[part] = MaskedImages(root, names, chosen, reading)
    if masks:
        left = [name for names in masks.values() for name in names]
        print(f"note: {root}: {len(left)} masks without an image: {left[0]}, …", file=sys.stderr)
    return found


def _key(name: str, kinds: Sequence[str]) -> str:
    """Returns the path of an image or mask without its kind's folder and its ending."""
    path = PurePosixPath(name)
    folders = [part for part in path.parts[:-1] if part.lower() not in kinds]
    base = path.name[:-7] if path.name.lower().endswith(".nii.gz") else path.stem
    return "/".join([*folders, base])
