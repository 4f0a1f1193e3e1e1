"""Fixtures of the vision tests: one thread, and small sets of images of three kinds that look
different."""

import io
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from longseq.vision.data.idx import write_idx

CLASSES = ("bright", "dark", "stripes")


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


def draw(cls, seed, side=12):
    """Returns an image of a class, bytes (side, side, 3)."""
    noise = np.random.default_rng(seed).integers(0, 40, (side, side, 3))
    base = {"bright": 200, "dark": 10, "stripes": 0}[cls]
    image = noise + base
    if cls == "stripes":
        image[::2] += 200
    return image.astype(np.uint8)


def encoded(image, kind="PNG"):
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, kind)
    return stream.getvalue()


def members(per_class, parts):
    """Yields (name, bytes) of a set of class folders."""
    seed = 0
    for part in parts:
        for cls in CLASSES:
            for i in range(per_class):
                seed += 1
                yield "/".join(filter(None, (part, cls, f"{i:02d}.png"))), encoded(draw(cls, seed))


@pytest.fixture
def make_folder(tmp_path):
    """Writes class folders and returns their root."""

    def make(per_class=8, parts=("train", "test"), name="images"):
        for member, content in members(per_class, parts):
            path = tmp_path / name / member
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return tmp_path / name

    return make


@pytest.fixture
def make_zip(tmp_path):
    """Writes a zip of class folders and returns its path."""

    def make(per_class=8, parts=("train", "test"), name="images.zip", prefix=""):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            for member, content in members(per_class, parts):
                archive.writestr(prefix + member, content)
        return tmp_path / name

    return make


@pytest.fixture
def make_idx(tmp_path):
    """Writes a folder of IDX files and returns it."""

    def make(train=30, test=9, name="idx"):
        folder = tmp_path / name
        folder.mkdir()
        for prefix, count in (("train", train), ("t10k", test)):
            labels = np.arange(count) % 3
            images = [
                draw(CLASSES[label], 1000 * len(prefix) + i)[..., 0]
                for i, label in enumerate(labels)
            ]
            write_idx(folder / f"{prefix}-images-idx3-ubyte", np.stack(images))
            write_idx(folder / f"{prefix}-labels-idx1-ubyte", labels.astype(np.uint8))
        return folder

    return make
