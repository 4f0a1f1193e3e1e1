"""What an image file holds, and how it becomes the channels and values that a model sees."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from longseq.core.errors import ConfigError, DataError, did_you_mean

Page = int | Literal["channels"] | None
Range = Literal["auto", "type", "train"]
LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)
"""Weights of red, green and blue in a grey value (ITU-R BT.601)."""
NOT_A_NUMBER = (
    "the model's result is not a number",
    "its pixels may lie far outside the range of the training images",
)
"""What is wrong with an image that leads a model beyond numbers, and why."""
MAX_PIXELS = 178_956_970
"""Pillow's own limit: what is larger may be a small file made to fill the memory."""


@dataclass(frozen=True)
class Where:
    """An image's place, for messages.

    Args:
        path: file, or archive.
        record: the archive's member; None for a file.
    """

    path: Any
    record: str | None = None

    def error(self, message: str, hint: str | None = None) -> DataError:
        """Returns the error that names this image."""
        return DataError(message, path=self.path, record=self.record, hint=hint)


@dataclass
class Pixels:
    """An image file's pixels as they are stored, the right way up.

    Args:
        array: (pages, H, W, bands), in the file's own dtype.
        colour: "grey", "rgb" or "bands": what the bands are, alpha apart.
        alpha: "straight" or "premultiplied" if the last band is opacity, otherwise None.
        bits: of a value, where it is an unsigned integer of fewer bits than its dtype has.
        missing: where pixels are no data, like the array; None if the file says nothing of it.
    """

    array: np.ndarray
    colour: str
    alpha: str | None = None
    bits: int | None = None
    missing: np.ndarray | None = None


@dataclass(frozen=True)
class Reading:
    """How files become channels; it travels in the checkpoint, so that predictions read alike.

    Args:
        channels: 1 for grey, 3 for colour, or the number of bands.
        bands: numbers of the stored bands to take, from 0; None for all.
        page: of a stack: its number from 0, or "channels": the pages are the channels.
        background: behind transparent pixels: 0 black, 1 white.
        ranges: dtype → (low, high) of stored values that become 0 and 1; a dtype that is absent
            and has no range of its own is refused.
        truncated: whether a file that ends early is kept, with what is missing left grey or black.
        max_pixels: a larger image is refused.
        whole: whether an image of whole numbers stays one where pixels are missing; otherwise it
            becomes one of floats, as for checkpoints of earlier versions.
    """

    channels: int = 3
    bands: tuple[int, ...] | None = None
    page: Page = None
    background: float = 1.0
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    truncated: bool = False
    max_pixels: int = MAX_PIXELS
    whole: bool = True

    def __post_init__(self) -> None:
        wrong = isinstance(self.channels, bool) or not isinstance(self.channels, int)
        if wrong or self.channels < 1:
            raise ConfigError(f"channels must be an integer of at least 1, got {self.channels!r}")
        bands = self.bands
        if bands is not None and (len(bands) != self.channels or min(bands) < 0):
            raise ConfigError(
                f"bands must be {self.channels} numbers from 0, one for each channel, got "
                f"{list(bands)}"
            )
        if isinstance(self.page, str) and self.page != "channels":
            raise ConfigError(f"page must be a number from 0 or 'channels', got {self.page!r}")
        if not 0 <= self.background <= 1:
            raise ConfigError(f"background must lie between 0 and 1, got {self.background}")

    def facts(self) -> dict[str, Any]:
        """Returns the fields as plain values."""
        return asdict(self)

    @classmethod
    def of(cls, preprocess: Mapping[str, Any]) -> Reading:
        """Returns the reading that a checkpoint's preprocessing names.

        Args:
            preprocess: of ``ImageClassifier``; earlier versions knew channels only.
        """
        known = dict(preprocess.get("reading") or {"channels": preprocess.get("channels", 3)})
        known.setdefault("whole", False)
        if known.get("bands") is not None:
            known["bands"] = tuple(known["bands"])
        known["ranges"] = {k: (float(a), float(b)) for k, (a, b) in known.get("ranges", {}).items()}
        return cls(**known)


def oriented(array: np.ndarray, orientation: int) -> np.ndarray:
    """Returns an image turned and mirrored as its orientation tag (EXIF and TIFF 274) says.

    Args:
        array: (H, W, …) as stored.
        orientation: 1 to 8; anything else is taken for 1.
    """
    if orientation in (5, 6, 7, 8):
        array = np.swapaxes(array, 0, 1)
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    return array[:, ::-1] if orientation in (2, 3, 6, 7) else array


def pick_page(count: int, reading: Reading, where: Where, what: str = "pages") -> list[int]:
    """Returns which pages of a file to read.

    Args:
        count: pages that there are.
        reading: what is asked for.
        where: the file.
        what: the pages' name.

    Raises:
        DataError: if there are several and none is chosen, or the chosen one is not there.
    """
    if reading.page == "channels" or (
        count > 1 and reading.page is None and count == reading.channels and count not in (1, 3)
    ):
        return list(range(count))
    if reading.page is None:
        if count > 1:
            raise where.error(
                f"is a stack of {count} {what}",
                "choose one with data.page, or predict --page (0 is the first), or set data.page "
                f"to channels and data.channels to {count}",
            )
        return [0]
    if not 0 <= int(reading.page) < count:
        raise where.error(f"has {count} {what}, data.page is {reading.page}")
    return [int(reading.page)]


def stored(pixels: Pixels, reading: Reading, where: Where) -> np.ndarray:
    """Returns the bands that the model sees, (H, W, C), in the file's own dtype or float32.

    Args:
        pixels: of the file, the pages already chosen.
        reading: what is asked for.
        where: the file.

    Raises:
        DataError: if the file has other bands than are asked for.
    """
    array, missing = pixels.array, pixels.missing
    if array.dtype.kind not in "buif":
        raise where.error(f"holds values of type {array.dtype}, which are no brightness")
    if len(array) > 1 or reading.page == "channels":
        if array.shape[3] > 1:
            raise where.error(
                f"is a stack of pages of {array.shape[3]} bands each, which are no channels",
                "choose one page with data.page",
            )
        array = np.moveaxis(array[..., 0], 0, -1)[None]
        missing = None if missing is None else np.moveaxis(missing[..., 0], 0, -1)[None]
        colour, alpha = "bands", None
    else:
        colour, alpha = pixels.colour, pixels.alpha
    array, missing = array[0], None if missing is None else missing[0]
    if missing is not None and missing.any():
        array = _filled(array, missing, reading.whole, where)
    if reading.bands is not None:
        if max(reading.bands) >= array.shape[2]:
            raise where.error(
                f"has {array.shape[2]} bands, data.bands asks for number {max(reading.bands)} "
                "(0 is the first)"
            )
        return array[..., list(reading.bands)]
    if reading.channels not in (1, 3):
        return _exactly(array, reading.channels, where)
    if alpha is not None:
        array = _composed(array, alpha, reading.background, pixels.bits)
    if colour == "bands":
        return _exactly(array, reading.channels, where)
    if array.shape[2] == reading.channels:
        return array
    if array.shape[2] == 1:
        return np.repeat(array, 3, axis=2)
    if array.dtype == np.uint8:  # as Pillow does, to the bit
        weights = (19595, 38470, 7471)
        total = sum(array[..., i].astype(np.uint32) * w for i, w in enumerate(weights))
        return ((total + 0x8000) >> 16).astype(np.uint8)[..., None]
    if array.dtype.kind == "f":
        return (array.astype(np.float32) @ LUMINANCE)[..., None]
    # Whole numbers stay what they are: their range is that of the file's type.
    grey = array.astype(np.float64) @ LUMINANCE.astype(np.float64)
    return np.rint(grey).clip(*(full_scale(array.dtype) or (0, 1))).astype(array.dtype)[..., None]


def _exactly(array: np.ndarray, channels: int, where: Where) -> np.ndarray:
    if array.shape[2] != channels:
        raise where.error(
            f"has {array.shape[2]} bands, data.channels is {channels}",
            f"set data.channels and model.in_chans to {array.shape[2]}, or choose with data.bands",
        )
    return array


def _filled(array: np.ndarray, missing: np.ndarray, whole: bool, where: Where) -> np.ndarray:
    """Returns an image whose missing pixels have the mean of their band: nothing to learn there."""
    floats = array.dtype.kind == "f"
    array = array.copy() if floats or whole else array.astype(np.float32)
    for band in range(array.shape[2]):
        hole = missing[..., band]
        if hole.all():
            raise where.error(f"has no valid pixel in band {band}")
        if hole.any():
            mean = array[..., band][~hole].mean(dtype=np.float64)
            array[..., band][hole] = mean if array.dtype.kind == "f" else np.rint(mean)
    return array


def full_scale(dtype: np.dtype, bits: int | None = None) -> tuple[float, float] | None:
    """Returns the least and greatest value that a type of pixels can have; None for floats."""
    if dtype.kind == "f":
        return None
    if bits is not None and dtype.kind == "u":
        return 0.0, float(2**bits - 1)
    limits = np.iinfo(dtype)
    return float(limits.min), float(limits.max)


_SEEN: ContextVar[list[None] | None] = ContextVar("_SEEN", default=None)


@contextmanager
def seeing_transparency() -> Iterator[list[None]]:
    """Gives a list that becomes longer with every image that is read and has transparent pixels,
    which ``stored`` lays over a background."""
    found: list[None] = []
    before = _SEEN.set(found)
    try:
        yield found
    finally:
        _SEEN.reset(before)


def _composed(array: np.ndarray, alpha: str, background: float, bits: int | None) -> np.ndarray:
    """Returns colours over a plain background, without the alpha band."""
    limits = full_scale(array.dtype, bits) or (0.0, 1.0)
    colours, opacity = array[..., :-1].astype(np.float32), array[..., -1:].astype(np.float32)
    opacity = opacity / limits[1]
    seen = _SEEN.get()
    if seen is not None and (opacity < 1).any():
        seen.append(None)
    front = colours if alpha == "premultiplied" else colours * opacity
    mixed = front + background * limits[1] * (1 - opacity)
    whole = array.dtype.kind in "ui"
    return np.rint(mixed).clip(*limits).astype(array.dtype) if whole else mixed


def key_of(dtype: np.dtype) -> str:
    """Returns the name under which a type's range is kept: float16 to float64 are one."""
    return "float" if dtype.kind == "f" else dtype.name


def to_unit(array: np.ndarray, reading: Reading, where: Where) -> Tensor:
    """Returns an image with its range at 0 to 1: float32 (C, H, W), or bytes where 0 to 255 is it.

    Values outside a learnt range are kept outside [0, 1], not cut off.

    Args:
        array: from ``stored``.
        reading: with its ranges.
        where: the file.

    Raises:
        DataError: for a type of pixels of which no range is known.
    """
    key = key_of(array.dtype)
    bounds = reading.ranges.get(key)
    plain = np.ascontiguousarray(array.transpose(2, 0, 1))
    if bounds is None and array.dtype == np.uint8:
        return torch.from_numpy(plain)
    if bounds is None:
        known = ", ".join(sorted(reading.ranges)) or "uint8"
        raise where.error(
            f"has pixels of type {array.dtype}, of which no range is known (known: {known})",
            "set data.value_range to [low, high], to type, or to train where such images are among "
            "the training images",
        )
    low, high = bounds
    scaled = (plain.astype(np.float64 if plain.dtype.itemsize > 2 else np.float32) - low) / (
        high - low
    )
    return torch.from_numpy(scaled.astype(np.float32))


def unit(image: Tensor) -> Tensor:
    """Returns an image of a set (bytes, or float32 already) as float32 with its range at 0 to 1."""
    return image.float() / 255 if image.dtype == torch.uint8 else image


def learn_ranges(
    arrays: Sequence[tuple[np.ndarray, int | None]], value_range: Range | Sequence[float]
) -> dict[str, tuple[float, float]]:
    """Returns dtype → (low, high) of stored values that become 0 and 1.

    Args:
        arrays: training images from ``stored`` with their bits, a sample of them.
        value_range: "type": what the type can hold; "train": from the 0.1% to the 99.9% quantile of
            the training images; "auto": by type for bytes, otherwise as "train"; or low and high.

    Raises:
        ConfigError: for an unknown name, an empty range, or "type" with floats.
    """
    if not isinstance(value_range, str):
        if len(value_range) != 2 or not value_range[0] < value_range[1]:
            raise ConfigError(f"value_range must be low < high, got {list(value_range)}")
        low, high = (float(value) for value in value_range)
        return {key_of(array.dtype): (low, high) for array, _ in arrays}
    if value_range not in ("auto", "type", "train"):
        near = did_you_mean(value_range, ("auto", "type", "train"))
        raise ConfigError(f"value_range {value_range!r} is unknown; {near}, or [low, high]")
    groups: dict[str, list[np.ndarray]] = {}
    found: dict[str, tuple[float, float]] = {}
    for array, bits in arrays:
        key = key_of(array.dtype)
        if array.dtype == np.uint8 and value_range == "auto":
            continue
        if value_range == "type":
            limits = full_scale(array.dtype, bits)
            if limits is None:
                raise ConfigError(
                    "value_range is type, but there are images of floats, which have no range of "
                    "their own: set it to train or [low, high]"
                )
            found[key] = limits
            continue
        step = max(1, array.size // 65536)
        groups.setdefault(key, []).append(array.reshape(-1)[::step].astype(np.float64))
    for key, parts in groups.items():
        low, high = np.quantile(np.concatenate(parts), [0.001, 0.999])
        found[key] = (float(low), float(high) if high > low else float(low) + 1.0)
    if value_range == "type" and found.get("uint8") == (0.0, 255.0):
        del found["uint8"]  # bytes stay bytes
    return found
