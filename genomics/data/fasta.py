"""Random access to a genome: FASTA (plain, gzip or bgzip), or a file of another format."""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import struct
import tempfile
import warnings
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from longseq.core.errors import DataError, did_you_mean
from longseq.core.files import (
    atomic_path,
    cache_dir,
    is_bgzip,
    is_gzip,
    open_unzipped,
    require_file,
)
from longseq.genomics.data.formats import FORMATS, Format, format_of, is_irregular, write_fasta
from longseq.genomics.data.samples import SAMPLES
from longseq.genomics.data.tokenizer import (
    NUCLEOTIDE_LETTERS,
    N,
    encode,
    reverse_complement,
    soft_mask,
)

_GZIP_ERRORS = (EOFError, zlib.error, gzip.BadGzipFile)
# What Bio.bgzf raises on a damaged block; its ValueError and OSError are caught beside these.
_BGZF_ERRORS = (*_GZIP_ERRORS, RuntimeError, AssertionError, struct.error)
_CHUNK = 1 << 22


def resolve_name(name: str, names: Iterable[str], path: str | Path | None = None) -> str:
    """Returns the record that a chromosome name means: itself, or chr1 for 1, chrM for MT, and the
    reverse.

    Args:
        name: what a user or another file calls it.
        names: the records of the genome.
        path: the genome's file, for the error.

    Raises:
        DataError: if there is none.
    """
    known = names if isinstance(names, (dict, set)) else set(names)
    bare = name.removeprefix("chr")
    spellings = [name, bare, f"chr{bare}"]
    if bare in ("M", "MT"):
        spellings += ["chrM", "MT", "M", "chrMT"]
    for spelling in spellings:
        if spelling in known:
            return spelling
    # A draft assembly has thousands of contigs: a message that listed them all would hide what is
    # wrong.
    hint = did_you_mean(name, known)
    raise DataError(
        f"no record {name!r}", path=path, hint=hint if len(hint) < 300 else f"{hint[:300]} …"
    )


class _Record(NamedTuple):
    """One line of a .fai index: lengths in bases and in bytes, as samtools faidx defines them."""

    length: int
    offset: int
    line_bases: int
    line_bytes: int


class Genome:
    """A reference sequence that is read by region.

    The index is built once by pyfaidx and kept in the cache folder, never beside the file. What
    cannot be indexed as it stands (gzip but not bgzip, GenBank, EMBL, FASTQ, GFF3 with FASTA,
    uneven FASTA) is rewritten once into the cache folder (keyed on path, size and time of change).
    Each process opens the file for itself, so that the workers of a DataLoader may share a Genome.

    Args:
        path: FASTA, FASTQ, GenBank, EMBL, or GFF3 with FASTA; known by content, plain or gzip.

    Raises:
        DataError: if the file is missing, empty, truncated or not indexable, has no records, two
            records of one name, or a record of length 0.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = require_file(path, "genome file", SAMPLES.names())
        stat = self.path.stat()
        key = f"{self.path.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}"
        key += FORMATS.identity(self.path)
        stem = f"{self.path.name.split('.')[0]}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
        self._cached = cache_dir("genomics") / stem
        self._sequence_file, self._bgzip = self._prepare()
        self._index = self._read_index()
        self._records = {name: record.length for name, record in self._index.items()}
        self._blocks = self._read_blocks() if self._bgzip else None
        self._validated = False
        self._handle: tuple[int, Any] | None = None

    def __repr__(self) -> str:
        length = sum(self.records.values())
        return f"Genome({str(self.path)!r}: {len(self._index)} records, {length:,} bp)"

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_handle": None}

    @property
    def records(self) -> dict[str, int]:
        """Length in bases of every record, in the order of the file; not to be changed.

        It is asked for once per record and variant: a copy each time would take time that grows
        with the square of the number of records.
        """
        return self._records

    def resolve(self, name: str) -> str:
        """Returns the record that a chromosome name means (``chr1`` for ``1``, ``chrM`` for ``MT``
        …)."""
        return resolve_name(name, self._index, self.path)

    def fetch(self, name: str, start: int, end: int, strand: str = "+") -> np.ndarray:
        """Returns the token ids of a region.

        Args:
            name: chromosome.
            start: first position, 0-based; positions outside the record are N.
            end: one past the last position.
            strand: ``"-"`` gives the reverse complement of the region.

        Returns:
            uint8 token ids, shape (end - start,).

        Raises:
            DataError: if there is no such record or region, or a character that is not an IUPAC
                letter.
        """
        return self._fetch(name, start, end, strand)[0]

    def fetch_with_mask(
        self, name: str, start: int, end: int, strand: str = "+"
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns :meth:`fetch`'s ids and where they are soft-masked (lower case), bool of the same
        shape."""
        ids, raw, left, name = self._fetch(name, start, end, strand)
        mask = np.zeros(end - start, bool)
        mask[left : left + len(raw)] = soft_mask(raw)
        return ids, mask[::-1].copy() if strand == "-" else mask

    def validate(self) -> None:
        """Scans every record once for characters that are no nucleotide letters, and for damage.

        Raises:
            DataError: names the record, the character and its position.
        """
        if self._validated:
            return
        for name, record in self._index.items():
            for start in range(0, record.length, _CHUNK):
                raw = self._read(name, start, min(start + _CHUNK, record.length))
                if raw.translate(None, NUCLEOTIDE_LETTERS):  # what is left is no nucleotide
                    encode(raw, path=self.path, record=name, offset=start)
        self._validated = True

    def checksum(self) -> str:
        """Returns the SHA-256 of the file as the user gave it, in hexadecimal."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def checksums(self) -> list[str]:
        """Returns the checksum in a list, as a collection does."""
        return [self.checksum()]

    # ---- reading

    def _fetch(
        self, name: str, start: int, end: int, strand: str
    ) -> tuple[np.ndarray, bytes, int, str]:
        name = self.resolve(name)
        if start > end or strand not in ("+", "-"):
            raise DataError(
                f"region {start}-{end} strand {strand!r}: start must not exceed end, strand is + "
                f"or -",
                path=self.path,
                record=name,
            )
        first, last = max(start, 0), min(end, self._index[name].length)
        raw = self._read(name, first, last) if first < last else b""
        left = first - start if raw else 0
        ids = np.full(end - start, N, np.uint8)
        ids[left : left + len(raw)] = encode(raw, path=self.path, record=name, offset=first)
        return reverse_complement(ids) if strand == "-" else ids, raw, left, name

    def _read(self, name: str, start: int, end: int) -> bytes:
        record = self._index[name]
        byte = [
            record.offset + p // record.line_bases * record.line_bytes + p % record.line_bases
            for p in (start, end - 1)
        ]
        file = self._open()
        try:
            if self._blocks is None:
                file.seek(byte[0])
            else:
                packed, unpacked = self._blocks
                block = int(np.searchsorted(unpacked, byte[0], side="right")) - 1
                file.seek(int(packed[block]) << 16 | byte[0] - int(unpacked[block]))
            raw = file.read(byte[1] + 1 - byte[0]).translate(None, b"\r\n")
        except (*_BGZF_ERRORS, ValueError, OSError) as error:
            raise DataError(f"damaged bgzip block: {error}", path=self.path, record=name) from None
        if len(raw) != end - start:
            raise DataError(
                f"{end - start:,} bases expected at {start:,}, {len(raw):,} found",
                path=self.path,
                record=name,
                hint="the file is truncated, damaged, or changed after it was opened",
            )
        return raw

    def _open(self) -> BinaryIO:
        # Keyed on the process: a worker forked with an open handle would share, and move, its file
        # position.
        if self._handle is None or self._handle[0] != os.getpid():
            file: Any = open(self._sequence_file, "rb")  # noqa: SIM115 (kept open for the next fetch)
            if self._bgzip:
                from Bio import bgzf

                file = bgzf.BgzfReader(fileobj=file, mode="rb")
            self._handle = (os.getpid(), file)
        return self._handle[1]

    # ---- opening

    def _prepare(self) -> tuple[Path, bool]:
        """Returns the file to index and whether it is bgzip; rewrites what cannot be indexed."""
        target = self._cached.with_suffix(".fa")
        if format_of(self.path) == "outside":
            if not target.exists():
                self._rewrite("outside")
            return target, False
        zipped = is_gzip(self.path)
        named_gz = self.path.name.lower().endswith((".gz", ".bgz"))
        if named_gz and not zipped:
            raise DataError(
                "is named as a gzip file but is not one", path=self.path, hint="rename it"
            )
        bgzip = is_bgzip(self.path)
        if target.exists():
            self._warn()
            return target, False
        kind = format_of(self.path)
        if kind != "fasta":
            self._rewrite(kind)
            return target, False
        direct = not zipped or (bgzip and named_gz)
        if not (direct and self._cached.with_suffix(".fai").exists()):
            with open_unzipped(self.path) as file:
                irregular = is_irregular(file)
            if irregular:
                self._rewrite(kind)
                return target, False
        if direct:
            return self.path, bgzip
        with (
            open_unzipped(self.path) as source,
            atomic_path(target) as temporary,
            temporary.open("wb") as out,
        ):
            shutil.copyfileobj(source, out, 1 << 20)
        return target, False

    def _rewrite(self, kind: Format) -> None:
        """Writes the sequences into the cache as FASTA that can be indexed."""
        target = self._cached.with_suffix(".fa")
        with atomic_path(target) as temporary, temporary.open("w") as out:
            dashes = write_fasta(self.path, kind, out)
        if dashes:
            first = next(iter(dashes))
            note = (
                f"{self.path}: {sum(dashes.values()):,} alignment dashes were left out in "
                f"{len(dashes):,} records (first {first}): positions count the bases alone"
            )
            with atomic_path(self._cached.with_suffix(".note")) as temporary:
                temporary.write_text(note)
        self._warn()

    def _warn(self) -> None:
        """Says what a rewritten file has lost, whenever it is opened."""
        note = self._cached.with_suffix(".note")
        if note.exists():
            warnings.warn(note.read_text(), stacklevel=4)

    def _read_index(self) -> dict[str, _Record]:
        target = self._cached.with_suffix(".fai")
        if not target.exists() or (self._bgzip and not target.with_suffix(".gzi").exists()):
            self._build_index(target)
        index = {}
        for line in target.read_text().splitlines():
            name, *numbers = line.split("\t")
            index[name] = _Record(*map(int, numbers))
        for name, record in index.items():
            if record.length == 0:
                raise DataError("the record is empty", path=self.path, record=name)
        return index

    def _build_index(self, target: Path) -> None:
        import pyfaidx

        source = str(self._sequence_file)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            fai, gzi = Path(folder) / "fai", Path(folder) / "gzi"
            try:
                extra = {"gzi_indexname": str(gzi)} if self._bgzip else {}
                pyfaidx.Faidx(source, indexname=str(fai), **extra).close()
            except UnicodeDecodeError:
                raise DataError("is not a text file, so not FASTA", path=self.path) from None
            except pyfaidx.FastaIndexingError as error:
                raise self._index_error(str(error)) from None
            except (*_BGZF_ERRORS, OSError) as error:
                raise DataError(f"cannot be indexed: {error}", path=self.path) from None
            except ValueError as error:
                if str(error).startswith("Duplicate key"):
                    name = str(error).split('"')[1]
                    raise DataError(
                        "two records have this name", path=self.path, record=name
                    ) from None
                raise DataError(f"cannot be indexed: {error}", path=self.path) from None
            if self._bgzip:
                os.replace(gzi, target.with_suffix(".gzi"))
            os.replace(fai, target)

    def _index_error(self, message: str) -> DataError:
        """Returns pyfaidx's complaint with the user's file name and a remedy."""
        if "Bad sequence name" in message:
            return DataError(f"a record without a name ({message})", path=self.path)
        return DataError(
            "no FASTA records: a header line starting with > is needed", path=self.path
        )

    def _read_blocks(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns where the n bgzip blocks begin in the packed and in the unpacked file, int64,
        (n,)."""
        words = np.fromfile(self._cached.with_suffix(".gzi"), "<u8").astype(np.int64)
        # The format leaves out the first block.
        pairs = np.concatenate([[[0, 0]], words[1:].reshape(-1, 2)])
        return pairs[:, 0], pairs[:, 1]


def open_genome(name: str) -> Genome:
    """Returns a genome that was read through once.

    Args:
        name: of a file or of a packaged sample.

    Raises:
        DataError: if it is no genome.
    """
    genome = Genome(SAMPLES.path(name) if name in SAMPLES.names() else name)
    genome.validate()
    return genome
