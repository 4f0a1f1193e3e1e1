"""Reads VCF line by line, and writes it back with further INFO fields, all else as it was."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from longseq.core.errors import DataError
from longseq.core.files import atomic_path, open_unzipped

_LETTERS = re.compile(r"[A-Za-z]+")
SUFFIXES = (".vcf", ".vcf.gz", ".vcf.bgz")


@dataclass(frozen=True)
class Variant:
    """The site of one line.

    Attributes:
        chrom: as the file spells it.
        start: first position of REF, 0-based.
        name: ID, or ".".
        ref: reference allele, upper case.
        alts: alternative alleles, upper case where they are letters; none for ".".
    """

    chrom: str
    start: int
    name: str
    ref: str
    alts: tuple[str, ...]


def is_vcf(path: str | Path) -> bool:
    """Returns whether a file is named as VCF."""
    return str(path).lower().endswith(SUFFIXES)


def read_lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """Yields number and text of every line of a VCF file, plain or gzip, without line ends.

    Raises:
        DataError: if it is no VCF.
    """
    with open_unzipped(path, "VCF file") as file:
        for number, raw in enumerate(file, 1):
            if number == 1 and raw.startswith(b"BCF"):
                hint = "write it as VCF: bcftools view in.bcf -Oz -o out.vcf.gz"
                raise DataError("is BCF, which is not read", path=path, hint=hint)
            try:
                line = raw.decode("utf-8").rstrip("\r\n")
            except UnicodeDecodeError:
                where = f"line {number}"
                raise DataError("is not text in UTF-8", path=path, record=where) from None
            if number == 1:
                line = line.removeprefix("\ufeff")
            if number == 1 and not line.startswith("##fileformat=VCF"):
                raise DataError(
                    "is no VCF file: line 1 must begin with ##fileformat=VCF",
                    path=path,
                    hint="bcftools view writes a whole header, where the file has one",
                )
            yield number, line


def read_variants(path: str | Path) -> Iterator[Variant]:
    """Yields the sites of a VCF file in its order.

    Raises:
        DataError: at the first line that is malformed, by number.
    """
    headed = False
    for number, line in read_lines(path):
        if line.startswith("#CHROM"):
            if headed:
                where = f"line {number}"
                hint = "join files with bcftools concat, or score them one by one"
                raise DataError("a second line #CHROM", path=path, record=where, hint=hint)
            headed = True
        if line.startswith("#"):
            continue
        if not line:
            continue
        if not headed:
            raise DataError("has no line #CHROM before its records", path=path)
        try:
            yield parse(line)
        except DataError as error:
            raise DataError(str(error), path=path, record=f"line {number}") from None
    if not headed:
        raise DataError("has no line #CHROM: it is truncated", path=path)


def parse(line: str) -> Variant:
    """Returns the site of a line.

    Raises:
        DataError: if it has fewer than eight columns, or POS, REF or ALT are none.
    """
    columns = line.split("\t", 8)
    if len(columns) < 8:
        raise DataError(f"{len(columns)} columns by tabs, at least 8 are needed (CHROM … INFO)")
    chrom, position, name, ref, alt = columns[:5]
    if not position.isdecimal():
        raise DataError(f"POS {position!r} is no whole number")
    if not _LETTERS.fullmatch(ref):
        raise DataError(f"REF {ref!r} is no sequence of letters")
    if not all(alt.split(",")):
        raise DataError(f"ALT {alt!r} has an allele of no letter; . is none, * a deleted one")
    alts = (
        ()
        if alt == "."
        else tuple(one.upper() if _LETTERS.fullmatch(one) else one for one in alt.split(","))
    )
    return Variant(chrom, int(position) - 1, name, ref.upper(), alts)


def with_info(line: str, fields: Mapping[str, str], stale: Collection[str] = ()) -> str:
    """Returns a line with INFO fields added, in place of those of the same names.

    Args:
        line: of a VCF file.
        fields: name → value; empty ones are left out.
        stale: names of fields that are taken away too.
    """
    columns = line.split("\t")
    kept = [
        one
        for one in columns[7].split(";")
        if one not in ("", ".")
        and (name := one.partition("=")[0]) not in fields
        and name not in stale
    ]
    columns[7] = ";".join([*kept, *(f"{key}={value}" for key, value in fields.items() if value)])
    columns[7] = columns[7] or "."
    return "\t".join(columns)


def with_header(
    lines: Sequence[str], added: Mapping[str, str], note: str, stale: Collection[str] = ()
) -> list[str]:
    """Returns header lines with INFO definitions before #CHROM, in place of earlier ones.

    Args:
        lines: of the header.
        added: name → definition (all between the brackets but the ID).
        note: a line "##longseq_variants=…" to say how the fields were made.
        stale: names of fields whose definitions are taken away too.
    """
    known = tuple(f"##INFO=<ID={name}," for name in (*added, *stale))
    kept = [one for one in lines if not one.startswith((*known, "##longseq_variants="))]
    new = [f"##INFO=<ID={name},{text}>" for name, text in added.items()]
    return [*kept[:-1], *new, f"##longseq_variants={note}", kept[-1]]


@contextmanager
def open_output(path: str | Path) -> Iterator[Callable[[str], object]]:
    """Yields a function that writes a line to a VCF file, bgzip if its name ends so.

    The file appears when it is whole.
    """
    with atomic_path(path) as temporary:
        if str(path).lower().endswith(".vcf"):
            with temporary.open("w", encoding="utf-8") as out:
                yield lambda line: out.write(f"{line}\n")
        else:
            from Bio import bgzf

            with bgzf.BgzfWriter(str(temporary), "wb") as packed:
                yield lambda line: packed.write(f"{line}\n".encode())
