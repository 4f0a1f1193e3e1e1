"""Clips from files, one frame at a time: folders of frames, multi-page TIFF, animated images."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from longseq.core.errors import DataError
from longseq.vision.data.images import FileImages, list_images, read_file
from longseq.vision.data.pillow import animated_frames
from longseq.vision.data.pixels import Pixels, Reading, Where, full_scale, stored
from longseq.vision.data.tiff import MAGIC, tiff_pages

_READING = Reading(channels=3)


def open_clip(path: str | Path) -> Iterator[tuple[str, Tensor]]:
    """Yields a clip's frames in order, as names and float32 (3, H, W) from 0 to 1; one at a time is
    held in memory.

    Args:
        path: a folder or zip of images, whose order is that of the numbers in their names; a TIFF
            of several pages; or an animated GIF, PNG or WebP. Integers are scaled by their type.

    Raises:
        DataError: if there are no frames, one cannot be read, or they differ in size.
    """
    root = Path(path)
    if not root.exists():
        raise DataError("no such clip", path=root, hint="give a folder of frames, a TIFF or a GIF")
    size: tuple[int, int] | None = None
    for name, where, frame in _frames(root):
        if size is not None and frame.shape[1:] != size:
            raise where.error(
                f"is a frame of {frame.shape[2]} × {frame.shape[1]} pixels, the clip began with "
                f"{size[1]} × {size[0]}"
            )
        size = (frame.shape[1], frame.shape[2])
        yield name, frame


def _frames(root: Path) -> Iterator[tuple[str, Where, Tensor]]:
    if root.is_dir() or root.suffix.lower() == ".zip":
        names = sorted(list_images(root), key=_natural)
        if not names:
            raise DataError("holds no images", path=root)
        images = FileImages(root, names, [0] * len(names), [], _READING)
        for i, name in enumerate(names):
            where = images.where(i)
            array, bits = read_file(images.content(i), _READING, where)
            pixels = Pixels(array[None], "rgb", bits=bits)
            yield Path(name).stem, where, _unit(pixels, where)
        return
    where = Where(root)
    with root.open("rb") as file:
        tiff = file.read(4).startswith(MAGIC)
    pages = tiff_pages(root, _READING, where) if tiff else animated_frames(root, _READING, where)
    for i, pixels in enumerate(pages):
        yield f"{i:06d}", Where(root, f"frame {i}"), _unit(pixels, where)


def _natural(name: str) -> list[tuple[int, str]]:
    """Returns a key by which frame10 comes after frame9."""
    return [(int(one), "") if one.isdecimal() else (-1, one) for one in re.split(r"(\d+)", name)]


def _unit(pixels: Pixels, where: Where) -> Tensor:
    """Returns a frame with its type's range at 0 to 1."""
    limits = full_scale(pixels.array.dtype, pixels.bits)
    if limits is None:
        raise where.error(
            f"holds pixels of type {pixels.array.dtype}, which have no range of their own",
            "save the frames as whole numbers",
        )
    array = torch.from_numpy(stored(pixels, _READING, where).astype("float32"))
    return ((array - limits[0]) / (limits[1] - limits[0])).permute(2, 0, 1)
