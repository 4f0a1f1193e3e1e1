"""Restored images of a file or folder, by tiles, in the depth and range of their files."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

import numpy as np
from torch import Tensor

from longseq.core.errors import ConfigError, DataError
from longseq.core.files import atomic_path
from longseq.vision.data.images import FileImages, ImageSet, is_image
from longseq.vision.data.pixels import (
    NOT_A_NUMBER,
    Reading,
    full_scale,
    key_of,
    seeing_transparency,
    unit,
)
from longseq.vision.data.tiff import stored_dtype
from longseq.vision.restoration import Restoration
from longseq.vision.segment import open_window, teller
from longseq.vision.tiles import Window, tiled

_PNG, _TIFF = (".png",), (".tif", ".tiff")


def restore_image(
    task: Restoration,
    window: Window,
    height: int,
    width: int,
    out: np.ndarray,
    bounds: tuple[float, float],
    tile: int | None = None,
    overlap: int | None = None,
    progress: Callable[[int], None] = lambda rows: None,
) -> None:
    """Fills an array with a restored image.

    Args:
        task: in evaluation mode.
        window: rows of the image, see ``tiles.tiled``.
        height: of the image.
        width: of the image.
        out: (s H, s W, C), to fill; whole numbers are rounded and kept within its type.
        bounds: values of ``out`` that 0 and 1 become.
        tile: side of a tile in pixels of the image; see ``Restoration.tile_side`` if None.
        overlap: of neighbouring tiles; a quarter of a tile if None.
        progress: told how many rows of the image are done.
    """
    low, high = bounds
    limits = full_scale(out.dtype)

    def rows(first: int, last: int) -> Tensor:
        return unit(window(first, last)).to(task.device)

    def same(found: Tensor) -> Tensor:
        return found

    side, scale = task.tile_side(tile), task.scale
    for top, band in tiled(
        task, rows, height, width, side, overlap, batch_size=1, finish=same, scale=scale
    ):
        # In double precision: 32-bit integers have more digits than float32.
        values = low + band.permute(1, 2, 0).double().numpy() * (high - low)
        if limits is not None:
            values = np.rint(values).clip(*limits)
        out[top : top + len(values)] = values
        progress((top + len(values)) // scale)


def write_image(path: Path, image: np.ndarray) -> None:
    """Writes an image, whole or not at all: PNG, or compressed TIFF of tiles.

    Args:
        path: ending in .png, .tif or .tiff.
        image: (H, W, C).

    Raises:
        ConfigError: for another ending, or what PNG cannot hold.
    """
    array = image[..., 0] if image.shape[2] == 1 else image
    suffix = path.suffix.lower()
    if suffix in _PNG:
        if not _fits_png(image):
            raise ConfigError(
                f"{path}: PNG holds no {image.shape[2]} bands of {image.dtype}: end it in .tif"
            )
        from PIL import Image

        with atomic_path(path) as temporary:
            Image.fromarray(np.asarray(array)).save(temporary, "PNG")
        return
    if suffix not in _TIFF:
        raise ConfigError(f"{path}: a restored image must end in .png, .tif or .tiff")
    import tifffile

    kind = "rgb" if image.shape[2] == 3 else "minisblack"
    with atomic_path(path) as temporary:
        tifffile.imwrite(
            temporary,
            array,
            tile=(256, 256),
            compression="zlib",
            photometric=kind,
            planarconfig=None if array.ndim == 2 else "contig",
        )


def _fits_png(image: np.ndarray) -> bool:
    """Returns whether Pillow writes such an array as PNG without a loss."""
    grey, dtype = image.shape[2] == 1, image.dtype
    return (dtype == np.uint8 and (grey or image.shape[2] == 3)) or (dtype == np.uint16 and grey)


def restore(
    task: Restoration,
    images: ImageSet,
    paths: list[Path],
    tile: int | None = None,
    overlap: int | None = None,
) -> Iterator[tuple[Path | None, str]]:
    """Writes the restored images, and yields each one's file and why it could not be read.

    An image is written in the type of its file, and its values in the range of that.

    Args:
        task: in evaluation mode.
        images: what to restore.
        paths: to write to, one for each; where they end in .png and the image does not fit, a .tif.
        tile: see ``restore_image``.
        overlap: likewise.
    """
    channels, scale = images.reading.channels, task.scale
    clear: list[str] = []
    for index, path in enumerate(paths):
        try:
            dtype = _dtype(images, index)
            bounds = images.reading.ranges.get(key_of(dtype), (0.0, 255.0))
            with (
                seeing_transparency() as seen,
                open_window(images, index) as (window, height, width),
            ):
                with tempfile.TemporaryFile() as file:
                    shape = (scale * height, scale * width, channels)
                    out = np.memmap(file, dtype, "w+", shape=shape)
                name = PurePosixPath(images.name(index))
                told = teller(name, height)
                restore_image(task, window, height, width, out, bounds, tile, overlap, told)
                if out.dtype.kind == "f" and not all(np.isfinite(row).all() for row in out):
                    raise images.where(index).error(*NOT_A_NUMBER)
        except DataError as error:
            yield None, str(error)
            continue
        if len(paths) > 1 and not _fits_png(out):
            path = path.with_suffix(".tif")
        write_image(path, out)
        clear += [images.name(index)] if seen else []
        yield path, ""
    if clear:
        behind = images.reading.background
        shade = {0.0: "black", 1.0: "white"}.get(behind, f"a brightness of {behind:g}")
        first = clear[0] if len(clear) == 1 else f"{clear[0]} and {len(clear) - 1} more"
        print(
            f"note: transparent, so laid over {shade} as in training, and written without alpha: "
            f"{first}",
            file=sys.stderr,
        )


def _dtype(images: ImageSet, index: int) -> np.dtype:
    """Returns the type of an image's values, without reading a large TIFF file where it can."""
    found = None
    if isinstance(images, FileImages) and images.root.is_dir():
        found = stored_dtype(images.root / images.names[index])
        ranges = images.reading.ranges
        own = None if found is None else ranges.get(key_of(found))
        if not images.reading.whole and ranges.get("float") not in (None, own):
            found = None  # with no-data values it is read as floats, in their range
    found = images.stored(index)[0].dtype if found is None else found
    return np.dtype(np.float32) if found.kind == "f" else found


def run_restoration(
    task: Restoration, source: str, out: str, tile: int | None = None, overlap: int | None = None
) -> int:
    """Runs ``longseq vision predict`` for a restoration; returns the exit status.

    Args:
        task: in evaluation mode.
        source: folder, zip or image.
        out: folder to write to; of one image, its file.
        tile: see ``restore_image``.
        overlap: likewise.
    """
    from longseq.vision.predict import open_images, say_errors

    target, alone = Path(out), Path(source).is_file() and is_image(Path(source).name)
    if alone and target.suffix.lower() not in (*_PNG, *_TIFF):
        raise ConfigError(f"{out}: a restored image must end in .png, .tif or .tiff")
    if not alone and target.exists() and not target.is_dir():
        raise DataError("is a file; of several images, --out is a folder", path=out)
    images = open_images(source, Reading.of(task.preprocess))
    names = [PurePosixPath(images.name(i)) for i in range(len(images))]
    paths = [target] if alone else [target / _as_written(name, names) for name in names]
    if isinstance(images, FileImages) and images.root.is_dir():
        own = {(images.root / name).resolve() for name in images.names}
        if over := [path for path in paths if path.resolve() in own]:
            raise DataError(
                "is one of the images to restore, and would be written over",
                path=over[0],
                hint="choose another --out",
            )
    found = list(restore(task, images, paths, tile, overlap))
    say_errors([error for _, error in found], source)
    bad = sum(path is None for path, _ in found)
    print(f"{target}: {len(found):,} images, {bad} could not be read")
    return 0


def _as_written(name: PurePosixPath, names: list[PurePosixPath]) -> str:
    """Returns the name of a restored image, which keeps its ending where two have one stem."""
    twice = sum(one.with_suffix("") == name.with_suffix("") for one in names) > 1
    tiff = name.suffix.lower() in _TIFF
    stem = str(name) if twice else str(name.with_suffix(""))
    return f"{stem}{'.tif' if tiff else '.png'}"
