"""Canvases: small pictures far apart on an empty one, where the answer needs two of them at once.

A canvas has a few rows with a picture at the left and one at the right border. One of the left
pictures is of the key class; the label is the class of the picture opposite to it. The right ones
are of different classes, none the key, so that whoever sees no row as a whole is right once in four
times. With the defaults the gap between the pictures of a row is 104 pixels: no window of the field
of a ResNet-8 (95 pixels at a stem of 4) touches both, and the mean over the map and the linear head
behind it only add up what windows hold, whatever the training.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from longseq.core.checks import check_positive
from longseq.core.errors import ConfigError, DataError
from longseq.vision.data.images import ImageSet
from longseq.vision.data.pixels import Pixels, Reading, stored


@dataclass(frozen=True)
class Layout:
    """Where the pictures lie, and how many canvases there are.

    Args:
        side: of the canvas in pixels.
        rows: pairs of pictures.
        key: number of the class that marks a row.
        counts: canvases for training, validation and test.
        held_out: share of the training pictures that only validation canvases show.
        seed: of every draw.
    """

    side: int = 160
    rows: int = 4
    key: int = 8
    counts: tuple[int, int, int] = (20_000, 1_000, 2_000)
    held_out: float = 0.1
    seed: int = 0


DEFAULT_LAYOUT = Layout()


class CanvasImages(ImageSet):
    """Canvases by number: drawn at once, painted when asked for.

    Args:
        pictures: bytes (N, h, w).
        labels: their classes (N,).
        classes: their names.
        reading: 1 channel, or 3 to repeat the grey.
        count: number of canvases.
        layout: where the pictures lie.
        stream: number of the stream of random numbers: other canvases for another one.

    Raises:
        ConfigError: if the canvas is too small for the pictures.
        DataError: if there are too few classes, or no pictures of one.
    """

    in_memory = True

    def __init__(
        self,
        pictures: np.ndarray,
        labels: np.ndarray,
        classes: list[str],
        reading: Reading,
        count: int,
        layout: Layout = DEFAULT_LAYOUT,
        stream: int = 0,
    ) -> None:
        height, width = pictures.shape[1:]
        band, rows, key = (
            layout.side // check_positive("rows", layout.rows),
            layout.rows,
            layout.key,
        )
        if band < height or layout.side < 2 * width:
            raise ConfigError(
                f"a canvas of {layout.side} pixels has no room for {rows} rows of pictures of "
                f"{width} x {height}"
            )
        others = np.asarray([number for number in range(len(classes)) if number != key])
        if len(others) < rows or key >= len(classes):
            raise DataError(f"a canvas needs more than {rows} classes, and class {key} as the key")
        of_class = [np.flatnonzero(labels == number) for number in range(len(classes))]
        for number, members in enumerate(of_class):
            if not len(members):
                raise DataError(f"there are no pictures of class {classes[number]!r}")
        random = np.random.default_rng((layout.seed, stream))
        right = random.permuted(np.tile(others, (count, 1)), axis=1)[:, :rows]
        left = others[random.integers(len(others), size=(count, rows))]
        marked = random.integers(rows, size=count)
        left[np.arange(count), marked] = key
        answer = right[np.arange(count), marked]
        super().__init__(np.searchsorted(others, answer), [classes[n] for n in others], reading)
        self.pictures, self.side = pictures, layout.side
        self.shown = shown = np.stack([left, right], axis=2)
        """Classes of the pictures (canvases, rows, sides); ``picked`` has their numbers."""
        sizes = np.asarray([len(members) for members in of_class])[shown]
        picked = random.integers(sizes)
        starts = np.cumsum([0] + [len(members) for members in of_class[:-1]])
        self.picked = np.concatenate(of_class)[starts[shown] + picked]
        self.top = np.arange(rows)[:, None] * band + random.integers(
            band - height + 1, size=shown.shape
        )

    def stored(self, index: int) -> tuple[np.ndarray, int | None]:
        """Returns canvas ``index`` (side, side, C) in bytes."""
        height, width = self.pictures.shape[1:]
        canvas = np.zeros((self.side, self.side), self.pictures.dtype)
        for numbers, tops in zip(self.picked[index], self.top[index]):
            for number, top, at in zip(numbers, tops, (0, self.side - width)):
                canvas[top : top + height, at : at + width] = self.pictures[number]
        pixels = Pixels(canvas[None, ..., None], "grey")
        return stored(pixels, self.reading, self.where(index)), None


def canvas_parts(
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    classes: list[str],
    reading: Reading,
    layout: Layout = DEFAULT_LAYOUT,
) -> tuple[CanvasImages, CanvasImages, CanvasImages]:
    """Returns canvases for training, validation and test, which share no picture.

    Args:
        train: pictures (N, h, w) and classes (N,); a share of them is for validation alone.
        test: likewise, for the test.
        classes: names.
        reading: how canvases become channels.
        layout: see there.
    """
    chosen = np.random.default_rng((layout.seed, 9)).random(len(train[0])) < layout.held_out
    pieces = (train[0][~chosen], train[1][~chosen]), (train[0][chosen], train[1][chosen]), test
    made = [
        CanvasImages(*piece, classes, reading, count, layout, stream)
        for stream, (piece, count) in enumerate(zip(pieces, layout.counts))
    ]
    return made[0], made[1], made[2]
