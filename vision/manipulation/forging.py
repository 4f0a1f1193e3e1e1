"""Forged images: splices, copies and removals between pictures of different JPEG histories.

A picture is compressed once, a region of it is replaced, and the whole is compressed again: what
was put in has another history of compression, another grid of blocks, or no noise. The mask is the
region that was replaced, to the pixel.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from longseq.core.errors import DataError

KINDS = ("splice", "copy", "removal")


@dataclass(frozen=True)
class Forgery:
    """A forged image.

    Args:
        before: the picture after its first compression, bytes (H, W, 3).
        changed: with the region replaced, before the last compression, likewise.
        mask: which pixels were replaced, bool (H, W).
        kind: one of ``KINDS``, or "authentic".
        first: quality of the picture's first compression.
        donor: that of the region's; 0 where it came from the picture itself.
        last: quality of the last compression, in which the image is to be saved.
    """

    before: np.ndarray
    changed: np.ndarray
    mask: np.ndarray
    kind: str
    first: int
    donor: int
    last: int


def compressed(picture: np.ndarray, quality: int) -> np.ndarray:
    """Returns a picture after JPEG compression, bytes (H, W, 3).

    Args:
        picture: bytes (H, W, 3).
        quality: Pillow's, 1 to 95 and above.
    """
    from PIL import Image

    with Image.open(io.BytesIO(as_jpeg(picture, quality))) as image:
        return np.asarray(image.convert("RGB"))


def as_jpeg(picture: np.ndarray, quality: int) -> bytes:
    """Returns a picture as the bytes of a JPEG file."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "JPEG", quality=quality)
    return stream.getvalue()


def random_region(random: np.random.Generator, side: int) -> np.ndarray:
    """Returns a blob of 3% to 25% of a square, bool (side, side).

    Args:
        random: draws it.
        side: in pixels.
    """
    rows, columns = np.mgrid[:side, :side]
    y, x = random.uniform(0.25, 0.75, 2) * side
    turn = np.arctan2(rows - y, columns - x)
    radius = random.uniform(0.12, 0.26) * side
    edge = np.ones((side, side))
    for wave in range(2, 6):
        edge += random.uniform(0, 0.25) / wave * np.cos(wave * turn + random.uniform(0, 2 * np.pi))
    stretch = random.uniform(0.7, 1.4)
    region = np.hypot((rows - y) * stretch, (columns - x) / stretch) < radius * edge
    region[round(y), round(x)] = True
    return region


def fill(picture: np.ndarray, region: np.ndarray, rounds: int = 60) -> np.ndarray:
    """Returns a picture whose region goes on smoothly from its border (heat flow from the nearest
    pixels outside).

    Args:
        picture: bytes (H, W, 3).
        region: bool (H, W), not the whole.
        rounds: of smoothing.
    """
    from scipy import ndimage

    _, nearest = ndimage.distance_transform_edt(region, return_indices=True)
    filled = picture[tuple(nearest)].astype(np.float32)
    for _ in range(rounds):
        smooth = ndimage.uniform_filter(filled, (3, 3, 1), mode="nearest")
        filled[region] = smooth[region]
    return np.where(region[..., None], np.rint(filled), picture).astype(np.uint8)


def _cut(random: np.random.Generator, picture: np.ndarray, side: int) -> np.ndarray:
    height, width = picture.shape[:2]
    if min(height, width) < side:
        raise DataError(f"a photograph of {width} × {height} pixels is smaller than {side}")
    top, left = random.integers(height - side + 1), random.integers(width - side + 1)
    return picture[top : top + side, left : left + side]


def forge(
    random: np.random.Generator,
    photographs: Sequence[np.ndarray],
    side: int,
    authentic: float = 0.1,
) -> Forgery:
    """Returns one forged image.

    Args:
        random: draws everything.
        photographs: bytes (H, W, 3), sides of at least ``side`` + 8.
        side: of the image in pixels, at least 16.
        authentic: share of the images in which nothing is replaced.

    Raises:
        DataError: if a photograph is too small.
    """
    qualities = [int(random.integers(low, high)) for low, high in ((55, 96), (55, 96), (90, 99))]
    first, donor, last = qualities
    chosen = int(random.integers(len(photographs)))
    before = compressed(_cut(random, photographs[chosen], side), first)
    region = random_region(random, side)
    kind = "authentic" if random.random() < authentic else KINDS[int(random.integers(len(KINDS)))]
    if kind == "authentic":
        return Forgery(before, before, np.zeros_like(region), kind, first, 0, last)
    if kind == "splice":
        other = int(random.integers(len(photographs)))
        patch = compressed(_cut(random, photographs[other], side + 8), donor)
        down, right = random.integers(8, size=2)  # its grid of blocks is not the picture's
        source = patch[down : down + side, right : right + side]
    else:
        donor = 0
        if kind == "copy":  # at least a tenth of the picture away
            shift = random.integers(side // 10, side - side // 10, 2)
            source = np.roll(before, tuple(shift), (0, 1))
        else:
            source = fill(before, region)
    changed = np.where(region[..., None], source, before)
    return Forgery(before, changed, region, kind, first, donor, last)
