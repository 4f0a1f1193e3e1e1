"""Masks are read without changing a value, paired with their images, and refused where they are no
masks."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from longseq.core.errors import DataError
from longseq.vision.data.masks import IGNORED, Values, find_values, open_pairs, read_mask
from longseq.vision.data.pixels import Reading, Where
from longseq.vision.data.restoration import open_clean
from longseq.vision.data.segmentation import SegmentationData

WHERE = Where("m.png")
VALUES = np.array([[0, 1, 255], [3, 2, 0]], np.uint8)


def encoded(image, kind="PNG", **kwargs) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **kwargs)
    return stream.getvalue()


def palette() -> Image.Image:
    image = Image.fromarray(VALUES, "P")
    image.putpalette([i * 7 % 256 for i in range(768)])
    return image


def tiff(array, **kwargs) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, array, **kwargs)
    return stream.getvalue()


def npy(array) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


KINDS = {
    "grey": lambda: encoded(Image.fromarray(VALUES)),
    "palette": lambda: encoded(palette()),
    "grey as colour": lambda: encoded(Image.fromarray(np.repeat(VALUES[..., None], 3, 2))),
    "16 bits": lambda: encoded(Image.fromarray(VALUES.astype(np.uint16))),
    "tiff": lambda: tiff(VALUES),
    "tiff of int32": lambda: tiff(VALUES.astype(np.int32)),
    "white is zero": lambda: tiff(255 - VALUES, photometric="miniswhite"),
    "whole floats": lambda: tiff(VALUES.astype(np.float32)),
    "npy": lambda: npy(VALUES.astype(np.int64)),
}


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_values_are_as_stored(kind: str) -> None:
    found = read_mask(KINDS[kind](), WHERE)
    assert found.dtype == np.int64 and np.array_equal(found, VALUES)


BAD = {
    "empty": lambda: b"",
    "is a JPEG": lambda: encoded(Image.fromarray(VALUES), "JPEG"),
    "3 bands": lambda: encoded(Image.fromarray(np.arange(12, dtype=np.uint8).reshape(2, 2, 3))),
    "transparency": lambda: encoded(Image.new("RGBA", (2, 2))),
    "float": lambda: tiff(VALUES + np.float32(0.5)),
    "truncated or damaged": lambda: encoded(Image.fromarray(VALUES))[:40],
}


@pytest.mark.parametrize("words", sorted(BAD))
def test_what_is_no_mask_is_refused_by_name(words: str) -> None:
    with pytest.raises(DataError, match=rf"m\.png.*{words}"):
        read_mask(BAD[words](), WHERE)


def test_values_become_classes() -> None:
    mask = np.array([[0, 128], [255, 7]])
    assert find_values([(mask, WHERE)], 7) == (0, 128, 255)
    classes = Values((0, 128, 255), 7).classes(mask, WHERE)
    assert classes.tolist() == [[0, 1], [2, IGNORED]]
    assert Values((0, 1), 7, True).classes(mask, WHERE).tolist() == [[0, 1], [1, IGNORED]]
    # In the order of a checkpoint, whatever it is.
    assert Values((255, 0, 128, 7)).classes(mask, WHERE).tolist() == [[1, 2], [0, 3]]
    with pytest.raises(DataError, match="holds 7, which is the value of no class"):
        Values((0, 128, 255)).classes(mask, WHERE)
    with pytest.raises(DataError, match="one value only"):
        find_values([(np.zeros((2, 2), int), WHERE)], None)
    with pytest.raises(DataError, match="more than 256 values"):
        find_values([(np.arange(300)[None], WHERE)], None)


def test_stacks_are_no_masks() -> None:
    stream = io.BytesIO()
    tifffile.imwrite(stream, np.stack([VALUES] * 5), photometric="minisblack")
    with pytest.raises(DataError, match="is a stack of 5 pages"):
        read_mask(stream.getvalue(), WHERE)
    ring = bytearray(stream.getvalue())
    at = int.from_bytes(ring[4:8], "little")
    end = at + 2 + 12 * int.from_bytes(ring[at : at + 2], "little")
    ring[end : end + 4] = at.to_bytes(4, "little")
    with pytest.raises(DataError, match="truncated or damaged"):
        read_mask(bytes(ring), WHERE)


@pytest.mark.parametrize("kind", ["GIF", "PNG"])
def test_animations_are_no_masks(kind: str) -> None:
    # Their first frame was taken in silence.
    frames = [Image.fromarray(np.full((8, 8), value, np.uint8)) for value in (0, 1, 2)]
    with pytest.raises(DataError, match="is an animation of 3 frames: a mask has one"):
        read_mask(encoded(frames[0], kind, save_all=True, append_images=frames[1:]), WHERE)


def test_images_and_masks_are_paired(tmp_path) -> None:
    good = encoded(Image.fromarray(VALUES))
    names = ["train/images/a.jpg", "train/masks/a.png", "train/images/b.tif", "train/masks/b.png"]
    names += ["val/images/c.png", "val/masks/c_mask.png", "train/masks/more.png"]
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(good)
    found = open_pairs(tmp_path, Reading(1))
    assert found["train"].names == ["train/images/a.jpg", "train/images/b.tif"]
    assert found["valid"].mask_where(0).path.name == "c_mask.png"
    assert np.array_equal(found["train"].mask(1), VALUES)
    (tmp_path / "train/masks/b.png").unlink()
    with pytest.raises(DataError, match=r"b\.tif: has no mask"):
        open_pairs(tmp_path, Reading(1))


def _write(root: Path, values: tuple[int, ...] = (0, 1)) -> None:
    mask = np.resize(np.array(values, np.uint8), (8, 8))
    for kind in ("images", "masks"):
        (root / kind).mkdir(parents=True)
        for i in range(4):
            array = np.full((8, 8), i, np.uint8) if kind == "images" else mask
            Image.fromarray(array).save(root / kind / f"{i}.png")


def test_what_lies_in_no_part_is_not_trained_on_beside_a_training_part(tmp_path, capsys) -> None:
    # A folder eval/ was trained on in silence.
    for part in ("train", "eval", "test"):
        _write(tmp_path / "set" / part)
    found = open_pairs(tmp_path / "set", Reading())
    assert {part: len(images) for part, images in found.items()} == {"train": 4, "test": 4}
    assert "left out, not in train/, valid/ or test/: eval/images/0.png" in capsys.readouterr().err
    assert set(open_clean(tmp_path / "set", Reading())) == {"train", "test"}
    _write(tmp_path / "alone")
    _write(tmp_path / "alone/test")
    assert {p: len(x) for p, x in open_pairs(tmp_path / "alone", Reading()).items()} == {
        "train": 4,
        "test": 4,
    }
    for part in ("train2017", "val2017"):
        _write(tmp_path / "coco" / part)
    for opened in (open_pairs, open_clean):
        with pytest.raises(DataError, match="would be for training, but are parts of a data set"):
            opened(tmp_path / "coco", Reading())


def test_values_that_are_no_plain_classes_are_said(tmp_path, capsys) -> None:
    # The border of VOC's objects, 255, was a class in silence.
    _write(tmp_path / "void", (0, 1, 2, 255))
    data = SegmentationData(str(tmp_path / "void"), tile=8)
    assert data.values == [0, 1, 2, 255]
    said = capsys.readouterr().err
    assert "values 0, 1, 2, 255 are 4 classes; data.ignore_value 255 would leave" in said
    data = SegmentationData(str(tmp_path / "void"), tile=8, ignore_value=255)
    assert data.values == [0, 1, 2]
    _write(tmp_path / "two", (0, 255))
    assert SegmentationData(str(tmp_path / "two"), tile=8).values == [0, 255]
    assert capsys.readouterr().err == ""
