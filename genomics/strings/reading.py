"""Files of proteins and molecules: FASTA, .smi, and tables with a column of strings."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from longseq.core.errors import DataError, did_you_mean
from longseq.core.files import open_unzipped, require_file
from longseq.core.tables import SUFFIXES, read_rows
from longseq.genomics.strings.alphabets import Alphabet

_COLUMNS = {"protein": ("sequence", "protein", "seq"), "smiles": ("smiles", "canonical_smiles")}
_NAMES = ("name", "id", "accession")


def read_strings(
    path: str | Path, alphabet: Alphabet, column: str | None = None
) -> tuple[list[str], list[np.ndarray]]:
    """Reads strings: FASTA; one per line with a name after it (.smi); or a table's column.

    Args:
        path: the file; text may be compressed by gzip.
        alphabet: of the strings.
        column: of a .csv, .tsv or .parquet file; one that is called as the alphabet's usually are
            if None.

    Returns:
        Names, and token ids, uint8 (n,) each.

    Raises:
        DataError: for a file without strings, an empty string, an unknown column, and characters
            that are no symbols.
    """
    file = require_file(path, "file of strings")
    if file.suffix.lower() in SUFFIXES:
        records = _of_table(file, alphabet, column)
    else:
        if column is not None:
            raise DataError(f"has no columns, column={column!r} was given", path=path)
        records = _of_text(file, alphabet)
    names: list[str] = []
    strings: list[np.ndarray] = []
    for name, text in records:
        ids = alphabet.encode(text, path=path, record=name)
        if not len(ids):
            raise DataError("is empty", path=path, record=name)
        names.append(name)
        strings.append(ids)
    if not strings:
        raise DataError(f"has no {alphabet.what}", path=path)
    return names, strings


def _of_table(file: Path, alphabet: Alphabet, column: str | None) -> Iterator[tuple[str, str]]:
    rows = read_rows(file)
    if not rows:
        return
    columns = [str(one) for one in rows[0] if one is not None]
    wanted = (column,) if column is not None else _COLUMNS[alphabet.name]
    found = [one for one in columns if one.lower() in {str(name).lower() for name in wanted}]
    if not found:
        known = did_you_mean(column or wanted[0], columns)
        text = f"no column {column!r}" if column else f"no column named {' or '.join(wanted)}"
        raise DataError(text, path=file, hint=f"data.column: {known}")
    name = next((one for one in columns if one.lower() in _NAMES), None)
    for row in rows:
        yield (str(row[name]) if name else f"line {row.line}"), row[found[0]] or ""


def _of_text(file: Path, alphabet: Alphabet) -> Iterator[tuple[str, str]]:
    with open_unzipped(file) as binary:
        try:
            lines = io.TextIOWrapper(binary, encoding="utf-8-sig").read().splitlines()
        except UnicodeDecodeError as error:
            raise DataError("is no text in UTF-8", path=file) from error
    first = next((line for line in lines if line.strip()), "")
    if first.startswith((">", ";")):
        yield from _of_fasta(lines)
        return
    for number, line in enumerate(lines, 1):
        text, _, name = line.strip().partition("\t" if "\t" in line.strip() else " ")
        if not text or (number == 1 and text.lower() in _COLUMNS[alphabet.name]):
            continue
        yield name.strip() or f"line {number}", text


def _of_fasta(lines: list[str]) -> Iterator[tuple[str, str]]:
    name, parts = "", list[str]()
    for line in [*lines, ">"]:
        if line.startswith(";"):
            continue
        if not line.startswith(">"):
            parts.append(line)
            continue
        if name:
            yield name, "".join(parts)
        words = line[1:].split()
        name, parts = words[0] if words else "(no name)", []
