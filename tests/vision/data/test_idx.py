"""IDX files: round trips of every type, and one-line errors for damaged ones."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from longseq.core.errors import DataError
from longseq.vision.data.idx import read_idx, read_idx_pair, write_idx

arrays = st.sampled_from([np.uint8, np.int8, np.int16, np.int32, np.float32, np.float64]).flatmap(
    lambda kind: hnp.arrays(kind, hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=4))
)


@given(arrays, st.booleans())
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_what_was_written_is_read(tmp_path: Path, array: np.ndarray, zipped: bool) -> None:
    file = tmp_path / "a-idx"
    write_idx(file, array)
    if zipped:  # the name does not tell
        file.write_bytes(gzip.compress(file.read_bytes()))
    found = read_idx(file)
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda raw: b"", "empty"),
        (lambda raw: b"hello, not IDX", "not an IDX file"),
        (lambda raw: raw[:6], "within its header"),
        (lambda raw: raw[:-1], "truncated"),
        (lambda raw: raw + b"x", "longer than its header"),
        (lambda raw: gzip.compress(raw)[:-9], "gzip file is truncated"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, damage, message: str) -> None:
    file = tmp_path / "images-idx3"
    write_idx(file, np.zeros((2, 3, 3), np.uint8))
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(DataError, match=message) as caught:
        read_idx(file)
    assert str(file) in str(caught.value)


def test_a_pair_must_fit(make_idx) -> None:
    folder = make_idx()
    x, y = read_idx_pair(folder, "train")
    assert x.shape == (30, 12, 12) and y.shape == (30,)
    write_idx(folder / "train-labels-idx1-ubyte", np.zeros(29, np.uint8))
    with pytest.raises(DataError, match="30 images but labels of shape"):
        read_idx_pair(folder, "train")
    (folder / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match="not its labels"):
        read_idx_pair(folder, "train")
    (folder / "train-images-idx3-ubyte").unlink()
    assert read_idx_pair(folder, "train") is None


@pytest.mark.parametrize("label", [-1, 0.5, np.nan])
def test_labels_that_are_no_classes_are_refused(tmp_path: Path, label: float) -> None:
    # Halves were cut off to the class before, and -1 was a class of its own.
    write_idx(tmp_path / "train-images-idx3-ubyte", np.zeros((3, 4, 4), np.uint8))
    kind = np.int8 if label == -1 else np.float32
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.array([0, 1, label], kind))
    with pytest.raises(DataError, match=r"label 2 is .*: a class is a whole number from 0"):
        read_idx_pair(tmp_path, "train")
