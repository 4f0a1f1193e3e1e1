"""Sequence files as they come: which format a file is of by its content, and any of them as FASTA.

What cannot be read by region as it stands is rewritten once into the cache: FASTQ, GenBank, EMBL,
GFF3 with a ##FASTA section, and FASTA with uneven or blank lines, a byte order mark, line ends of
old Macs, a trailing "*", spaces, or the dashes of an alignment.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, BinaryIO, Literal, TextIO

import numpy as np

from longseq.core.errors import DataError
from longseq.core.files import open_unzipped
from longseq.core.formats import Formats
from longseq.genomics.data.tokenizer import NUCLEOTIDE_LETTERS

Format = Literal["fasta", "fastq", "genbank", "embl", "gff3", "outside"]
_BOM = b"\xef\xbb\xbf"
_BEGINS: tuple[tuple[bytes, Format], ...] = (
    (b"LOCUS", "genbank"),
    (b"ID   ", "embl"),
    (b"@", "fastq"),
    (b"##gff-version", "gff3"),
)
_CHUNK = 1 << 22
_WIDTH = 80


FORMATS: Formats[Callable[[Path], Iterable[tuple[str, str]]]] = Formats("genome")
"""Sequence files of other formats: a reader takes the path and yields (name, bases) of records."""


def format_of(path: str | Path) -> Format:
    """Returns a sequence file's format by its first characters, plain or gzip; "fasta" for others,
    "outside" for a suffix of ``FORMATS``.

    Args:
        path: the file.
    """
    if FORMATS.suffix_of(path):
        return "outside"
    with open_unzipped(path, "genome file") as file:
        head = file.read(64).removeprefix(_BOM).lstrip()
    return next((kind for begin, kind in _BEGINS if head.startswith(begin)), "fasta")


def is_irregular(file: BinaryIO) -> bool:
    """Returns whether a FASTA file has to be cleaned before its lines can be counted.

    Args:
        file: its content.
    """
    held, in_header, first = b"", False, True  # held: line ends, to be seen with what follows them
    lines = _Lines()
    while chunk := file.read(_CHUNK):
        if lines.uneven(chunk):
            return True
        block = held + chunk
        if first and block.startswith(_BOM):
            return True
        text = block.rstrip(b"\r\n")
        held = block[len(text) :]
        if not text:
            continue
        blank = rb"(?:\A|\n)\r?\n(?=[^>\r\n])" if first else rb"\n\r?\n(?=[^>\r\n])"
        first = False
        if (b"\r" in text and re.search(rb"\r[^\n]", text)) or re.search(blank, text):
            return True
        body = text
        if in_header:
            _, end, body = text.partition(b"\n")
            in_header = not end
        in_header = in_header or text[text.rfind(b"\n") + 1 :].startswith(b">")
        in_header = in_header and not held
        body = re.sub(rb"(?m)^>[^\n]*\n?", b"", body).translate(None, NUCLEOTIDE_LETTERS + b"\r\n")
        if any(byte in body for byte in b"-* \t"):
            return True
    return held.endswith(b"\r") or lines.uneven(b"", end=True)


class _Lines:
    """The lines of a FASTA file as they come, by length: an index computes where a base lies from
    that of a record's first line, so that all but its last must be as long, and that no longer."""

    def __init__(self) -> None:
        self._size = 0  # bytes of the line that has no end yet
        self._opens = self._before = b""  # its first byte, and the last byte that was read
        self._headed = False
        self._last: list[tuple[int, int]] = []  # bytes and bases of the record's last two lines

    def uneven(self, chunk: bytes, end: bool = False) -> bool:
        """Returns whether lines that end in the next bytes, or with the file, are of other lengths.

        Args:
            chunk: the next bytes.
            end: whether the file is at its end.
        """
        data = np.frombuffer(self._before + chunk, np.uint8)
        ends = np.flatnonzero(data[len(self._before) :] == ord("\n"))
        starts = np.concatenate([[0], ends + 1])
        sizes = np.diff(starts)
        left = len(chunk) - int(starts[-1])
        opens = np.frombuffer(chunk, np.uint8)[starts[1:-1]]
        if len(sizes):
            sizes[0] += self._size
            opens = np.concatenate([np.frombuffer(self._opens or chunk[:1], np.uint8), opens])
            returns = data[ends + len(self._before) - 1] == ord("\r")
            bases = sizes - 1 - (returns & (sizes > 1))
            self._size, self._opens = left, chunk[len(chunk) - left :][:1]
        else:
            bases = sizes
            self._size, self._opens = self._size + left, self._opens or chunk[:1]
        self._before = chunk[-1:] or self._before
        if end and self._size:
            sizes, bases = np.append(sizes, self._size), np.append(bases, self._size)
            opens = np.append(opens, np.frombuffer(self._opens, np.uint8))
        if (bases[sizes > 1] == 0).any():  # a blank line with a \r, which no index takes
            return True
        kept = bases > 0  # other blank lines are looked for elsewhere
        sizes, bases, opens = sizes[kept], bases[kept], opens[kept]
        known = np.array(self._last, np.int64).reshape(-1, 2)
        sizes, bases = np.concatenate([known[:, 0], sizes]), np.concatenate([known[:, 1], bases])
        title = np.concatenate([np.zeros(len(known), bool), opens == ord(">")])
        if not self._headed:  # what stands before the first record is none
            first = int(title.argmax()) if title.any() else len(title)
            sizes, bases, title = sizes[first:], bases[first:], title[first:]
            self._headed = len(title) > 0
        pair = ~title[1:] & ~title[:-1]
        longer = pair & (bases[1:] > bases[:-1])
        inner = pair[:-1] & ~title[2:]  # pairs of which the second is not its record's last
        other = inner & ((sizes[1:-1] != sizes[:-2]) | (bases[1:-1] != bases[:-2]))
        begin = max(int(np.flatnonzero(title)[-1]) + 1 if title.any() else 0, len(sizes) - 2)
        self._last = list(zip(sizes[begin:].tolist(), bases[begin:].tolist()))
        return bool(longer.any() or other.any())


def write_clean(lines: Iterable[str], out: TextIO) -> dict[str, int]:
    """Writes the records of FASTA lines with even lines.

    Blank lines, white space and a "*" at the end of a record are dropped, and so are the dashes of
    an alignment.

    Args:
        lines: text lines.
        out: takes the cleaned file.

    Returns:
        Records in which there were dashes, with their number.
    """
    dashes: dict[str, int] = {}
    name, left, star = "", "", False

    def write(text: str, end: bool) -> str:
        whole = len(text) if end else len(text) // _WIDTH * _WIDTH
        for low in range(0, whole, _WIDTH):
            out.write(text[low : min(low + _WIDTH, whole)] + "\n")
        return text[whole:]

    for number, line in enumerate(lines):
        text = line.removeprefix("\ufeff") if number == 0 else line
        if text.startswith(">"):
            write(left, True)
            left, star = "", False
            name = (text[1:].split() or [""])[0]
            out.write(text.rstrip() + "\n")
            continue
        text = "".join(text.split())
        if not text:
            continue
        if star:  # it was not at the end
            left, star = left + "*", False
        if text.endswith("*"):
            text, star = text[:-1], True
        if count := text.count("-"):
            dashes[name] = dashes.get(name, 0) + count
            text = text.replace("-", "")
        left = write(left + text, False)
    write(left, True)
    return dashes


def write_fasta(path: Path, kind: Format, out: TextIO) -> dict[str, int]:
    """Writes the sequences of a file of any format as FASTA.

    Args:
        path: the file, plain or gzip.
        kind: its format.
        out: takes the FASTA.

    Returns:
        As ``write_clean``.

    Raises:
        DataError: if it is malformed, or has no sequence.
    """
    if kind == "outside":
        with FORMATS.guard(path):
            records = FORMATS.read(path, path)
            return write_clean((part for one in records for part in (f">{one[0]}", one[1])), out)
    if kind in ("genbank", "embl"):
        from longseq.genomics.data.genbank import read_genbank

        records = read_genbank(path)
        return write_clean(
            (part for one in records for part in (f">{one.name}", one.sequence)), out
        )
    with open_unzipped(path, "genome file") as file:
        text = io.TextIOWrapper(file, encoding="utf-8-sig")
        try:
            if kind == "fastq":
                return write_clean(_fastq_lines(text, path), out)
            if kind == "gff3":
                return write_clean(_after_fasta(text, path), out)
            return write_clean(text, out)
        except UnicodeDecodeError:
            raise DataError("is not a text file, so not FASTA", path=path) from None
        finally:
            text.detach()


def _fastq_lines(text: IO[str], path: Path) -> Iterator[str]:
    from Bio.SeqIO.QualityIO import FastqGeneralIterator

    number = 0
    try:
        for title, sequence, _ in FastqGeneralIterator(text):
            number += 1
            yield f">{title}"
            yield sequence
    except ValueError as error:
        where = f"read {number + 1}"
        raise DataError(f"malformed FASTQ file: {error}", path=path, record=where) from None


def _after_fasta(text: IO[str], path: Path) -> Iterator[str]:
    for line in text:
        if line.startswith("##FASTA"):
            yield from text
            return
    raise DataError(
        "a GFF3 file without a ##FASTA section has no sequence",
        path=path,
        hint="give the FASTA file that it describes",
    )
