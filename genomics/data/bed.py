"""Reads BED files: regions of a genome, optionally with the split each belongs to."""

from __future__ import annotations

from dataclasses import dataclass
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
    """

    chrom: str
    start: int
    end: int
    name: str = ""
    score: float | None = None
    strand: str = "."
    split: str | None = None


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
    return Region(chrom, start, end, name, score, strand, _SPLITS.get(name.lower()))
