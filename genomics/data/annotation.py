"""Annotated features from GFF3, GTF, GenBank, EMBL or BED files: where they lie, strand, parts."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote

from longseq.core.errors import DataError, did_you_mean
from longseq.core.files import open_unzipped
from longseq.genomics.data.bed import read_bed
from longseq.genomics.data.collection import Collection
from longseq.genomics.data.fasta import Genome
from longseq.genomics.data.formats import format_of
from longseq.genomics.data.genbank import read_genbank

_NAMES = ("Name", "gene", "gene_name", "locus_tag", "ID", "gene_id", "transcript_id", "Parent")
_SHOWN = 3  # genes that a warning names


@dataclass(frozen=True)
class Feature:
    """A feature of a genome.

    Attributes:
        chrom: the record, in the genome's spelling.
        start: first position, 0-based.
        end: one past the last position; of what spans the origin of a circle, counted on beyond
            the record's end.
        strand: "+", "-" or ".".
        kind: gene, CDS, exon …
        name: symbol, locus tag or identifier, or "".
        parts: (start, end) of its parts in the order of the genome: exons of a joined feature;
            counted on beyond the record's end as above.
        phase: bases before the first whole codon, counted from the feature's own beginning; None
            where the file does not say.
        pseudo: whether it is marked as no working gene, or is not whole: it then counts for none.
        size: of the record, where the feature spans its origin; else 0.
    """

    chrom: str
    start: int
    end: int
    strand: str = "."
    kind: str = ""
    name: str = ""
    parts: tuple[tuple[int, int], ...] = ()
    phase: int | None = None
    pseudo: bool = False
    size: int = 0

    def __len__(self) -> int:
        return sum(end - start for start, end in self.spans())

    @property
    def counts(self) -> bool:
        """Whether it is a working gene, whole and of a known strand."""
        return not self.pseudo and self.strand in ("+", "-")

    def counted_on(self) -> tuple[tuple[int, int], ...]:
        """Returns its parts, beyond the record's end where it spans the origin; itself where it has
        one."""
        return self.parts or ((self.start, self.end),)

    def spans(self) -> tuple[tuple[int, int], ...]:
        """Returns its parts as they lie on the record, cut at the origin, by place."""
        if not self.size:
            return self.counted_on()
        found = []
        for start, end in self.counted_on():
            if start < self.size:
                found.append((start, min(end, self.size)))
            if end > self.size:
                found.append((max(start - self.size, 0), end - self.size))
        return tuple(sorted(found))


def read_features(
    path: str | Path,
    genome: Genome | Collection | None = None,
    kinds: Sequence[str] = (),
    circular: Sequence[str] = (),
) -> list[Feature]:
    """Returns the features of a file, by record and place.

    Lines of one kind and one identifier (GFF3: ``ID``; GTF: ``transcript_id``) are parts of one
    feature, and so are the two sides of the origin of a circle, and a CDS of GTF and its
    ``stop_codon``. A warning names genes of a GenBank
    file that are not whole on their record.

    Args:
        path: GFF3, GTF, GenBank or EMBL by its content, BED by its name; plain or gzip.
        genome: checks names and bounds; without it, features are taken as they are.
        kinds: only those of these kinds; all if empty.
        circular: records that are circles, beside those that the file calls so.

    Raises:
        DataError: on the first line that is wrong, if none is of these kinds, or if the file
            describes a record of another length than the genome's.
    """
    path = Path(path)
    if path.name.lower().removesuffix(".gz").endswith(".bed"):
        found = [
            Feature(one.chrom, one.start, one.end, one.strand, "region", one.name, one.parts)
            for one in read_bed(path, genome)
        ]
    elif format_of(path) in ("genbank", "embl"):
        found = _of_records(path, genome)
    else:
        found = list(_joined(path, genome, circular))
    if kinds:
        known = sorted({one.kind for one in found})
        found = [one for one in found if one.kind in kinds]
        if not found:
            hint = did_you_mean(kinds[0], known)
            raise DataError(f"no feature of kind {', '.join(kinds)}", path=path, hint=hint)
    if not found and not (genome is not None and path == genome.path):
        raise DataError("no features", path=path, hint="GFF3, GTF, GenBank, EMBL or BED is read")
    places = {name: i for i, name in enumerate(genome.records)} if genome is not None else {}
    found.sort(key=lambda one: (places.get(one.chrom, 0), one.chrom, one.start, one.end))
    return found


def _of_records(path: Path, genome: Genome | Collection | None) -> list[Feature]:
    """Returns the genes of a GenBank or EMBL file."""
    found, torn = [], []
    for record in read_genbank(path):
        torn += [f"{record.name}: {text}, left out" for text in record.left_out]
        for gene in record.genes:
            one = Feature(
                gene.chrom,
                gene.start,
                gene.end,
                gene.strand,
                gene.kind,
                gene.name,
                gene.parts,
                gene.phase,
                gene.pseudo or bool(gene.torn),
                gene.size,
            )
            one = _named(one, genome, path, gene.name)
            _check_size(one.chrom, len(record.sequence), genome, path)
            _check_bounds(one, genome, path, gene.name)
            found.append(one)
            if gene.torn:
                torn.append(f"{record.name}: {gene.kind} {gene.name} ({gene.torn})")
    _warn(path, torn)
    return found


def _warn(path: Path, torn: Sequence[str]) -> None:
    """Names genes that are not whole on their record, if there are any."""
    if torn:
        more = f" and {len(torn) - _SHOWN} more" if len(torn) > _SHOWN else ""
        warnings.warn(
            f"{path}: not whole on their record, so that they count for no gene: "
            f"{'; '.join(torn[:_SHOWN])}{more}",
            stacklevel=4,
        )


def _check_size(chrom: str, size: int, genome: Genome | Collection | None, path: Path) -> None:
    """Checks that an annotation is of a record as long as the genome's.

    Raises:
        DataError: if it is not.
    """
    if genome is not None and size != genome.records[chrom]:
        raise DataError(
            f"describes {size:,} bases, and the record of {genome.path.name} has "
            f"{genome.records[chrom]:,}: it is of another sequence of this name",
            path=path,
            record=chrom,
            hint="give the annotation of this genome",
        )


def _joined(
    path: Path, genome: Genome | Collection | None, circular: Sequence[str]
) -> Iterator[Feature]:
    """Yields the features of GFF3 or GTF lines, those of several lines once."""
    groups: dict[tuple[str, ...], list[tuple[Feature, str]]] = {}
    circles = set(circular)
    for number, line in _lines(path):
        where = f"line {number}"
        if line.startswith("#"):
            _check_region(line, genome, path, where)
            continue
        columns = line.rstrip("\r\n").split("\t")
        if len(columns) != 9:
            raise DataError(
                f"{len(columns)} columns between tabs, GFF3 and GTF have 9", path=path, record=where
            )
        attributes = _attributes(columns[8])
        one = _named(_feature(columns, attributes, path, where), genome, path, where)
        if attributes.get("Is_circular") == "true":
            circles.add(one.chrom)
        keys = ("ID",)
        if "gene_id" in attributes and "ID" not in attributes:  # GTF
            keys = ("gene_id",) if one.kind == "gene" else ("transcript_id", "gene_id")
        group = next((attributes[key] for key in keys if attributes.get(key)), where)
        groups.setdefault((one.chrom, one.kind, one.strand, group), []).append((one, where))
    strands: dict[tuple[str, ...], set[str]] = {}
    for chrom, kind, strand, group in groups:
        strands.setdefault((chrom, kind, group), set()).add(strand)
    torn = [key for key, own in strands.items() if len(own) > 1]
    _warn(path, [f"{key[0]}: {key[1]} {key[2]} (its parts lie on both strands)" for key in torn])
    for (chrom, kind, strand, group), lines in groups.items():
        if kind == "CDS":
            lines = _with_stop(lines, groups.get((chrom, "stop_codon", strand, group), ()))
        size = genome.records[chrom] if genome is not None and chrom in circles else 0
        for one, where in lines:
            _check_bounds(replace(one, size=size), genome, path, where)
        one = _whole([one for one, _ in lines], size)
        yield replace(one, pseudo=True) if (chrom, kind, group) in torn else one


def _with_stop(
    lines: Sequence[tuple[Feature, str]], stop: Sequence[tuple[Feature, str]]
) -> list[tuple[Feature, str]]:
    """Returns the lines of a CDS with those of its stop codon, which GTF leaves out and
    GFF3, GenBank and gene finders count to it.

    Args:
        lines: of the CDS.
        stop: of the stop codon; where the CDS has it already, nothing is added.
    """
    found = list(lines)
    for one, where in stop:
        if any(one.start < own.end and own.start < one.end for own, _ in lines):
            continue
        for i, (own, there) in enumerate(found):
            if own.end == one.start or own.start == one.end:
                both = min(own.start, one.start), max(own.end, one.end)
                found[i] = replace(own, start=both[0], end=both[1]), there
                break
        else:
            # Of the same kind: the whole is described by its leftmost line.
            part = replace(lines[0][0], start=one.start, end=one.end, phase=one.phase)
            found.append((part, where))
    return found


def _feature(columns: Sequence[str], attributes: dict[str, str], path: Path, where: str) -> Feature:
    """Returns what a line says.

    Raises:
        DataError: if it is wrong.
    """
    try:
        start, end = int(columns[3]) - 1, int(columns[4])
    except ValueError:
        message = f"start {columns[3]!r} and end {columns[4]!r} must be whole numbers"
        raise DataError(message, path=path, record=where) from None
    if columns[6] not in ("+", "-", ".", "?"):
        raise DataError(f"strand {columns[6]!r} is not +, -, . or ?", path=path, record=where)
    if columns[7] not in ("0", "1", "2", "."):
        raise DataError(f"phase {columns[7]!r} is not 0, 1, 2 or .", path=path, record=where)
    kind, strand = columns[2], columns[6].replace("?", ".")
    name = next((attributes[key] for key in _NAMES if attributes.get(key)), "")
    phase = None if columns[7] == "." else int(columns[7])
    pseudo = attributes.get("pseudo") == "true" or "pseudogene" in attributes
    return Feature(unquote(columns[0]), start, end, strand, kind, name, (), phase, pseudo)


def _whole(lines: Sequence[Feature], size: int) -> Feature:
    """Returns the feature of some lines.

    Args:
        lines: of one identifier, in any order.
        size: of the record if it is a circle, else 0.
    """
    lines = sorted(lines, key=lambda one: one.start)
    if size and len(lines) > 1 and lines[-1].end >= size > lines[0].end:
        # At the origin: a feature begins behind the widest gap of the circle.
        gaps = [after.start - before.end for before, after in pairwise(lines)]
        outside = lines[0].start + size - lines[-1].end
        if (outside == 0 or lines[-1].end > size) and max(gaps) > outside:
            split = gaps.index(max(gaps)) + 1
            moved = [replace(one, start=one.start + size, end=one.end + size) for one in lines]
            lines = [*lines[split:], *moved[:split]]
    if size and all(one.start >= size for one in lines):
        lines = [replace(one, start=one.start - size, end=one.end - size) for one in lines]
    one = lines[-1] if lines[0].strand == "-" else lines[0]  # where it is read first
    parts: list[tuple[int, int]] = []
    for line in lines:
        if size and parts and parts[-1][1] == size == line.start:
            parts[-1] = (parts[-1][0], line.end)
        else:
            parts.append((line.start, line.end))
    end = max(end for _, end in parts)
    return replace(
        lines[0],
        start=parts[0][0],
        end=end,
        parts=tuple(parts) if len(parts) > 1 else (),
        phase=one.phase,
        size=size if end > size else 0,
    )


def _check_region(line: str, genome: Genome | Collection | None, path: Path, where: str) -> None:
    """Checks a line ``##sequence-region record 1 end`` against the genome, where it has the record.

    Raises:
        DataError: if the record has another length.
    """
    words = line.split()
    if genome is None or words[0] != "##sequence-region" or len(words) != 4 or words[2] != "1":
        return
    try:
        chrom = genome.resolve(unquote(words[1]))
    except DataError:
        return  # of which no feature may speak
    if words[3].isdecimal():
        _check_size(chrom, int(words[3]), genome, path)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yields number and text of lines that say something, and of ``##sequence-region``."""
    try:
        with open_unzipped(path, "annotation file") as file:
            text = io.TextIOWrapper(file, encoding="utf-8-sig")
            try:
                for number, line in enumerate(text, 1):
                    if line.startswith(("##FASTA", ">")):
                        return
                    if line.strip() and (line[0] != "#" or line.startswith("##seq")):
                        yield number, line
            finally:
                text.detach()
    except UnicodeDecodeError:
        raise DataError("is not a text file, so not GFF3 or GTF", path=path) from None


def _attributes(text: str) -> dict[str, str]:
    """Returns the ninth column: ``key=value;`` of GFF3, or ``key "value";`` of GTF."""
    found: dict[str, str] = {}
    for part in text.split(";"):
        part = part.strip()
        equals, space = part.find("="), part.find(" ")
        if equals > 0 and (space < 0 or equals < space):
            found.setdefault(part[:equals], unquote(part[equals + 1 :]))
        elif space > 0:
            found.setdefault(part[:space], part[space + 1 :].strip().strip('"'))
    return found


def _named(one: Feature, genome: Genome | Collection | None, path: Path, record: str) -> Feature:
    """Returns a feature with its record in the genome's spelling.

    Raises:
        DataError: if the genome has no such record.
    """
    if genome is None:
        return one
    try:
        return replace(one, chrom=genome.resolve(one.chrom))
    except DataError as error:
        raise DataError(f"not in {genome.path.name}: {error}", path=path, record=record) from None


def _check_bounds(
    one: Feature, genome: Genome | Collection | None, path: Path, record: str
) -> None:
    """Checks that a feature lies in its record.

    Raises:
        DataError: if it does not.
    """
    if not 0 <= one.start < one.end:
        message = f"{one.start + 1}-{one.end} is no range of positions from 1"
        raise DataError(message, path=path, record=record)
    if one.size and len(one) <= one.size and one.start < 2 * one.size:
        return  # counted on beyond the origin of a circle
    if genome is not None and one.end > (size := genome.records[one.chrom]):
        message = f"end {one.end:,} is beyond {one.chrom}, which has {size:,} bases"
        raise DataError(message, path=path, record=record)


def own_features(path: str | Path, genome: Genome | Collection) -> list[Feature]:
    """Returns the genes of a genome's own file: GenBank and EMBL have them, others have none.

    Args:
        path: the genome's file.
        genome: that was opened from it.
    """
    return read_features(path, genome) if format_of(path) in ("genbank", "embl") else []
