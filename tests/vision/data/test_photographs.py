"""Photographs are read when asked for, and only so many stay in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from longseq.core.errors import DataError
from longseq.vision.data.photographs import Photographs, image_files


def test_the_latest_stay_and_all_are_what_the_files_hold(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    written = [random.integers(0, 256, (9, 7 + i, 3), dtype=np.uint8) for i in range(4)]
    for i, picture in enumerate(written):
        Image.fromarray(picture).save(tmp_path / f"{i}.png")
    photographs = Photographs(image_files(str(tmp_path)), kept=2 * 9 * 10 * 3)
    for _ in range(2):
        for i in (0, 3, 1, 2):
            assert np.array_equal(photographs[i], written[i])
            assert 1 <= len(photographs._memory) <= 2 and i in photographs._memory
    first = photographs[2]
    assert photographs[2] is first  # from memory
    assert [one.shape for one in photographs] == [one.shape for one in written]  # it has an end
    assert np.array_equal(photographs[-1], written[-1])


def test_grey_pictures_are_colour_and_deep_ones_refused(tmp_path: Path) -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(grey).save(tmp_path / "a.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "b.png")
    photographs = Photographs(image_files(str(tmp_path)))
    assert photographs[0].dtype == np.uint8
    assert np.array_equal(photographs[0], np.stack([grey] * 3, -1))
    with pytest.raises(DataError, match="no range is known"):
        photographs[1]


def test_what_is_no_photograph_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder or zip"):
        image_files(str(tmp_path / "none"))
    with pytest.raises(DataError, match="holds no images"):
        image_files(str(tmp_path))
    (tmp_path / "cut.png").write_bytes(b"\x89PNG")
    with pytest.raises(DataError, match=r"cut\.png"):
        Photographs(image_files(str(tmp_path)))[0]
