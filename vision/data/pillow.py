"""Reading images through Pillow: photographs, palettes, transparency, orientation, frames."""

from __future__ import annotations

import contextlib
import importlib
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from longseq.core.errors import DataError
from longseq.vision.data.pixels import Pixels, Reading, Where, oriented, pick_page

_ORIENTATION = 0x0112
_WIDE = {2: "rgb", 4: "grey", 6: "rgb"}
"""PNG's colour types of more than one band: those that Pillow would cut down to bytes."""


@contextlib.contextmanager
def _settings(truncated: bool) -> Iterator[None]:
    """Pillow's two global settings for the time of one reading."""
    from PIL import Image, ImageFile

    before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
    Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = None, truncated
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = before


def check_size(width: int, height: int, reading: Reading, where: Where) -> None:
    """Checks an image's size before its pixels are read.

    Raises:
        DataError: if it has more pixels than allowed.
    """
    if width * height > reading.max_pixels:
        raise where.error(
            f"has {width:,} × {height:,} pixels, more than data.max_pixels "
            f"({reading.max_pixels:,})",
            "raise it if the file is to be trusted, or cut the image into tiles",
        )


_PNG_BANDS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_DEFLATE = 1032
"""Bytes that one byte of a deflate stream can stand for at most (RFC 1951)."""


def check_stored(content: bytes, where: Where) -> None:
    """Checks that a PNG's bytes can hold the pixels that its header claims: ninety bytes could ask
    for the memory of a hundred million.

    Args:
        content: of the file; one that is no PNG passes.
        where: the file.

    Raises:
        DataError: if they cannot.
    """
    if content[:8] != b"\x89PNG\r\n\x1a\n" or content[12:16] != b"IHDR" or len(content) < 26:
        return
    width, height = (int.from_bytes(content[at : at + 4], "big") for at in (16, 20))
    bits = width * content[24] * _PNG_BANDS.get(content[25], 1)
    if height * -(-bits // 8) > _DEFLATE * len(content):
        raise where.error(
            f"claims {width:,} × {height:,} pixels, which its {len(content):,} bytes cannot hold"
        )


_HEIC = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")


def know_heic(content: bytes, where: Where) -> None:
    """Makes Pillow know the photographs of telephones, where a file is one.

    Args:
        content: of the file.
        where: the file.

    Raises:
        DataError: if the package that reads them is not there.
    """
    brands = content[8 : min(int.from_bytes(content[:4], "big"), 256)]
    if content[4:8] != b"ftyp" or content[8:12] not in _HEIC or b"avif" in brands:
        return
    try:
        importlib.import_module("pillow_heif").register_heif_opener()
    except ImportError as error:
        raise where.error(
            "is a HEIC photograph, which needs a further package",
            "pip install pillow-heif, or save it as JPEG",
        ) from error


def read_pillow(content: bytes, reading: Reading, where: Where) -> Pixels:
    """Reads an image that Pillow knows.

    Args:
        content: the file's bytes.
        reading: what is asked for.
        where: the file.

    Raises:
        DataError: if it is no image, damaged, too large, or a stack with no page chosen.
    """
    from PIL import Image, UnidentifiedImageError

    know_heic(content, where)
    try:
        with _settings(reading.truncated), Image.open(io.BytesIO(content)) as image:
            check_size(image.width, image.height, reading, where)
            if not reading.truncated:
                check_stored(content, where)
            if wide := _sixteen_bits(content, image, where):
                return wide
            # A phone's MPO or HEIC is one photograph with what belongs to it, not a stack.
            count = 1 if image.format in ("MPO", "HEIF") else int(getattr(image, "n_frames", 1))
            frames = []
            for number in pick_page(count, reading, where, "frames"):
                if count > 1:
                    image.seek(number)
                frames.append(_frame(image, reading, where))
            first = frames[0]
            if any(one.array.shape != first.array.shape for one in frames):
                raise where.error("has frames of different sizes", "choose one with data.page")
            arrays = [one.array for one in frames]
            return Pixels(np.stack(arrays), first.colour, first.alpha, first.bits)
    except DataError:
        raise
    except UnidentifiedImageError as error:
        raise where.error(*_unknown(content)) from error
    except (OSError, SyntaxError, ValueError, EOFError, zlib.error) as error:
        keep = None if reading.truncated else "data.truncated keeps what can be read of such files"
        raise where.error("the image is truncated or damaged", keep) from error


_FOREIGN = {
    b"\xff\x0a": ("is a JPEG XL image, which is not read", "save it as PNG"),
    b"\0\0\0\x0cJXL ": ("is a JPEG XL image, which is not read", "save it as PNG"),
    b"version https://git-lfs": ("is a pointer of Git LFS, not the image itself", "git lfs pull"),
    b"<": ("is a text of HTML, SVG or XML, not an image of pixels", "download or convert it again"),
}


def _unknown(content: bytes) -> tuple[str, str | None]:
    """Returns what is wrong with a file that Pillow does not know, and what to do."""
    known = (said for start, said in _FOREIGN.items() if content.lstrip().startswith(start))
    return next(known, ("is not an image of a known format", None))


def animated_frames(path: Path, reading: Reading, where: Where) -> Iterator[Pixels]:
    """Yields the frames of an animated image, (1, H, W, bands), or the one of any other; one at a
    time is held in memory.

    Args:
        path: the file.
        reading: what is asked for.
        where: the file, for messages.

    Raises:
        DataError: if it is no image, damaged, or too large.
    """
    from PIL import Image, UnidentifiedImageError

    with _settings(reading.truncated):
        try:
            with Image.open(path) as image:
                check_size(image.width, image.height, reading, where)
                for number in range(int(getattr(image, "n_frames", 1))):
                    image.seek(number)
                    one = _frame(image, reading, where)
                    yield Pixels(one.array[None], one.colour, one.alpha, one.bits)
        except UnidentifiedImageError as error:
            raise where.error("is not an image of a known format") from error
        except (OSError, SyntaxError, ValueError, EOFError, zlib.error) as error:
            if isinstance(error, DataError):
                raise
            raise where.error("the image is truncated or damaged") from error


def _frame(image: Any, reading: Reading, where: Where) -> Pixels:
    """Returns one frame (H, W, bands), turned as its orientation tag says."""
    from PIL import ImageOps

    image.load()
    many = isinstance(reading.page, str)
    mode, kind = image.mode, image.format
    if kind == "PPM" and mode == "RGB" and _maxval(image) > 255:
        raise where.error("holds colours of 16 bits, which Pillow reads as 8", "save it as TIFF")
    image = ImageOps.exif_transpose(image)
    alpha = None
    if mode.startswith("I;16") or (mode == "I" and kind in ("PNG", "PPM", "JPEG2000")):
        array, clear = np.asarray(image).astype(np.uint16), image.info.get("transparency")
        if many or not isinstance(clear, int):
            return Pixels(array[..., None], "grey")
        opacity = np.where(array == clear, 0, np.iinfo(array.dtype).max).astype(array.dtype)
        return Pixels(np.stack([array, opacity], -1), "grey", "straight")
    if mode in ("I", "F"):
        return Pixels(np.asarray(image)[..., None], "grey")
    if mode in ("LA", "La", "L", "1"):
        clear = image.has_transparency_data and not many
        image, colour, alpha = image.convert("LA" if clear else "L"), "grey", clear
    elif mode in ("RGB", "RGBA", "RGBa", "RGBX", "P", "PA", "CMYK", "YCbCr", "HSV"):
        if many:
            image, colour = image.convert("L"), "grey"
        else:
            clear = image.has_transparency_data
            image, colour, alpha = image.convert("RGBA" if clear else "RGB"), "rgb", clear
    else:
        raise where.error(f"has colours of the mode {mode}", "save it as grey or RGB")
    array = np.array(image)
    array = array[..., None] if array.ndim == 2 else array
    return Pixels(array, colour, "straight" if alpha else None)


def _maxval(image: Any) -> int:
    """Returns the value of white in a PPM file, as its decoder is told."""
    args = image.tile[0][3] if image.tile else ()
    found = args[1] if isinstance(args, tuple) and len(args) > 1 else 255
    return found if isinstance(found, int) else 255


def _sixteen_bits(content: bytes, image: Any, where: Where) -> Pixels | None:
    """Returns a PNG of 16 bits and more than one band, which Pillow would cut down to bytes, as it
    does JPEG 2000, which is refused."""
    start = content.find(b"\xff\x4f\xff\x51")  # of JPEG 2000's size marker, which says the bits
    if image.format == "JPEG2000" and len(image.getbands()) > 1 and start >= 0:
        bits = 1 + (content[start + 42] & 0x7F)
        if bits > 8:
            said = f"holds colours of {bits} bits, which Pillow reads as 8"
            raise where.error(said, "save it as TIFF")
    if image.format != "PNG" or content[24] != 16 or content[25] not in _WIDE:
        return None
    try:
        import imagecodecs
    except ImportError as error:
        raise where.error(
            "is a PNG of 16 bits and several bands, which Pillow reads as 8 bits",
            "pip install imagecodecs",
        ) from error
    try:
        array = imagecodecs.png_decode(content)
    except (RuntimeError, ValueError) as error:
        raise where.error("the image is truncated or damaged") from error
    array = oriented(array, image.getexif().get(_ORIENTATION, 1))
    opaque = array.shape[2] == 3  # a colour that stands for transparency comes as opacity too
    return Pixels(array[None], _WIDE[content[25]], None if opaque else "straight")
