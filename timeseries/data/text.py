"""Tables in text: what their separator, encoding or a cut record would make of them is refused."""

from __future__ import annotations

import csv
import ctypes
import gzip
import io
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pandas as pd

from longseq.core.errors import DataError

# What pandas takes as missing; in a column of names only an empty field is: NA is Namibia.
_MISSING = (
    *("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN"),
    *("<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"),
)
_PACKED = {
    b"\x1f\x8b": "by gzip (call it .csv.gz, or unpack it)",
    b"PK\x03\x04": "as a zip file, or is a workbook (unpack it, or save its sheet as CSV in UTF-8)",
    b"\x28\xb5\x2f\xfd": "by zstd (unpack it)",
    b"\xfd7zXZ": "by xz (unpack it)",
    b"BZh": "by bzip2 (unpack it)",
}
_NAMES = {",": "commas", "\t": "tabs", "|": "bars (|)", ";": "semicolons"}


def read_text(file: Path, delimiter: str, names: Collection[str] = ()) -> pd.DataFrame:
    """Reads CSV or TSV; a header with semicolons and no commas is of the European kind.

    Args:
        file: UTF-8, with or without a byte-order mark; ``.gz`` is unpacked.
        delimiter: that its suffix says.
        names: columns, in lower case, that stay the texts they are: 007, 1e5 or NA.

    Returns:
        The frame, blanks around the fields left out; ``attrs["european"]`` for semicolons.

    Raises:
        DataError: for another encoding or separator, or a record that is not as long as the header.
        ValueError, OSError: as pandas finds a file that is no table.
    """
    with gzip.open(file) if file.suffix.lower() == ".gz" else file.open("rb") as stream:
        first = stream.readline()
    for magic, how_packed in _PACKED.items():
        if first.startswith(magic):
            raise DataError(f"is no text, it is packed {how_packed}", path=file)
    if first.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in first:
        raise _encoding(file, "UTF-16")
    header = first.decode("utf-8-sig", errors="replace")
    if header.strip().lower().startswith("sep="):
        raise DataError(
            f"line 1: {header.strip()!r} is for a spreadsheet, and no header",
            path=file,
            hint="take this line away",
        )
    european = ";" in header and "," not in header and delimiter == ","
    found = ";" if european else delimiter
    if found not in header:
        other = max(_NAMES, key=header.count)
        if header.count(other):
            name = "name it .tsv" if other == "\t" else f"write it with {_NAMES[delimiter]}"
            raise DataError(
                f"has fields between {_NAMES[other]}, not {_NAMES[delimiter]}", path=file, hint=name
            )
    # Whole columns: in blocks of rows, a name 1 would be a number in one and a text in others.
    how: Any = {"dtype": str} if european else {"low_memory": False}
    try:  # a lone carriage return ends a line, too
        text = io.StringIO(header, newline=None)
        columns = next(csv.reader(text, delimiter=found, skipinitialspace=True), [])
    except csv.Error as error:
        raise DataError(f"its header cannot be read: {error}", path=file) from error
    named = [name.strip() for name in columns if name.strip()]
    twice = next((name for i, name in enumerate(named) if name in named[:i]), None)
    if twice is not None:  # pandas would call the second one a.1
        raise DataError(f"two columns have the same name, {twice!r}", path=file)
    texts = [name for name in columns if name.strip().lower() in names]
    if texts:
        how["dtype"] = str if european else dict.fromkeys(texts, str)
        how["keep_default_na"] = False
        how["na_values"] = {name: [""] if name in texts else _MISSING for name in columns}
    try:
        frame = pd.read_csv(file, sep=found, encoding="utf-8-sig", skipinitialspace=True, **how)
    except UnicodeDecodeError as error:
        raise _encoding(file, "another encoding") from error
    except pd.errors.ParserError:
        _check_lengths(file, found)  # which names the record and the way out
        raise
    if not isinstance(frame.index, pd.RangeIndex):
        _check_lengths(file, found)
        raise DataError("has more fields in its records than in its header", path=file)
    if frame.shape[1] > 1 and frame.iloc[:, -1].isna().any():
        _check_lengths(file, found)
    for name in texts:
        frame[name] = frame[name].str.strip()
    frame = frame.rename(columns=str.strip)
    if european:
        frame.attrs["european"] = True
    return frame


def read_numbers(file: Path) -> pd.DataFrame:
    """Reads numbers between commas, without a header.

    Raises:
        DataError: for a record that is not as long as the first one.
        ValueError, OSError: as pandas finds a file that is no table.
    """
    try:
        frame = pd.read_csv(file, header=None, low_memory=False)
    except pd.errors.ParserError:
        _check_lengths(file, ",")
        raise
    if frame.shape[1] > 1 and frame.iloc[:, -1].isna().any():
        _check_lengths(file, ",")
    return frame


def give_back() -> None:
    """Returns to the system what reading a file or a frame took: Arrow keeps it, and so does the C
    library of Linux."""
    if "pyarrow" in sys.modules:
        sys.modules["pyarrow"].default_memory_pool().release_unused()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # not in every C library
        if trim is not None:
            trim(0)


def _encoding(file: Path, kind: str) -> DataError:
    return DataError(f"is text in {kind}, not in UTF-8", path=file, hint="save it as UTF-8")


def _check_lengths(file: Path, delimiter: str) -> None:
    """Checks that no record has fewer fields than the header, which pandas takes as empty, or
    more, of which it makes an index."""
    how: Any = {"mode": "rt", "encoding": "utf-8-sig", "newline": ""}
    with gzip.open(file, **how) if file.suffix.lower() == ".gz" else file.open(**how) as stream:
        rows = csv.reader(stream, delimiter=delimiter, skipinitialspace=True)
        wanted = len(next(rows))
        for row in rows:
            if len(row) > wanted:
                raise DataError(
                    f"line {rows.line_num}: {len(row)} fields, more in a record than the {wanted} "
                    "of the first line",
                    path=file,
                    hint="the first line must name every column: take lines above it away, and "
                    "put a name over each",
                )
            if row and len(row) < wanted:
                raise DataError(
                    f"line {rows.line_num}: {len(row)} of {wanted} fields",
                    path=file,
                    hint="is the file cut short? A missing value is an empty field, with its "
                    "separator",
                )
