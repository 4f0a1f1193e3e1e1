"""Point clouds in files: .npy, .xyz and .ply, read without guessing."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np

from longseq.core.errors import DataError

SUFFIXES = (".npy", ".xyz", ".ply")
MAX_POINTS = 1 << 24
"""A larger cloud is refused before it is read into memory."""
_MOST_COLUMNS = 16
"""Place, normal, colour and what else a scanner says of a point; more are points in columns."""
_DECIMAL_COMMA = re.compile(r"\d,\d")
_TYPES = {
    name: kind
    for kind, names in (
        ("i1", "char int8"),
        ("u1", "uchar uint8"),
        ("i2", "short int16"),
        ("u2", "ushort uint16"),
        ("i4", "int int32"),
        ("u4", "uint uint32"),
        ("f4", "float float32"),
        ("f8", "double float64"),
    )
    for name in names.split()
}
_ORDERS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}


def read_cloud(path: str | Path) -> np.ndarray:
    """Returns the coordinates in a file, float64 (N, 3): the first three columns of a .npy or .xyz
    file, x, y and z of a .ply file's vertices.

    Args:
        path: the file.

    Raises:
        DataError: if it is damaged, empty, or holds anything but finite coordinates.
    """
    file = Path(path)
    try:
        content = file.read_bytes()
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", path=file) from error
    if not content:
        raise DataError("the file is empty", path=file)
    suffix = file.suffix.lower()
    if suffix not in SUFFIXES:
        raise DataError(f"is of no known kind ({', '.join(SUFFIXES)})", path=file)
    reader = {".npy": _read_npy, ".xyz": _read_xyz, ".ply": _read_ply}[suffix]
    points = reader(content, file)
    if not len(points):
        raise DataError("holds no points", path=file)
    if not np.isfinite(points).all():
        row = int(np.flatnonzero(~np.isfinite(points).all(1))[0])
        raise DataError(f"point {row} is not finite", path=file)
    return points


def normalised(points: np.ndarray, path: str | Path) -> np.ndarray:
    """Returns a cloud round its mean with a radius of 1, float32 (N, 3).

    Args:
        points: (N, 3).
        path: the file, for messages.

    Raises:
        DataError: if all its points are one.
    """
    points = points - points.mean(0)
    radius = float(np.linalg.norm(points, axis=1).max())
    if len(points) == 1 or not radius > 0:
        what = "one point" if len(points) == 1 else f"{len(points)} points in one place"
        raise DataError(f"holds {what}, which has no shape", path=path)
    return (points / radius).astype(np.float32)


def _columns(array: np.ndarray, file: Path) -> np.ndarray:
    if array.ndim != 2 or array.shape[1] < 3 or array.dtype.kind not in "iuf":
        raise DataError(
            f"holds {array.dtype} of the shape {array.shape}, not numbers of (points, 3 or more)",
            path=file,
        )
    if array.shape[1] > max(array.shape[0], _MOST_COLUMNS):
        said = f"holds {array.shape[0]} rows of {array.shape[1]:,} columns: a point is a row"
        raise DataError(said, path=file, hint="save it transposed, (points, 3 or more)")
    return array[:, :3].astype(np.float64)


def _read_npy(content: bytes, file: Path) -> np.ndarray:
    try:
        array = np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError, OSError, SyntaxError, TypeError, MemoryError) as error:
        raise DataError("is not an array of numbers, or is truncated", path=file) from error
    if not isinstance(array, np.ndarray):
        raise DataError("is an archive of arrays", path=file, hint="save one array with np.save")
    return _columns(array, file)


def _rows(lines: list[str], first: int, file: Path) -> np.ndarray:
    """Returns lines of numbers as an array of their shortest width."""
    found = []
    for number, line in enumerate(lines, first):
        bare = line.split("#")[0].strip()
        parts = bare.replace(",", " ").split()
        if not parts:
            continue
        if len(bare.split()) > 1 and _DECIMAL_COMMA.search(bare):
            said = f"line {number} has commas inside of numbers, or two kinds of separators"
            hint = "write decimal points, and commas or spaces between numbers"
            raise DataError(said, path=file, record=line[:40], hint=hint)
        try:
            found.append([float(part) for part in parts])
        except ValueError as error:
            said = f"line {number} does not hold numbers"
            raise DataError(said, path=file, record=line[:40]) from error
        if len(parts) < 3 or len(parts) != len(found[0]):
            raise DataError(f"line {number} holds {len(parts)} numbers", path=file)
    return np.array(found) if found else np.empty((0, 3))


def _read_xyz(content: bytes, file: Path) -> np.ndarray:
    try:
        lines = content.decode("ascii").splitlines()
    except UnicodeDecodeError as error:
        raise DataError("is not a text file of coordinates", path=file) from error
    rows = _rows(lines, 1, file)
    return _columns(rows, file) if len(rows) else np.empty((0, 3))


def _read_ply(content: bytes, file: Path) -> np.ndarray:
    # A line of its own: a comment may hold the word, and some programs leave a space behind it.
    # It ends as the line before: behind a bare \r, \n may be the first byte of a point.
    end = re.search(rb"(\r\n|\n|\r)end_header[ \t]*(?:\1|\r?\n)", content)
    head, body = (content[: end.start()], content[end.end() :]) if end else (b"", b"")
    lines = head.decode("ascii", "replace").splitlines()
    if not lines or lines[0].strip() != "ply":
        raise DataError("is not a PLY file, or ends in its header", path=file)
    order, count, names, types = None, None, [], []
    for line in lines[1:]:
        words = line.split()
        if words[:1] == ["format"] and len(words) > 1:
            order = _ORDERS.get(words[1])
        elif words[:1] == ["element"]:
            if count is not None:
                break  # what follows the vertices is not needed
            if len(words) != 3 or words[1] != "vertex" or not words[2].isdecimal():
                raise DataError("its first element is not the vertices", path=file, record=line)
            count = int(words[2])
        elif words[:1] == ["property"] and count is not None:
            if len(words) != 3 or words[1] not in _TYPES:
                raise DataError("its vertices have a property of no one number", path=file)
            names.append(words[2])
            types.append(_TYPES[words[1]])
    if order is None or count is None or not {"x", "y", "z"} <= set(names):
        raise DataError("its header names no format, or no vertices with x, y and z", path=file)
    if len(set(names)) < len(names):
        raise DataError("its vertices have two properties of one name", path=file)
    if count > MAX_POINTS:
        raise DataError(f"claims {count:,} points, more than {MAX_POINTS:,}", path=file)
    if order == "":
        text = body.decode("ascii", "replace").splitlines()[:count]
        table = _rows(text, len(lines) + 2, file)
        if len(table) != count or (count and table.shape[1] != len(names)):
            said = f"holds {len(table)} of the {count} vertices that its header claims"
            raise DataError(said, path=file)
        columns = [table[:, names.index(axis)] for axis in "xyz"] if count else []
    else:
        kind = np.dtype([(name, order + one) for name, one in zip(names, types)])
        if len(body) < count * kind.itemsize:
            raise DataError(f"ends before the last of its {count} vertices", path=file)
        table = np.frombuffer(body, kind, count)
        columns = [table[axis].astype(np.float64) for axis in "xyz"]
    return np.stack(columns, 1) if count else np.empty((0, 3))
