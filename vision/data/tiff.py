"""Reading TIFF and GeoTIFF through tifffile: any dtype, bands, stacks, no-data values."""

from __future__ import annotations

import importlib.util
import io
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from torch import Tensor

from longseq.core.errors import DataError
from longseq.vision.data.pillow import check_size, read_pillow
from longseq.vision.data.pixels import Pixels, Reading, Where, oriented, pick_page, stored, to_unit

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_NODATA, _ORIENTATION = 42113, 274
_PLAIN = (0, 1, 2)
"""Photometric kinds that are numbers as they stand: white is zero, black is zero, RGB."""
_MASK, _YCBCR, _JPEG = 4, 6, 7


def check_directories(file: BinaryIO, whole: bool = False) -> None:
    """Checks that a file's chain of images ends: tifffile would follow a ring for ever.

    Args:
        file: TIFF or BigTIFF, at its beginning.
        whole: whether the file must hold them all: tifffile leaves out those behind its end.

    Raises:
        ValueError: if an image's directory is met again, or is not there.
    """
    end = file.seek(0, 2) if whole else None
    file.seek(0)
    head = file.read(16)
    order: Literal["little", "big"] = "little" if head[:1] == b"I" else "big"
    big = head[2:4] in (b"+\0", b"\0+")
    many, size, each = (8, 8, 20) if big else (2, 4, 12)  # bytes of a count, an offset, a tag
    at = int.from_bytes(head[8:16] if big else head[4:8], order)
    seen = set[int]()
    while at:
        if at in seen:
            raise ValueError("the images' directories form a ring")
        seen.add(at)
        if end is not None and at >= end:
            raise ValueError("an image's directory lies behind the end of the file")
        file.seek(at)
        tags = int.from_bytes(file.read(many), order)
        file.seek(at + many + tags * each)
        at = int.from_bytes(file.read(size), order)  # 0 behind the end


def _is_plain(page: Any) -> bool:
    """Returns whether a page's values are numbers as they stand, or JPEG's colours, which tifffile
    makes RGB."""
    kind = int(page.photometric)
    jpeg = kind == _YCBCR and int(page.compression) == _JPEG
    return kind in _PLAIN or (jpeg and importlib.util.find_spec("imagecodecs") is not None)


def _pictures(series: Any) -> list[tuple[Any, Any]]:
    """Returns a file's images, each with its mask or None; smaller copies of them are left out."""
    found: list[tuple[Any, Any]] = []
    for one in series:
        page = one.keyframe
        if found and int(page.photometric) == _MASK:
            image, mask = found[-1]
            alike = (image.keyframe.imagelength, image.keyframe.imagewidth) == one.shape[-2:]
            if alike and mask is None:
                found[-1] = image, one
                continue
        if found and int(page.subfiletype) & 1:  # TIFF 6.0: a reduced version of another image
            continue
        found.append((one, None))
    return found


def read_tiff(content: bytes, reading: Reading, where: Where) -> Pixels:
    """Reads a TIFF file.

    Palettes, CMYK, YCbCr and Lab are left to Pillow.

    Args:
        content: the file's bytes.
        reading: what is asked for.
        where: the file.

    Raises:
        DataError: if it is damaged, or a stack with no page chosen.
    """
    try:
        import tifffile
    except ImportError:
        # Pillow reads the common kinds right, and names what it cannot.
        return read_pillow(content, reading, where)
    # What is wrong with a file is said by the error below, once.
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    try:
        check_directories(io.BytesIO(content))
        with tifffile.TiffFile(io.BytesIO(content)) as file:
            if not _is_plain(file.series[0].keyframe):
                return read_pillow(content, reading, where)
            images = _pictures(file.series)
            if len(images) > 1:
                alike = len({(one.shape, one.axes, one.dtype) for one, _ in images}) == 1
                chosen = pick_page(len(images), reading, where, "images")
                if len(chosen) > 1 and not alike:
                    raise where.error("has images of different sizes", "choose one with data.page")
                parts = [_series(*images[i], reading, where, whole=True) for i in chosen]
            else:
                parts = [_series(*images[0], reading, where, whole=False)]
    except DataError:
        raise
    except Exception as error:  # of damaged bytes tifffile and its decoders may raise anything
        if "imagecodecs" in str(error):
            raise where.error(
                f"is compressed in a way that needs a further package: {error}",
                "pip install imagecodecs",
            ) from error
        raise where.error("the image is truncated or damaged") from error
    first = parts[0]
    array = np.concatenate([one.array for one in parts])
    return Pixels(array, first.colour, first.alpha, first.bits, _join(parts))


def tiff_pages(path: Path, reading: Reading, where: Where) -> Iterator[Pixels]:
    """Yields the images of a TIFF file, (1, H, W, bands); one at a time is held in memory.

    Args:
        path: the file.
        reading: what is asked for.
        where: the file, for messages.

    Raises:
        DataError: if it is damaged, or has colours other than grey and RGB.
    """
    import tifffile

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    try:
        with path.open("rb") as opened:
            check_directories(opened, whole=True)
        with tifffile.TiffFile(path) as file:
            for number, page in enumerate(file.pages):
                page = page.aspage()
                if not _is_plain(page):
                    raise where.error(f"image {number} is neither grey nor RGB", "save it as RGB")
                yield _series(page, None, reading, where, whole=True)
    except DataError:
        raise
    except Exception as error:  # of damaged bytes tifffile and its decoders may raise anything
        raise where.error("the image is truncated or damaged") from error


@contextmanager
def open_bands(
    path: Path, reading: Reading, where: Where
) -> Iterator[tuple[Callable[[int, int], Tensor], int, int] | None]:
    """Yields a function from rows (first, last) to (C, rows, W), the height and the width of a TIFF
    file; its pixels stay on disk, unpacked if need be. None for what is not one plain image.

    Args:
        path: the file.
        reading: what is asked for.
        where: the file.
    """
    with path.open("rb") as opened:
        start = opened.read(4)
    if not start.startswith(MAGIC) or importlib.util.find_spec("tifffile") is None:
        yield None
        return
    import tifffile

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    with ExitStack() as stack:
        try:
            with path.open("rb") as opened:
                check_directories(opened)
            file = stack.enter_context(tifffile.TiffFile(path))
            one, page = file.series[0], file.series[0].keyframe
            turned = page.tags.get(_ORIENTATION)
            images = _pictures(file.series)
            plain = (
                len(images) == 1
                and images[0][1] is None
                and one.axes in ("YX", "YXS")
                and _is_plain(page)
                and int(page.photometric) != 0
                and (turned is None or int(turned.value) == 1)
                and not page.extrasamples
                # Pixels without data take the mean of the whole image.
                and one.dtype.kind in "ui"
                and page.tags.get(_NODATA) is None
                and int(page.bitspersample) == 8 * one.dtype.itemsize
            )
            array = one.asarray(out="memmap") if plain else None
        except Exception:  # noqa: BLE001 (read_tiff says what is wrong)
            array = None
        if array is None:
            yield None
            return
        array = array[..., None] if array.ndim == 2 else array
        colour = "rgb" if int(page.photometric) in (2, _YCBCR) else "grey"
        colour = colour if array.shape[2] == (3 if colour == "rgb" else 1) else "bands"

        def rows(first: int, last: int) -> Tensor:
            part = np.array(array[first:last])[None]
            part = part.astype(part.dtype.newbyteorder("="))
            pixels = Pixels(part, colour)
            return to_unit(stored(pixels, reading, where), reading, where)

        yield rows, int(one.shape[0]), int(one.shape[1])


def stored_dtype(path: Path) -> np.dtype | None:
    """Returns the type of a TIFF file's values; None for other files, and damaged ones.

    Args:
        path: the file.
    """
    with path.open("rb") as opened:
        start = opened.read(4)
    if not start.startswith(MAGIC) or importlib.util.find_spec("tifffile") is None:
        return None
    import tifffile

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    try:
        with path.open("rb") as opened:
            check_directories(opened)
        with tifffile.TiffFile(path) as file:
            found = np.dtype(file.series[0].dtype).newbyteorder("=")
            whole = found.kind in "ui" and int(file.series[0].keyframe.bitspersample) >= 8
    except Exception:  # noqa: BLE001 (read_tiff says what is wrong)
        return None
    return found if whole else None


def _join(parts: list[Pixels]) -> np.ndarray | None:
    """Returns the masks of several images as one."""
    if all(one.missing is None for one in parts):
        return None
    return np.concatenate(
        [np.zeros(p.array.shape, bool) if p.missing is None else p.missing for p in parts]
    )


def _series(series: Any, mask: Any, reading: Reading, where: Where, whole: bool) -> Pixels:
    """Returns one series of pages; ``mask`` is the one that says which pixels are data, or None,
    and ``whole`` whether its page was chosen already."""
    page, axes, shape = series.keyframe, series.axes, series.shape
    check_size(int(page.imagewidth), int(page.imagelength), reading, where)
    if "Y" not in axes or "X" not in axes:
        raise where.error(f"has the axes {axes}, which are no picture")
    array = series.asarray()
    if array.shape != shape or array.size == 0:
        raise ValueError("fewer pixels than the header says")
    # Samples (S), or else an own axis of channels (C), are bands; every other axis counts pages.
    band = "S" if "S" in axes else "C" if "C" in axes else ""
    others = [i for i, axis in enumerate(axes) if axis not in ("Y", "X", band)]
    order = [*others, axes.index("Y"), axes.index("X"), *([axes.index(band)] if band else [])]
    array = array.transpose(order)
    tail = array.shape[len(others) :]
    array = array.reshape(math.prod(array.shape[: len(others)]), *tail)
    array = array if band else array[..., None]
    chosen = [0] if whole and len(array) == 1 else pick_page(len(array), reading, where)
    array = array[chosen]

    missing = _missing(array, page)  # GDAL's value is of what is stored, not of what is shown
    bits, photometric = int(page.bitspersample), int(page.photometric)
    if array.dtype.kind == "b":
        array, bits = array.astype(np.uint8), 1
    if array.dtype.kind == "u" and photometric == 0:
        array = np.array(2**bits - 1, array.dtype) - array
    if array.dtype == np.uint8 and bits < 8:
        array = (array.astype(np.uint16) * 255 // (2**bits - 1)).astype(np.uint8)
    extra = [int(one) for one in page.extrasamples]
    colour = "rgb" if photometric in (2, _YCBCR) else "grey"
    alpha = None
    plain = 3 if colour == "rgb" else 1
    if band == "S" and len(extra) == 1 and extra[0] in (1, 2) and array.shape[3] == plain + 1:
        alpha = "premultiplied" if extra[0] == 1 else "straight"
    elif array.shape[3] != plain:
        colour = "bands"
    tag = page.tags.get(_ORIENTATION)
    turn = 1 if tag is None else int(tag.value)
    array = np.stack([oriented(one, turn) for one in array])
    used = bits if array.dtype.kind == "u" and 8 < bits < 8 * array.dtype.itemsize else None
    missing = None if missing is None else np.stack([oriented(one, turn) for one in missing])
    if mask is not None:
        hole = oriented(mask.asarray().reshape(mask.shape[-2:]) == 0, turn)[None, ..., None]
        hole = np.broadcast_to(hole, array.shape)
        missing = hole if missing is None else missing | hole
    return Pixels(array, colour, alpha, used, missing)


def _missing(array: np.ndarray, page: Any) -> np.ndarray | None:
    """Returns where an image has no data: not a number, or the value that GDAL's tag names."""
    found = ~np.isfinite(array) if array.dtype.kind == "f" else None
    tag = page.tags.get(_NODATA)
    if tag is None:
        return found
    try:
        value = float(str(tag.value).strip("\0 "))
    except ValueError:
        return found
    if math.isfinite(value):
        # A value that the type does not have is nowhere: -9999 is not 241 among bytes.
        limits = np.iinfo(array.dtype) if array.dtype.kind in "ui" else None
        if limits is not None and not (value == int(value) and limits.min <= value <= limits.max):
            return found
        here = array == np.asarray(value).astype(array.dtype)
        found = here if found is None else found | here
    return found
