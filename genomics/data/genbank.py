"""Reads GenBank and EMBL files: the sequence of every record and its table of genes."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
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
    """One gene.

    Attributes:
        name: gene symbol, or locus tag.
        product: what it codes for, or "".
        start: first position, 0-based.
        end: one past the last position; of what spans the origin of a circle, counted on beyond
            the record's end.
        strand: "+", "-" or ".".
        kind: the feature's key: CDS, tRNA, rRNA …
        chrom: the record it lies on.
        parts: (start, end) of its parts in the order of the genome, where there are several.
        phase: bases before the first whole codon, of a CDS.
        pseudo: whether it is marked as no working gene.
        size: of the record, where the gene spans its origin; else 0.
        torn: why its parts are not the whole gene, "" if they are.
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
    size: int = 0
    torn: str = ""


@dataclass(frozen=True)
class GenBankRecord:
    """A sequence with its genes.

    Attributes:
        name: accession, with its version where the file gives one.
        description: the DEFINITION line.
        sequence: upper-case letters.
        circular: whether the molecule is circular.
        genes: by start.
        left_out: genes without a place on the record, each with the reason.
    """

    name: str
    description: str
    sequence: str
    circular: bool
    genes: tuple[Gene, ...]
    left_out: tuple[str, ...] = ()


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
    kinds = (*_PRODUCTS, "gene")
    found = [_gene(one, record.id, len(sequence)) for one in record.features if one.type in kinds]
    left_out = tuple(one for one in found if isinstance(one, str))
    every = [one for one in found if isinstance(one, Gene)]
    genes = [one for one in every if one.kind != "gene"]
    named = {one.name for one in genes}
    genes += [one for one in every if one.kind == "gene" and one.name not in named]
    genes.sort(key=lambda gene: (gene.start, gene.end))
    circular = record.annotations.get("topology") == "circular"
    return GenBankRecord(record.id, record.description, sequence, circular, tuple(genes), left_out)


def _gene(feature: Any, chrom: str, length: int) -> Gene | str:
    """Returns a feature of the table, or why it has no place on the record."""

    def qualifier(*keys: str) -> str:
        return next((feature.qualifiers[key][0] for key in keys if feature.qualifiers.get(key)), "")

    name = qualifier("gene", "locus_tag", "protein_id", "product")
    called = f"{feature.type} {name}".strip()
    if feature.location is None:
        return f"{called} (its place cannot be read)"
    strand = {1: "+", -1: "-"}.get(feature.location.strand, ".")
    # Biopython has the parts as they are read; here they are in the order of the strand +.
    own = [one for one in feature.location.parts if one.ref is None]
    elsewhere = sorted({str(one.ref) for one in feature.location.parts if one.ref is not None})
    parts = [(int(part.start), int(part.end)) for part in own]
    parts = parts if strand != "-" else parts[::-1]
    if not parts:
        return f"{called} (it lies on {', '.join(elsewhere)})"
    torn = ""
    if elsewhere:
        torn = f"parts of it lie on {', '.join(elsewhere)}"
    elif len({part.strand for part in own}) > 1:
        torn = "its parts lie on both strands"
    # What is written so spans the origin of a circle, whether the file calls it one or not.
    turns = any(before[1] == length and after[0] == 0 for before, after in pairwise(parts))
    parts = beyond(parts, length) if turns else parts
    if parts != sorted(parts):
        torn = torn or "its parts are not in the order of the record"
        parts.sort()
    phase = None
    if feature.type == "CDS":
        start = qualifier("codon_start") or "1"
        phase = int(start) - 1 if start in ("1", "2", "3") else 0
    return Gene(
        name,
        qualifier("product"),
        parts[0][0],
        max(end for _, end in parts),
        strand,
        feature.type,
        chrom,
        tuple(parts) if len(parts) > 1 else (),
        phase,
        any(key in feature.qualifiers for key in ("pseudo", "pseudogene")),
        length if turns else 0,
        torn,
    )


def beyond(parts: Sequence[tuple[int, int]], size: int) -> list[tuple[int, int]]:
    """Returns the parts of a feature that spans the origin of a circle, what lies behind it counted
    on beyond the record's end; two that meet at the origin are one.

    Args:
        parts: (start, end), those before the origin first.
        size: of the record.
    """
    found: list[tuple[int, int]] = []
    add = 0
    for start, end in parts:
        if found and found[-1][1] == size and start == 0:
            add = size
            found[-1] = (found[-1][0], end + add)
        else:
            found.append((start + add, end + add))
    return found
