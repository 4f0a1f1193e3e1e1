"""Annotated features from GFF3, GTF, GenBank, EMBL or BED files: where they lie, strand, parts."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
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


@dataclass(frozen=True)
class Feature:
    """A feature of a genome.

    Attributes:
        chrom: the record, in the genome's spelling.
        start: first position, 0-based.
        end: one past the last position.
        strand: "+", "-" or ".".
        kind: gene, CDS, exon …
        name: symbol, locus tag or identifier, or "".
        parts: (start, end) of its parts in the order of the genome: exons of a joined feature.
        phase: bases before the first whole codon, counted from the feature's own beginning; None
            where the file does not say.
        pseudo: whether it is marked as no working gene.
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

    def __len__(self) -> int:
        return sum(end - start for start, end in self.spans())

    def spans(self) -> tuple[tuple[int, int], ...]:
        """Returns its parts; itself where it has one."""
        return self.parts or ((self.start, self.end),)


def read_features(
    path: str | Path, genome: Genome | Collection | None = None, kinds: Sequence[str] = ()
) -> list[Feature]:
    """Returns the features of a file, by record and place.

    Lines of one kind and one identifier (GFF3: ``ID``; GTF: ``transcript_id``) are parts of one
    feature.

    Args:
        path: GFF3, GTF, GenBank or EMBL by its content, BED by its name; plain or gzip.
        genome: checks names and bounds; without it, features are taken as they are.
        kinds: only those of these kinds; all if empty.

    Raises:
        DataError: on the first line that is wrong, or if none is of these kinds.
    """
    path = Path(path)
    if path.name.lower().removesuffix(".gz").endswith(".bed"):
        found = [
            Feature(one.chrom, one.start, one.end, one.strand, "region", one.name)
            for one in read_bed(path, genome)
        ]
    elif format_of(path) in ("genbank", "embl"):
        found = []
        for gene in (gene for record in read_genbank(path) for gene in record.genes):
            one = Feature(
                gene.chrom,
                gene.start,
                gene.end,
                gene.strand,
                gene.kind,
                gene.name,
                gene.parts,
                gene.phase,
                gene.pseudo,
            )
            found.append(_named(one, genome, path, gene.name))
            _check_bounds(found[-1], genome, path, gene.name)
    else:
        found = list(_joined(path, genome))
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


def _joined(path: Path, genome: Genome | Collection | None) -> Iterator[Feature]:
    """Yields the features of GFF3 or GTF lines, those of several lines once."""
    groups: dict[tuple[str, ...], list[tuple[Feature, int | None]]] = {}
    circular: set[str] = set()

    def collect(one: Feature, attributes: dict[str, str], where: str) -> None:
        keys = ("ID",)
        if "gene_id" in attributes and "ID" not in attributes:  # GTF
            keys = ("gene_id",) if one.kind == "gene" else ("transcript_id", "gene_id")
        group = next((attributes[key] for key in keys if attributes.get(key)), where)
        # What spans the origin of a circle stays in two pieces.
        origin = where.rpartition("/")[2]
        groups.setdefault((one.chrom, one.kind, one.strand, group, origin), []).append(
            (one, one.phase)
        )

    for number, line in _lines(path):
        where = f"line {number}"
        columns = line.rstrip("\r\n").split("\t")
        if len(columns) != 9:
            raise DataError(
                f"{len(columns)} columns between tabs, GFF3 and GTF have 9", path=path, record=where
            )
        attributes = _attributes(columns[8])
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
        chrom = unquote(columns[0])
        phase = None if columns[7] == "." else int(columns[7])
        pseudo = attributes.get("pseudo") == "true" or "pseudogene" in attributes
        one = Feature(chrom, start, end, strand, kind, name, (), phase, pseudo)
        whole = _named(one, genome, path, where)
        if attributes.get("Is_circular") == "true":
            circular.add(whole.chrom)
        for piece, one in enumerate(_unwrapped(whole, genome, whole.chrom in circular)):
            _check_bounds(one, genome, path, where)
            collect(one, attributes, f"{where}/{piece}")
    for lines in groups.values():
        lines.sort(key=lambda pair: pair[0].start)
        first = lines[-1] if lines[0][0].strand == "-" else lines[0]
        parts = tuple((one.start, one.end) for one, _ in lines)
        one = lines[0][0]
        end = max(end for _, end in parts)
        yield Feature(
            one.chrom,
            one.start,
            end,
            one.strand,
            one.kind,
            one.name,
            parts if len(parts) > 1 else (),
            first[1],
            one.pseudo,
        )


def _unwrapped(
    one: Feature, genome: Genome | Collection | None, circular: bool
) -> Iterator[Feature]:
    """Yields a feature, or the two pieces of one that goes on beyond the origin of a circle."""
    size = None
    if circular and genome is not None:
        size = genome.records[one.chrom]
    if size is None or one.end <= size or one.start >= size:
        yield one
        return
    pieces = [replace(one, end=size), replace(one, start=0, end=one.end - size)]
    if one.phase is not None:  # of the piece that is read last
        first, last = (0, 1) if one.strand != "-" else (1, 0)
        phase = (one.phase - len(pieces[first])) % 3
        pieces[last] = replace(pieces[last], phase=phase)
    yield from pieces


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        with open_unzipped(path, "annotation file") as file:
            text = io.TextIOWrapper(file, encoding="utf-8-sig")
            try:
                for number, line in enumerate(text, 1):
                    if line.startswith(("##FASTA", ">")):
                        return
                    if line.strip() and not line.startswith("#"):
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
