"""Masks of the images in a folder: predicted by tiles, written with overlays and a table of
areas."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
from torch import Tensor

from longseq.core.errors import ArgumentError, DataError
from longseq.core.files import atomic_path
from longseq.core.tables import write_rows
from longseq.vision.data.images import FileImages, ImageSet
from longseq.vision.data.pixels import NOT_A_NUMBER, Reading, Where, unit
from longseq.vision.data.tiff import open_bands
from longseq.vision.data.transforms import Normalise
from longseq.vision.segmentation import Segmentation
from longseq.vision.tiles import Window, tiled

_OVERLAY_SIDE = 2048
_COLOURS = np.array(
    [
        *((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66)),
        *((0, 114, 178), (213, 94, 0), (204, 121, 167), (0, 0, 0)),
    ],
    np.float32,
)
"""Okabe and Ito's colours, which the colour-blind tell apart; of classes from 1 on, in turn."""


@dataclass(frozen=True)
class Segmented:
    """What was found in one image, or why nothing was.

    Args:
        file: its path inside the folder or zip.
        width: in pixels.
        height: in pixels.
        shares: of the pixels, by class.
        mask: the file written.
        error: why the image could not be read; empty if it could.
    """

    file: str
    width: int = 0
    height: int = 0
    shares: list[float] = field(default_factory=list)
    mask: str = ""
    error: str = ""


@contextmanager
def open_window(images: ImageSet, index: int) -> Iterator[tuple[Window, int, int]]:
    """Yields an image's rows as float32 or bytes, its height and its width; a plain TIFF file is
    not read into memory as a whole.

    Args:
        images: the set.
        index: which of them.
    """
    if isinstance(images, FileImages) and images.root.is_dir():
        path = images.root / images.names[index]
        with open_bands(path, images.reading, images.where(index)) as found:
            if found is not None:
                yield found
                return
    image = images.image(index)
    yield (lambda first, last: image[:, first:last]), image.shape[1], image.shape[2]


def predict_mask(
    task: Segmentation,
    window: Window,
    height: int,
    width: int,
    out: np.ndarray,
    where: Where,
    tile: int | None = None,
    overlap: int | None = None,
    progress: Callable[[int], None] = lambda rows: None,
) -> np.ndarray:
    """Fills a mask with the values of the most probable classes, and returns how many pixels each
    class has.

    Args:
        task: in evaluation mode.
        window: rows of the image, see ``tiles.tiled``.
        height: of the image.
        width: of the image.
        out: (H, W), to fill.
        where: the image, for messages.
        tile: side of a tile in pixels; that of the training if None.
        overlap: of neighbouring tiles; a quarter of a tile if None.
        progress: told how many rows are done.

    Raises:
        DataError: if the model's result is not a number somewhere.
    """
    how = dict(task.preprocess)
    normalise = Normalise(how["mean"], how["std"])
    device, values = task.device, np.asarray(task.values)
    counts = np.zeros(len(values), np.int64)

    def rows(first: int, last: int) -> Tensor:
        return normalise(window(first, last)).to(device)

    for top, band in tiled(task, rows, height, width, tile or int(how["tile"]), overlap):
        if not band.isfinite().all():
            raise where.error(*NOT_A_NUMBER)
        classes = band.argmax(0).numpy()
        counts += np.bincount(classes.ravel(), minlength=len(values))
        out[top : top + len(classes)] = values[classes]
        progress(top + len(classes))
    return counts


def segment(
    task: Segmentation,
    images: ImageSet,
    folder: str | Path,
    tile: int | None = None,
    overlap: int | None = None,
    overlays: bool = True,
) -> Iterator[Segmented]:
    """Writes ``masks/`` and ``overlays/``, and yields what was found in every image, in order.

    A mask has the values that those of the training had; it is a PNG, or a compressed TIFF where
    the image is one or a value does not fit.

    Args:
        task: in evaluation mode.
        images: what to segment.
        folder: to write to.
        tile: see ``predict_mask``.
        overlap: likewise.
        overlays: whether to draw the classes over the images.
    """
    root, values = Path(folder), np.asarray(task.values)
    fits = values.min() >= 0 and values.max() < 256
    dtype = np.uint8 if fits else np.uint16 if values.min() >= 0 and values.max() < 65536 else int
    names = [PurePosixPath(images.name(i)) for i in range(len(images))]
    stems = [str(name.with_suffix("")) for name in names]
    twice = (
        {stem for stem in stems if stems.count(stem) > 1} if len(set(stems)) < len(stems) else {}
    )
    for index, name in enumerate(names):
        stem = str(name) if str(name.with_suffix("")) in twice else str(name.with_suffix(""))
        tiff = not fits or name.suffix.lower() in (".tif", ".tiff")
        path = root / "masks" / f"{stem}{'.tif' if tiff else '.png'}"
        try:
            with open_window(images, index) as (window, height, width):
                with tempfile.TemporaryFile() as file:
                    mask = np.memmap(file, dtype, "w+", shape=(height, width))
                where, tell = images.where(index), teller(name, height)
                counts = predict_mask(task, window, height, width, mask, where, tile, overlap, tell)
                write_mask(path, mask)
                if overlays:
                    shown = root / "overlays" / f"{stem}.png"
                    write_overlay(shown, window, mask, [int(v) for v in task.values])
        except DataError as error:
            yield Segmented(str(name), error=str(error))
            continue
        except ArgumentError as error:  # the encoder's: of an image that it is too small for
            yield Segmented(str(name), error=str(images.where(index).error(str(error))))
            continue
        relative = str(path.relative_to(root))
        yield Segmented(str(name), width, height, (counts / counts.sum()).tolist(), relative)


def teller(name: PurePosixPath, height: int) -> Callable[[int], None]:
    """Returns what says how far a tall image is, on a terminal.

    Args:
        name: of the image.
        height: of the image.
    """
    if height < 2048 or not sys.stderr.isatty():
        return lambda rows: None
    return lambda rows: print(
        f"\r{name}: {100 * rows // height}%", end="\n" if rows == height else "", file=sys.stderr
    )


def write_mask(path: Path, mask: np.ndarray) -> None:
    """Writes a mask as PNG or as a compressed TIFF of tiles, whole or not at all.

    Args:
        path: ending in .png, or .tif.
        mask: (H, W); PNG takes bytes.
    """
    with atomic_path(path) as temporary:
        if path.suffix == ".tif":
            import tifffile

            tifffile.imwrite(
                temporary, mask, tile=(256, 256), compression="zlib", photometric="minisblack"
            )
            return
        from PIL import Image

        Image.fromarray(np.asarray(mask)).save(temporary, "PNG")


def write_overlay(path: Path, window: Window, mask: np.ndarray, values: Sequence[int]) -> None:
    """Draws the classes but the first over an image, at most 2,048 pixels per side.

    Args:
        path: PNG file.
        window: rows of the image.
        mask: (H, W).
        values: of the classes in the mask.
    """
    from PIL import Image

    height, width = mask.shape
    step = -(-max(height, width) // _OVERLAY_SIDE)
    picture = np.stack(
        [_grey_or_colour(window(row, row + 1), step) for row in range(0, height, step)]
    )
    small = np.asarray(mask[::step, ::step])
    picture = 255 * picture.clip(0, 1)
    for number, value in enumerate(values[1:]):
        here = small == value
        picture[here] = 0.55 * picture[here] + 0.45 * _COLOURS[number % len(_COLOURS)]
    with atomic_path(path) as temporary:
        Image.fromarray(picture.astype(np.uint8)).save(temporary, "PNG")


def _grey_or_colour(row: Tensor, step: int) -> np.ndarray:
    """Returns one row of an image as colours (W, 3) in [0, 1]; the first of several bands."""
    row = unit(row[:, 0, ::step])
    row = row if len(row) == 3 else row[:1].expand(3, -1)
    return row.T.numpy()


def write_areas(path: str | Path, found: Sequence[Segmented], classes: Sequence[str]) -> None:
    """Writes a row for every image: ``file, width, height, share_<class>, mask, error``.

    Args:
        path: .csv, .tsv or .parquet.
        found: rows.
        classes: names of the classes.
    """
    shares = {f"share_{name}": ".6f" for name in classes}
    columns = {"file": "", "width": "d", "height": "d", **shares, "mask": "", "error": ""}
    rows: list[list[str | float | None]] = []
    for item in found:
        if item.error:
            rows.append([item.file, None, None, *[None] * len(classes), None, item.error])
        else:
            rows.append([item.file, item.width, item.height, *item.shares, item.mask, None])
    write_rows(path, columns, rows)


def run_segmentation(
    task: Segmentation,
    source: str,
    out: str,
    tile: int | None = None,
    overlap: int | None = None,
    overlays: bool = True,
) -> int:
    """Runs ``longseq vision predict`` for a segmentation; returns the exit status.

    Args:
        task: in evaluation mode.
        source: folder, zip or image.
        out: folder to write to.
        tile: see ``predict_mask``.
        overlap: likewise.
        overlays: see ``segment``.
    """
    from longseq.vision.predict import open_images, say_errors

    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise DataError("is a file; of a segmentation, --out is a folder", path=out)
    masks, inside = folder / "masks", [Path(source).resolve(), *Path(source).resolve().parents]
    # Masks beside the images may be those that somebody drew; areas.csv says that they are ours.
    if folder.resolve() in inside and masks.exists() and not (folder / "areas.csv").exists():
        hint = "choose another --out: they would be written over"
        raise DataError("lies beside the images and is not of predict", path=masks, hint=hint)
    images = open_images(source, Reading.of(task.preprocess))
    found = []
    for item in segment(task, images, folder, tile, overlap, overlays):
        found.append(item)
        if item.error:
            continue
        parts = zip(task.classes, item.shares)
        print(f"{item.file}: " + ", ".join(f"{name} {share:.1%}" for name, share in parts))
    say_errors([item.error for item in found], source)
    write_areas(folder / "areas.csv", found, task.classes)
    bad = sum(bool(item.error) for item in found)
    print(f"{folder}: {len(found):,} images, {bad} could not be read; masks/, areas.csv")
    return 0
