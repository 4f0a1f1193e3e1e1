"""Canvases: the label is what lies opposite the key, parts share no picture, and no window of a
small CNN holds both."""

import pickle

import numpy as np
import pytest
import torch

from longseq.core.errors import ConfigError, DataError
from longseq.vision.data.canvas import CanvasImages, Layout, canvas_parts
from longseq.vision.data.pixels import Reading
from longseq.vision.data.sources import FASHION, open_source
from longseq.vision.models.registry import create_model

SMALL = Layout(side=20, rows=2, key=1, counts=(30, 20, 10))
NAMES = ["a", "key", "b", "c"]
GREY = Reading(1)


def numbered(count: int, first: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Pictures of 4 × 6 pixels that are all of one value, their number, in classes by turns."""
    values = np.arange(first, first + count, dtype=np.uint8)
    return np.tile(values[:, None, None], (1, 4, 6)), np.arange(count) % 4


def cells(canvas: np.ndarray, layout: Layout) -> list[tuple[int, int]]:
    """The values of the left and right picture of every row."""
    band = layout.side // layout.rows
    rows = canvas[..., 0].reshape(layout.rows, band, layout.side)
    return [(int(row[:, :6].max()), int(row[:, -6:].max())) for row in rows]


def test_the_label_is_opposite_the_key() -> None:
    pictures, labels = numbered(40)
    images = CanvasImages(pictures, labels, NAMES, GREY, 30, SMALL)
    assert images.classes == ["a", "b", "c"] and len(images) == 30
    assert set(images.labels.tolist()) == {0, 1, 2}
    for i in range(30):
        canvas, bits = images.stored(i)
        assert canvas.shape == (20, 20, 1) and canvas.dtype == np.uint8 and bits is None
        found = [(labels[a - 1], labels[b - 1]) for a, b in cells(canvas, SMALL)]
        answers = [b for a, b in found if a == 1]
        assert [NAMES[b] for b in answers] == [images.classes[images.labels[i]]]
        right = [b for _, b in found]
        assert len(set(right)) == SMALL.rows and 1 not in right
        assert np.count_nonzero(canvas) == 4 * 4 * 6  # whole pictures, and nothing else


def test_parts_share_no_picture_and_draws_repeat() -> None:
    train, test = numbered(80), numbered(40, first=100)
    parts = canvas_parts(train, test, NAMES, GREY, SMALL)
    again = canvas_parts(train, test, NAMES, GREY, SMALL)
    assert [len(part) for part in parts] == list(SMALL.counts)
    seen = []
    for part, same in zip(parts, again):
        canvases = [part.stored(i)[0] for i in range(len(part))]
        assert all(np.array_equal(one, same.stored(i)[0]) for i, one in enumerate(canvases))
        seen.append({value for one in canvases for pair in cells(one, SMALL) for value in pair})
    assert not seen[0] & seen[1] and max(seen[0] | seen[1]) <= 80 and min(seen[2]) >= 100
    moved = pickle.loads(pickle.dumps(parts[0]))  # as worker processes get it
    assert torch.equal(moved.image(3), parts[0].image(3))
    other = canvas_parts(train, test, NAMES, GREY, Layout(20, 2, 1, (30, 20, 10), seed=1))
    assert not np.array_equal(other[0].picked, parts[0].picked)


def test_what_makes_no_canvas_is_refused() -> None:
    pictures, labels = numbered(40)
    with pytest.raises(ConfigError, match="no room for 6 rows of pictures of 6 x 4"):
        CanvasImages(pictures, labels, NAMES, GREY, 3, Layout(side=20, rows=6, key=1))
    with pytest.raises(DataError, match="more than 4 classes"):
        CanvasImages(pictures, labels, NAMES, GREY, 3, Layout(side=20, rows=4, key=1))
    with pytest.raises(DataError, match="class 8 as the key"):
        CanvasImages(pictures, labels, NAMES, GREY, 3, Layout(side=20, rows=2))
    with pytest.raises(DataError, match="no pictures of class 'c'"):
        CanvasImages(pictures, np.minimum(labels, 2), NAMES, GREY, 3, SMALL)


def test_sources_by_name(make_folder, make_idx) -> None:
    found = open_source("canvas:fashion_mnist_sample", Reading(3))
    assert found.valid is not None and found.test is not None
    assert found.train.classes == [name for name in FASHION if name != "Bag"]
    assert found.train.image(0).shape == (3, 160, 160) and found.train.image(0).any()
    assert (len(found.train), len(found.valid), len(found.test)) == (20_000, 1_000, 2_000)
    with pytest.raises(DataError, match="canvases need IDX files"):
        open_source(f"canvas:{make_folder(2)}", GREY)
    with pytest.raises(DataError, match="more than 4 classes"):
        open_source(f"canvas:{make_idx()}", GREY)


@pytest.mark.parametrize("name", ["resnet8", "hybrid_pico"])
def test_only_a_scan_sees_both_pictures_of_a_row(name: str) -> None:
    torch.manual_seed(0)
    model = create_model(name, num_classes=9, in_chans=1, stem_stride=4).eval()
    images = torch.rand(1, 1, 160, 160, requires_grad=True)
    columns = model.forward_features(images).square().sum((0, 1, 2))
    sees = []
    for column in columns:
        (gradient,) = torch.autograd.grad(column, images, retain_graph=True)
        there = (gradient[0, 0] != 0).any(0)
        sees.append(bool(there[:28].any() and there[-28:].any()))
    assert len(columns) == 10 and any(sees) == (name == "hybrid_pico")
