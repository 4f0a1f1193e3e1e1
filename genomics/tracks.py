"""Per-base scores as files: tables, bedGraph and bigWig, by the suffix; and sums by feature."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from longseq.core.errors import ConfigError
from longseq.core.files import atomic_path, check_writable
from longseq.core.tables import SUFFIXES, check_table, write_batches, write_rows
from longseq.genomics.data.annotation import Feature
from longseq.genomics.data.regions import apart
from longseq.genomics.data.splits import Interval
from longseq.genomics.data.tokenizer import TOKENS

BEDGRAPH = (".bedgraph", ".bg", ".bdg")
BIGWIG = (".bigwig", ".bw")
_ROWS, _PARTS = 65536, 1024  # of a table that is written at once, at least one of them


@dataclass(frozen=True)
class ScoredChunk:
    """Consecutive bases of one record.

    Args:
        chrom: the record.
        start: 0-based position of the first base.
        ids: tokens, uint8 (n,).
        log_likelihood: ln p of every base given all before it, float32 (n,); NaN for the first base
            of a record or region, which nothing precedes, and for whatever is not A, C, G or T.
    """

    chrom: str
    start: int
    ids: np.ndarray
    log_likelihood: np.ndarray


def check_track(path: str | Path) -> str:
    """Returns the suffix of a file of scores, so that a wrong one fails before the work is done.

    Args:
        path: the file.

    Raises:
        ConfigError: if it is of no known kind, or what writes that kind is not installed.
    """
    kind = Path(path).suffix.lower()
    if kind not in (*SUFFIXES, *BEDGRAPH, *BIGWIG):
        raise ConfigError(f"{path}: scores must end in .parquet, .csv, .tsv, .bedgraph or .bw")
    if kind in SUFFIXES:
        return check_table(path)
    if kind in BIGWIG and importlib.util.find_spec("pyBigWig") is None:
        raise ConfigError(f"{path}: bigWig needs pyBigWig: pip install pyBigWig")
    check_writable(path)
    return kind


def track_order(
    intervals: Sequence[Interval],
    records: Mapping[str, int],
    path: str | Path,
    sums: str | Path | None = None,
) -> list[Interval]:
    """Returns intervals as a file needs them: tracks are sorted and have one value per position.

    Args:
        intervals: what is scored.
        records: of the genome, in its order.
        path: the file to write.
        sums: the table of features to write beside it, in which no base may count twice.

    Raises:
        DataError: if intervals of a track, or of sums, overlap.
    """
    if Path(path).suffix.lower() in SUFFIXES:
        if sums:
            apart(intervals, records, sums, "a feature counts a base once")
        return list(intervals)
    hint = "merge the regions, or write a .parquet table"
    return apart(intervals, records, path, "a track has one value per position", hint)


def write_scores(
    chunks: Iterator[ScoredChunk],
    path: str | Path,
    metadata: dict[str, str],
    records: Mapping[str, int] | None = None,
) -> int:
    """Writes chunks as they come; the file appears under its name when it is whole.

    Tables have the columns ``chrom``, ``position`` (0-based), ``base``, ``log_likelihood`` (ln p;
    null where there is none). Tracks hold the log-likelihood, and nothing where there is none.

    Args:
        chunks: from ``stream_log_likelihood``.
        path: .csv, .tsv, .parquet, .bedgraph or .bw.
        metadata: written into the schema of a Parquet file.
        records: lengths of the genome's records in its order, which a bigWig file names.

    Returns:
        The number of bases.
    """
    kind = check_track(path)
    counted = _Counted(chunks)
    if kind in BIGWIG:
        if records is None:
            raise ConfigError(f"{path}: a bigWig file names the lengths of all records")
        _write_bigwig(counted, path, records)
    elif kind in BEDGRAPH:
        _write_bedgraph(counted, path)
    else:
        _write_table(counted, path, metadata)
    return counted.bases


class _Counted:
    """Chunks, and how many bases they had."""

    def __init__(self, chunks: Iterable[ScoredChunk]) -> None:
        self.chunks, self.bases = chunks, 0

    def __iter__(self) -> Iterator[ScoredChunk]:
        for part in self.chunks:
            yield part
            self.bases += len(part.ids)


def _write_table(chunks: Iterable[ScoredChunk], path: str | Path, metadata: dict[str, str]) -> None:
    import pyarrow as pa

    letters = pa.array([str(token) for token in TOKENS])
    text = pa.dictionary(pa.int32(), pa.string())
    fields = [
        ("chrom", text),
        ("position", pa.int64()),
        ("base", text),
        ("log_likelihood", pa.float32()),
    ]
    schema = pa.schema(fields, metadata=metadata)

    def table(parts: Sequence[ScoredChunk]) -> pa.Table:
        sizes = [len(part.ids) for part in parts]
        names = {name: i for i, name in enumerate(dict.fromkeys(part.chrom for part in parts))}
        which = np.repeat(np.array([names[part.chrom] for part in parts], np.int32), sizes)
        ids = np.concatenate([part.ids for part in parts]).astype(np.int32)
        scores = np.concatenate([part.log_likelihood for part in parts])
        places = [np.arange(part.start, part.start + n) for part, n in zip(parts, sizes)]
        columns = [
            pa.DictionaryArray.from_arrays(pa.array(which), pa.array(list(names))),
            pa.array(np.concatenate(places)),
            pa.DictionaryArray.from_arrays(pa.array(ids), letters),
            pa.array(scores, mask=np.isnan(scores)),
        ]
        return pa.Table.from_arrays(columns, schema=schema)

    def tables() -> Iterator[pa.Table]:
        held: list[ScoredChunk] = []  # short records together: each table has a cost of its own
        for part in chunks:
            held.append(part)
            if sum(len(one.ids) for one in held) >= _ROWS or len(held) >= _PARTS:
                yield table(held)
                held = []
        if held:
            yield table(held)

    # Positions by their differences, scores byte by byte: 3.6 bytes per base in place of 11.7.
    encodings = {"position": "DELTA_BINARY_PACKED", "log_likelihood": "BYTE_STREAM_SPLIT"}
    write_batches(path, schema, tables(), encodings)


def _runs(part: ScoredChunk) -> Iterator[tuple[int, np.ndarray]]:
    """Yields the stretches of a chunk that have scores: position of the first, and the scores."""
    known = np.isfinite(part.log_likelihood)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], known, [False]]).astype(np.int8)))
    for low, high in edges.reshape(-1, 2):
        yield part.start + int(low), part.log_likelihood[low:high]


def _write_bigwig(
    chunks: Iterable[ScoredChunk], path: str | Path, records: Mapping[str, int]
) -> None:
    import pyBigWig

    with atomic_path(path) as temporary:
        file: Any = pyBigWig.open(str(temporary), "w")
        try:
            file.addHeader(list(records.items()))
            for part in chunks:
                for start, values in _runs(part):
                    file.addEntries(
                        part.chrom, start, values=values.astype(np.float32), span=1, step=1
                    )
        finally:
            file.close()


def _write_bedgraph(chunks: Iterable[ScoredChunk], path: str | Path) -> None:
    import pyarrow as pa
    import pyarrow.csv as pacsv

    schema = pa.schema(
        [("chrom", pa.string()), ("start", pa.int64()), ("end", pa.int64()), ("ll", pa.float32())]
    )
    style = pacsv.WriteOptions(include_header=False, delimiter="\t", quoting_style="none")
    with (
        atomic_path(path) as temporary,
        pacsv.CSVWriter(temporary, schema, write_options=style) as writer,
    ):
        for part in chunks:
            for start, values in _runs(part):
                at = np.arange(start, start + len(values))
                rows = [pa.array([part.chrom] * len(at)), at, at + 1, values]
                writer.write_table(pa.table([pa.array(one) for one in rows], schema=schema))


class FeatureSums:
    """Sums of log-likelihoods over features, collected while a genome is read.

    Args:
        features: which, see ``read_features``.
    """

    def __init__(self, features: Sequence[Feature]) -> None:
        self.features = list(features)
        self.sums = np.zeros(len(self.features))
        self.bases = np.zeros(len(self.features), np.int64)
        self._spans: dict[str, np.ndarray] = {}
        rows: dict[str, list[tuple[int, int, int]]] = {}
        for i, one in enumerate(self.features):
            rows.setdefault(one.chrom, []).extend((start, end, i) for start, end in one.spans())
        self._spans = {name: np.array(spans) for name, spans in rows.items()}

    def add(self, part: ScoredChunk) -> None:
        """Adds the bases of a chunk to the features that they lie in."""
        spans = self._spans.get(part.chrom)
        if spans is None:
            return
        end = part.start + len(part.ids)
        hit = spans[(spans[:, 0] < end) & (spans[:, 1] > part.start)]
        known = np.isfinite(part.log_likelihood)
        total = np.concatenate([[0.0], np.where(known, part.log_likelihood, 0).cumsum(dtype=float)])
        count = np.concatenate([[0], known.cumsum()])
        low = np.maximum(hit[:, 0], part.start) - part.start
        high = np.minimum(hit[:, 1], end) - part.start
        np.add.at(self.sums, hit[:, 2], total[high] - total[low])
        np.add.at(self.bases, hit[:, 2], count[high] - count[low])

    def collected(self, chunks: Iterator[ScoredChunk]) -> Iterator[ScoredChunk]:
        """Passes chunks on and adds them."""
        for part in chunks:
            self.add(part)
            yield part

    def write(self, path: str | Path) -> None:
        """Writes a row for each feature.

        Args:
            path: .csv, .tsv or .parquet; columns ``chrom``, ``start`` (0-based), ``end``, ``name``,
                ``strand``, ``kind``, ``bases`` (scored ones), ``log_likelihood`` (their sum, in
                nats) and ``bits_per_base`` (none without a scored base).
        """
        columns = {
            "chrom": "",
            "start": "d",
            "end": "d",
            "name": "",
            "strand": "",
            "kind": "",
            "bases": "d",
            "log_likelihood": "r",
            "bits_per_base": ".5f",
        }
        rows = []
        for one, total, bases in zip(self.features, self.sums.tolist(), self.bases.tolist()):
            bits = -total / bases / math.log(2) if bases else None
            place = [one.chrom, one.start, one.end, one.name, one.strand, one.kind]
            rows.append([*place, bases, total if bases else None, bits])
        write_rows(path, columns, rows)
