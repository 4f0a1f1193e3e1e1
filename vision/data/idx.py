"""IDX files (MNIST, Fashion-MNIST, EMNIST, KMNIST), plain or gzipped."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from longseq.core.errors import DataError
from longseq.core.files import require_file

_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
PARTS = {"train": ("train",), "test": ("t10k", "test")}
"""Prefixes of the files of the two parts, as they are published."""


def read_idx(path: str | Path) -> np.ndarray:
    """Returns the array in an IDX file, in the machine's byte order.

    Args:
        path: the file; gzip is recognised by its first bytes, not by its name.

    Raises:
        DataError: if the file is missing, empty, truncated or not IDX.
    """
    file = require_file(path, "IDX file")
    raw = file.read_bytes()
    if raw[:2] == b"\x1f\x8b":
        try:
            raw = gzip.decompress(raw)
        except (EOFError, OSError, zlib.error) as error:
            raise DataError("the gzip file is truncated or damaged", path=file) from error
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] not in _TYPES or raw[3] == 0:
        raise DataError(
            "is not an IDX file: it does not begin with 00 00, a type and a rank", path=file
        )
    kind, rank = np.dtype(_TYPES[raw[2]]), raw[3]
    header = 4 + 4 * rank
    if len(raw) < header:
        raise DataError("the IDX file ends within its header", path=file)
    shape = tuple(int(n) for n in np.frombuffer(raw, ">u4", rank, 4))
    wanted = header + math.prod(shape) * kind.itemsize
    if len(raw) != wanted:
        what = "truncated" if len(raw) < wanted else "longer than its header says"
        raise DataError(
            f"the IDX file is {what}: {len(raw):,} bytes instead of {wanted:,}", path=file
        )
    return np.frombuffer(raw, kind, offset=header).reshape(shape).astype(kind.newbyteorder("="))


def write_idx(path: str | Path, array: np.ndarray) -> None:
    """Writes an array as a plain IDX file.

    Args:
        path: the file.
        array: of one of the types that IDX has.
    """
    code = next(c for c, text in _TYPES.items() if np.dtype(text).newbyteorder("=") == array.dtype)
    header = bytes([0, 0, code, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    Path(path).write_bytes(header + array.astype(np.dtype(_TYPES[code])).tobytes())


def find_idx(folder: Path, part: str, kind: str) -> Path | None:
    """Returns the file of a part in a folder, or None.

    Args:
        folder: where.
        part: "train" or "test".
        kind: "images" or "labels".
    """
    rank = 3 if kind == "images" else 1
    for prefix in PARTS[part]:
        for separator in ("-", "."):
            for suffix in (".gz", ""):
                file = folder / f"{prefix}-{kind}{separator}idx{rank}-ubyte{suffix}"
                if file.is_file():
                    return file
    return None


def read_idx_pair(folder: Path, part: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns images (N, H, W) uint8 and labels (N,) of a part, or None if the folder has no such
    files.

    Args:
        folder: where.
        part: "train" or "test".

    Raises:
        DataError: if one of the two files is missing, or they do not fit each other.
    """
    images, labels = find_idx(folder, part, "images"), find_idx(folder, part, "labels")
    if images is None and labels is None:
        return None
    if images is None or labels is None:
        missing = "images" if images is None else "labels"
        raise DataError(f"has IDX files of {part} but not its {missing}", path=folder)
    x, y = read_idx(images), read_idx(labels)
    if x.ndim != 3 or x.dtype != np.uint8:
        raise DataError(f"images must be bytes (N, H, W), got {x.dtype} {x.shape}", path=images)
    if y.ndim != 1 or len(y) != len(x):
        raise DataError(f"{len(x):,} images but labels of shape {y.shape}", path=labels)
    if len(x) == 0:
        raise DataError("holds no images", path=images)
    wrong = np.flatnonzero((y < 0) | (y != np.floor(y)))
    if len(wrong):
        said = f"label {wrong[0]} is {y[wrong[0]]}: a class is a whole number from 0"
        raise DataError(said, path=labels)
    return x, y.astype(np.int64)
