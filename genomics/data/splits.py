"""Train, validation and test intervals of a genome: by chromosome, by fraction, or from a BED
file."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from longseq.core.errors import ConfigError, DataError
from longseq.genomics.data.bed import Region
from longseq.genomics.data.fasta import resolve_name


@dataclass(frozen=True, order=True)
class Interval:
    """Bases start … end - 1 (0-based) of a record."""

    chrom: str
    start: int
    end: int

    def __len__(self) -> int:
        return self.end - self.start


class Splits(NamedTuple):
    """Disjoint intervals for training, for choosing hyper-parameters, and for the reported
    score."""

    train: list[Interval]
    valid: list[Interval]
    test: list[Interval]


def split_by_chromosome(
    records: Mapping[str, int], valid: Sequence[str] = (), test: Sequence[str] = ()
) -> Splits:
    """Holds out whole records; all others are for training.

    Args:
        records: length in bases of every record.
        valid: records for validation, in either spelling (``chr8`` or ``8``).
        test: records for testing; HyenaDNA's are chr14 and chrX.

    Raises:
        ConfigError: if a record is in both.
        DataError: if there is no such record.
    """
    valid = [resolve_name(name, records) for name in valid]
    test = [resolve_name(name, records) for name in test]
    if both := set(valid) & set(test):
        raise ConfigError(
            f"{', '.join(sorted(both))}: both in the validation and in the test split"
        )
    held = {**dict.fromkeys(valid, "valid"), **dict.fromkeys(test, "test")}
    splits = Splits([], [], [])
    for name, length in records.items():
        getattr(splits, held.get(name, "train")).append(Interval(name, 0, length))
    return splits


def split_by_fraction(records: Mapping[str, int], valid: float = 0.05, test: float = 0.1) -> Splits:
    """Holds out the end of the genome, its records taken one after the other.

    The test split is the last piece and the validation split the piece before it. Both are
    contiguous: held-out windows scattered among training windows would share genes and repeats with
    them.

    Args:
        records: length in bases of every record.
        valid: fraction of all bases for validation; above 0, at least one base.
        test: fraction of all bases for testing; above 0, at least one base.

    Raises:
        ConfigError: if the fractions are none.
    """
    if not (0 <= valid <= 1 and 0 <= test <= 1 and valid + test <= 1):
        raise ConfigError(
            f"valid={valid} and test={test}: fractions of at least 0 that sum to at most 1"
        )
    total = sum(records.values())
    n_test, n_valid = (max(1, round(f * total)) if f > 0 else 0 for f in (test, valid))
    n_valid = min(n_valid, total - n_test)
    bounds = (0, total - n_test - n_valid, total - n_test, total)
    splits = Splits([], [], [])
    begin = 0  # of the record in the concatenated genome
    for name, length in records.items():
        for piece, low, high in zip(splits, bounds, bounds[1:]):
            start, end = max(low - begin, 0), min(high - begin, length)
            if start < end:
                piece.append(Interval(name, start, end))
        begin += length
    return splits


def split_from_bed(regions: Iterable[Region]) -> Splits:
    """Groups regions by the split that their BED file names; within a split, regions that touch
    become one.

    Args:
        regions: of :func:`longseq.genomics.data.bed.read_bed`.

    Raises:
        DataError: if a region has no split.
    """
    splits = Splits([], [], [])
    for region in regions:
        if region.split is None:
            raise DataError(
                f"the fourth column is {region.name!r}",
                record=f"{region.chrom}:{region.start}-{region.end}",
                hint="it must be train, valid or test",
            )
        getattr(splits, region.split).append(Interval(region.chrom, region.start, region.end))
    merged = Splits(*map(merge, splits))
    shared = _overlap(merged)
    if shared:
        warnings.warn(f"{shared:,} bases lie in more than one split of the BED file", stacklevel=2)
    return merged


def merge(intervals: Iterable[Interval]) -> list[Interval]:
    """Returns the union of intervals, sorted, as intervals that neither overlap nor touch."""
    out: list[Interval] = []
    for item in sorted(intervals):
        if out and out[-1].chrom == item.chrom and item.start <= out[-1].end:
            out[-1] = Interval(item.chrom, out[-1].start, max(out[-1].end, item.end))
        else:
            out.append(item)
    return out


def _overlap(splits: Splits) -> int:
    """Returns how many bases are counted more than once over the (merged) splits."""
    pieces = [item for split in splits for item in split]
    return sum(map(len, pieces)) - sum(map(len, merge(pieces)))
