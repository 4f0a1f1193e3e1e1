"""Reads GenBank and EMBL files: the sequence of every record and its table of genes."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longseq.core.errors import DataError
from longseq.core.files import open_unzipped
from longseq.genomics.data.formats import format_of

# Features that are products of a gene; a bare `gene` feature is kept only where none of them has
# its name.
_PRODUCTS = ("CDS", "tRNA", "rRNA", "ncRNA", "tmRNA", "misc_RNA")


@dataclass(frozen=True)
class Gene:
    """One gene, or one of the two pieces of a gene that spans the origin of a circular molecule.

    Attributes:
        name: gene symbol, or locus tag.
        product: what it codes for, or "".
        start: first position, 0-based.
        end: one past the last position.
        strand: "+", "-" or ".".
        kind: the feature's key: CDS, tRNA, rRNA …
        chrom: the record it lies on.
        parts: (start, end) of its parts in the order of the genome, where there are several.
        phase: bases before the first whole codon, of a CDS.
        pseudo: whether it is marked as no working gene.
    """

    name: str
    product: str
    start: int
    end: int
    strand: str
    kind: str = "CDS"
    chrom: str = ""
    parts: tuple[tuple[int, int], ...] = ()
    phase: int | None = None
    pseudo: bool = False


@dataclass(frozen=True)
class GenBankRecord:
    """A sequence with its genes.

    Attributes:
        name: accession, with its version where the file gives one.
        description: the DEFINITION line.
        sequence: upper-case letters.
        circular: whether the molecule is circular.
        genes: by start.
    """

    name: str
    description: str
    sequence: str
    circular: bool
    genes: tuple[Gene, ...]


def read_genbank(path: str | Path) -> list[GenBankRecord]:
    """Returns the records of a GenBank or EMBL file.

    Args:
        path: GenBank or EMBL, by its content, plain or gzip.

    Raises:
        DataError: if the file is missing, malformed or truncated, or a record has no sequence.
    """
    from Bio import BiopythonWarning, SeqIO

    path = Path(path)
    kind = "embl" if format_of(path) == "embl" else "genbank"
    title = {"embl": "EMBL", "genbank": "GenBank"}[kind]
    try:
        with (
            open_unzipped(path, f"{title} file") as file,
            warnings.catch_warnings(record=True) as caught,
        ):
            warnings.simplefilter("always", BiopythonWarning)
            handle = io.TextIOWrapper(file, encoding="utf-8-sig")
            try:
                parsed = list(SeqIO.parse(handle, kind))
            finally:
                handle.detach()
    except UnicodeDecodeError:
        raise DataError(f"is not a text file, so not {title}", path=path) from None
    except DataError:
        raise
    except (ValueError, AssertionError, LookupError, AttributeError, TypeError) as error:
        # Biopython's scanner has no error of its own: a damaged line ends in any of these.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"malformed {title} file: {reason}", path=path) from None
    for warning in caught:
        text = " ".join(str(warning.message).split())
        # Biopython only warns of a sequence cut short; a genome without its end must not pass for
        # whole.
        if "Premature end" in text or "Expected sequence length" in text:
            raise DataError(f"truncated {title} file: {text}", path=path)
    if not parsed:
        raise DataError(f"no {title} records", path=path)
    return [_record(record, path) for record in parsed]


def _record(record: Any, path: Path) -> GenBankRecord:
    from Bio.Seq import UndefinedSequenceError

    try:
        sequence = str(record.seq).upper()
    except UndefinedSequenceError:
        sequence = ""
    if not sequence:
        raise DataError(
            "the record has no sequence",
            path=path,
            record=record.id,
            hint="it must have an ORIGIN section",
        )
    circular = record.annotations.get("topology") == "circular"
    genes = [
        gene
        for feature in record.features
        if feature.type in _PRODUCTS
        for gene in _genes(feature, record.id, len(sequence), circular)
    ]
    named = {gene.name for gene in genes}
    for feature in record.features:
        if feature.type == "gene":
            pieces = _genes(feature, record.id, len(sequence), circular)
            genes += [gene for gene in pieces if gene.name not in named]
    genes.sort(key=lambda gene: (gene.start, gene.end))
    return GenBankRecord(record.id, record.description, sequence, circular, tuple(genes))


def _genes(feature: Any, chrom: str, length: int, circular: bool) -> list[Gene]:
    def qualifier(*keys: str) -> str:
        return next((feature.qualifiers[key][0] for key in keys if feature.qualifiers.get(key)), "")

    if feature.location is None:
        return []
    name = qualifier("gene", "locus_tag", "protein_id", "product")
    strand = {1: "+", -1: "-"}.get(feature.location.strand, ".")
    parts = [(int(part.start), int(part.end)) for part in feature.location.parts]
    pieces = [parts]
    if (
        circular
        and len(parts) > 1
        and any(s == 0 for s, _ in parts)
        and any(e == length for _, e in parts)
    ):
        # join(last..length,1..first) spans the origin: its outer bounds would claim the whole
        # molecule.
        pieces = [
            [p for p in parts if p[0] >= length // 2],
            [p for p in parts if p[0] < length // 2],
        ]
    phase = None
    if feature.type == "CDS":
        start = qualifier("codon_start") or "1"
        phase = int(start) - 1 if start in ("1", "2", "3") else 0
    pseudo = any(key in feature.qualifiers for key in ("pseudo", "pseudogene"))
    found = []
    for piece in pieces if strand != "-" else pieces[::-1]:  # as they are read
        if not piece:
            continue
        piece = sorted(piece)
        found.append(
            Gene(
                name,
                qualifier("product"),
                piece[0][0],
                max(e for _, e in piece),
                strand,
                feature.type,
                chrom,
                tuple(piece) if len(piece) > 1 else (),
                phase,
                pseudo,
            )
        )
        if phase is not None:
            phase = (phase - sum(e - s for s, e in piece)) % 3
    return found
