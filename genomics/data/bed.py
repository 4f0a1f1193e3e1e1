"""Reads BED files: regions of a genome, optionally with the split each belongs to."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from longseq.core.errors import DataError
from longseq.core.files import open_unzipped
from longseq.genomics.data.collection import Collection
from longseq.genomics.data.fasta import Genome

_SPLITS = {
    "train": "train",
    "valid": "valid",
    "val": "valid",
    "validation": "valid",
    "test": "test",
}
_LIST = re.compile(r"\d+(,\d+)*,?")  # of numbers, as UCSC ends it


@dataclass(frozen=True)
class Region:
    """One line of a BED file.

    Attributes:
        chrom: record of the genome, in the genome's spelling.
        start: first position, 0-based.
        end: one past the last position.
        name: fourth column, or "".
        score: fifth column, or None.
        strand: "+", "-" or ".".
        split: "train", "valid" or "test" where the fourth column says so.
        parts: (start, end) of its blocks, columns 10 to 12, where there are several: exons.
    """

    chrom: str
    start: int
    end: int
    name: str = ""
    score: float | None = None
    strand: str = "."
    split: str | None = None
    parts: tuple[tuple[int, int], ...] = ()


def read_bed(path: str | Path, genome: Genome | Collection | None = None) -> list[Region]:
    """Returns the regions of a BED file in its order; comments, track and browser lines are not
    regions.

    Args:
        path: BED with 3 to 12 columns, plain or gzip; as in HyenaDNA's and Basenji's files, the
            fourth column may be train, valid or test.
        genome: checks names and bounds; without it, regions are taken as they are.

    Raises:
        DataError: on the first line that is wrong, by number.
    """
    path = Path(path)
    try:
        with open_unzipped(path, "BED file") as file:
            lines = file.read().decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise DataError("is not a text file, so not BED", path=path) from None
    lengths = genome.records if genome is not None else {}
    regions = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith(("#", "track", "browser")):
            continue
        try:
            regions.append(_region(line, genome, lengths))
        except DataError as error:
            raise DataError(str(error), path=path, record=f"line {number}") from None
    if not regions:
        raise DataError("no regions", path=path)
    return regions


def _region(line: str, genome: Genome | Collection | None, lengths: dict[str, int]) -> Region:
    columns = line.split("\t") if "\t" in line else line.split()
    if len(columns) < 3:
        raise DataError(f"{len(columns)} columns, at least 3 are needed (chrom, start, end)")
    chrom = columns[0].strip()
    try:
        start, end = int(columns[1]), int(columns[2])
    except ValueError:
        raise DataError(
            f"start {columns[1]!r} and end {columns[2]!r} must be whole numbers"
        ) from None
    if start < 0:
        raise DataError(f"start {start} is negative")
    if start >= end:
        raise DataError(f"start {start} is not before end {end}")
    if genome is not None:
        chrom = genome.resolve(chrom)
        if end > lengths[chrom]:
            raise DataError(f"end {end} is beyond {chrom}, which has {lengths[chrom]} bases")
    name = columns[3].strip() if len(columns) > 3 else ""
    score = None
    if len(columns) > 4 and columns[4].strip() not in ("", "."):
        try:
            score = float(columns[4])
        except ValueError:
            raise DataError(f"score {columns[4]!r} is not a number") from None
    strand = columns[5].strip() if len(columns) > 5 else "."
    if strand not in ("+", "-", "."):
        raise DataError(f"strand {strand!r} is not +, - or .")
    parts = _blocks(columns, start, end) if len(columns) >= 12 else ()
    return Region(chrom, start, end, name, score, strand, _SPLITS.get(name.lower()), parts)


def _blocks(columns: list[str], start: int, end: int) -> tuple[tuple[int, int], ...]:
    """Returns the blocks of a line of 12 columns; none where there is one, or where columns 10 to
    12 are something else, as of tools that put two lines side by side.

    Raises:
        DataError: if they are not as many as column 10 says, or do not go from start to end.
    """
    texts = [one.strip() for one in columns[9:12]]
    if not texts[0].isdecimal() or not all(_LIST.fullmatch(one) for one in texts[1:]):
        return ()
    sizes, begins = ([int(one) for one in text.split(",") if one] for text in texts[1:])
    whole = len(sizes) == len(begins) == int(texts[0])
    found = [(start + at, start + at + size) for at, size in zip(begins, sizes)]
    whole = whole and found[0][0] == start and found[-1][1] == end
    if not whole or any(a >= b for a, b in found) or any(a[1] > b[0] for a, b in pairwise(found)):
        raise DataError(
            f"blocks {', '.join(map(repr, texts))} (their number, sizes and "
            f"begins, columns 10 to 12) do not lie one after the other from {start} to {end}"
        )
    return tuple(found) if len(found) > 1 else ()
