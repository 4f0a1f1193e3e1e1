"""Regions as people write them: chr1:101-200 (from 1, both ends included), or a BED file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from longseq.core.errors import DataError
from longseq.genomics.data.bed import read_bed
from longseq.genomics.data.collection import Collection
from longseq.genomics.data.fasta import Genome
from longseq.genomics.data.splits import Interval


def parse_region(text: str, genome: Genome | Collection) -> Interval:
    """Returns the interval that ``record``, ``record:5-80`` or ``record:5`` means.

    Args:
        text: positions count from 1, both ends are included, commas are allowed in them.
        genome: that it must lie in.

    Raises:
        DataError: if it does not.
    """
    if text in genome.records:  # names may hold colons
        return Interval(text, 0, genome.records[text])
    found = re.fullmatch(r"(.+):([\d,]+)(?:-([\d,]+))?", text)
    if found is None:
        name = genome.resolve(text)
        return Interval(name, 0, genome.records[name])
    name = genome.resolve(found[1])
    first = int(found[2].replace(",", ""))
    last = int((found[3] or found[2]).replace(",", ""))
    size = genome.records[name]
    if not 1 <= first <= last <= size:
        raise DataError(
            f"region {first}-{last} does not lie in 1-{size}", path=genome.path, record=name
        )
    return Interval(name, first - 1, last)


def chosen(
    genome: Genome | Collection, region: str | None = None, bed: str | Path | None = None
) -> list[Interval]:
    """Returns the intervals that a command asks for: a region, those of a BED file, or all records.

    Args:
        genome: the sequence.
        region: see ``parse_region``.
        bed: see ``read_bed``.

    Raises:
        DataError: if both are given, or one does not fit the genome.
    """
    if region is not None and bed is not None:
        raise DataError("give either --region or --bed, not both")
    if region is not None:
        return [parse_region(region, genome)]
    if bed is not None:
        return [Interval(one.chrom, one.start, one.end) for one in read_bed(bed, genome)]
    return [Interval(name, 0, size) for name, size in genome.records.items()]


def apart(
    intervals: Sequence[Interval],
    records: Mapping[str, int],
    path: str | Path,
    why: str,
    hint: str = "merge the regions",
) -> list[Interval]:
    """Returns intervals in the order of the genome, none of which may overlap another.

    Args:
        intervals: in any order.
        records: of the genome, in its order.
        path: of the output, for the message.
        why: they may not.
        hint: what to do.

    Raises:
        DataError: if two overlap.
    """
    places = {name: i for i, name in enumerate(records)}
    ordered = sorted(intervals, key=lambda one: (places[one.chrom], one.start))
    for one, after in pairwise(ordered):
        if one.chrom == after.chrom and after.start < one.end:
            raise DataError(
                f"regions {one.start + 1}-{one.end} and {after.start + 1}-{after.end} overlap: "
                + why,
                path=path,
                record=one.chrom,
                hint=hint,
            )
    return ordered
