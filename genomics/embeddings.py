"""Vectors of a model for bases, windows and features: what its last layer knows when it has read
them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import numpy as np
import torch
from torch import Tensor

from longseq.core.checks import check_positive
from longseq.core.errors import ConfigError
from longseq.genomics.data.annotation import Feature
from longseq.genomics.data.collection import Collection
from longseq.genomics.data.fasta import Genome
from longseq.genomics.data.padding import pad
from longseq.genomics.data.splits import Interval
from longseq.genomics.data.tokenizer import is_base
from longseq.genomics.masked_scores import Block, blocks
from longseq.genomics.models.language_model import DNALanguageModel
from longseq.genomics.models.masked_model import MaskedDNAModel
from longseq.genomics.streaming import DEFAULT_WINDOW, Stream, alike, bunches, reach

Pool = Literal["mean", "last"]
STRANDS = ("+", "-", "both", "own")
_BUNCH = 4  # chunks of short intervals whose vectors are held at once
_TOGETHER = 8192  # positions of a masked model's windows that run at once


@dataclass(frozen=True)
class Vectors:
    """The model's vectors at consecutive positions.

    Attributes:
        chrom: the record.
        start: 0-based position of the first base.
        ids: tokens in the order of the genome, uint8 (n,).
        values: float32 (n, D), in the order of the genome.
    """

    chrom: str
    start: int
    ids: np.ndarray
    values: np.ndarray


def stream_vectors(
    model: DNALanguageModel | MaskedDNAModel,
    genome: Genome | Collection,
    intervals: Sequence[Interval],
    strand: str = "+",
    chunk: int = 4096,
    window: int | None = None,
) -> Iterator[Vectors]:
    """Yields the output of the model's last layer at every position.

    Masked models see both sides of a base: they read windows, of which each gives the middle half.

    Args:
        model: a causal or masked language model, in evaluation mode.
        genome: the sequence.
        intervals: each is read from an empty state.
        strand: "+": a base's vector knows the bases up to it; "-": those from it on, read on the
            other strand. The chunks then come from the end of the interval.
        chunk: positions at once; the result does not depend on it.
        window: see ``Stream``; that of ``reach`` if None. Of a masked model: positions that are
            read at once.
    """
    check_positive("chunk", chunk)
    if isinstance(model, MaskedDNAModel):
        yield from _masked_vectors(model, genome, intervals, strand, window or DEFAULT_WINDOW)
        return
    window = reach(model) if window is None else window
    for bunch in bunches(intervals, chunk, _BUNCH * chunk):
        if len(bunch) > 1:
            yield from _side_by_side(model, genome, bunch, strand, chunk, window)
            continue
        item, stream = bunch[0], Stream(model, window, hidden=True)
        for done in range(0, len(item), chunk):
            count = min(chunk, len(item) - done)
            start = item.start + done if strand == "+" else item.end - done - count
            ids = genome.fetch(item.chrom, start, start + count, strand)
            values = _run(model, stream.read, ids[None])[0]
            yield _vectors(genome, Interval(item.chrom, start, start + count), values, strand)


@torch.inference_mode()
def _run(
    model: DNALanguageModel | MaskedDNAModel, read: Callable[[Tensor], Tensor], ids: np.ndarray
) -> np.ndarray:
    """Returns the vectors, float32 (B, L, D), of rows of tokens (B, L)."""
    tokens = torch.from_numpy(ids.astype(np.int64)).to(next(model.parameters()).device)
    return read(tokens).float().cpu().numpy()


def _vectors(
    genome: Genome | Collection, place: Interval, values: np.ndarray, strand: str
) -> Vectors:
    """Returns the vectors of a place, in the order of the genome, of those in the order read."""
    ids = genome.fetch(place.chrom, place.start, place.end)
    return Vectors(place.chrom, place.start, ids, values if strand == "+" else values[::-1])


def _side_by_side(
    model: DNALanguageModel,
    genome: Genome | Collection,
    bunch: Sequence[Interval],
    strand: str,
    chunk: int,
    window: int | None,
) -> Iterator[Vectors]:
    """Yields the vectors of short intervals, in order; see ``stream_vectors``."""
    ids = [genome.fetch(one.chrom, one.start, one.end, strand) for one in bunch]
    found: dict[int, np.ndarray] = {}
    for rows in alike([len(one) for one in ids], chunk):
        tokens, _ = pad([ids[i] for i in rows])
        values = _run(model, Stream(model, window, hidden=True).read, tokens.numpy())
        found |= {i: row[: len(ids[i])] for i, row in zip(rows, values)}
    for i, one in enumerate(bunch):
        yield _vectors(genome, one, found[i], strand)


def _masked_vectors(
    model: MaskedDNAModel,
    genome: Genome | Collection,
    intervals: Sequence[Interval],
    strand: str,
    window: int,
) -> Iterator[Vectors]:
    """See ``stream_vectors``; blocks of half a window, with a quarter of one on both sides. Windows
    of one length, of several intervals too, run together."""
    waiting: list[tuple[str, Block]] = []
    bases = 0
    for item in intervals:
        cut = blocks(item, window)
        for one in cut if strand == "+" else reversed(list(cut)):  # in the order of reading
            waiting.append((item.chrom, one))
            bases += one.high - one.low
            if bases >= _TOGETHER:
                yield from _together(model, genome, waiting, strand)
                waiting, bases = [], 0
    yield from _together(model, genome, waiting, strand)


def _together(
    model: MaskedDNAModel,
    genome: Genome | Collection,
    waiting: Sequence[tuple[str, Block]],
    strand: str,
) -> Iterator[Vectors]:
    ids = [genome.fetch(chrom, one.low, one.high, strand) for chrom, one in waiting]
    found: dict[int, np.ndarray] = {}
    for rows in alike([len(one) for one in ids], _TOGETHER, padding=0):
        values = _run(model, model.hidden, np.stack([ids[i] for i in rows]))
        for i, row in zip(rows, values):
            one = waiting[i][1]
            # The block, whose place in what is read depends on the strand.
            before = one.start - one.low if strand == "+" else one.high - one.end
            found[i] = row[before : before + one.end - one.start]
    for i, (chrom, one) in enumerate(waiting):
        yield _vectors(genome, Interval(chrom, one.start, one.end), found[i], strand)


def ordered_vectors(
    model: DNALanguageModel | MaskedDNAModel,
    genome: Genome | Collection,
    intervals: Sequence[Interval],
    strand: str = "+",
    chunk: int = 4096,
    window: int | None = None,
    progress: Callable[[int], object] | None = None,
    folder: str | Path | None = None,
) -> Iterator[Vectors]:
    """Yields vectors in the order of the genome, whatever the strand.

    What is read from an interval's end waits on the disk, 4 D bytes per base, until it is turned
    round.

    Args:
        model: a causal language model, in evaluation mode.
        genome: the sequence.
        intervals: each is read from an empty state.
        strand: "+", "-" or "both": the two vectors side by side.
        chunk: positions at once.
        window: see ``Stream``.
        progress: called with the number of positions read.
        folder: for the file on the disk; the system's own if None.
    """
    if symmetric(model) and strand != "+":
        for part in stream_vectors(model, genome, intervals, "+", chunk, window):
            values = np.tile(part.values, (1, 2)) if strand == "both" else part.values
            yield Vectors(part.chrom, part.start, part.ids, values)
            if progress is not None:
                progress(len(part.ids) * (2 if strand == "both" else 1))
        return
    width = model.backbone.d_model
    for bunch in bunches(intervals, chunk, _BUNCH * chunk):
        firsts = np.cumsum([0, *map(len, bunch)])
        with tempfile.TemporaryFile(dir=folder) as spool:
            if strand != "+":
                which = 0
                for part in stream_vectors(model, genome, bunch, "-", chunk, window):
                    before = int(firsts[which]) + part.start - bunch[which].start
                    spool.seek(before * width * 4)
                    spool.write(part.values.astype("<f4").tobytes())
                    which += part.start == bunch[which].start  # it is read from its end
                    if progress is not None:
                        progress(len(part.ids))
                spool.seek(0)

            def turned(count: int, spool: IO[bytes] = spool) -> np.ndarray:
                return np.frombuffer(spool.read(count * width * 4), "<f4").reshape(count, width)

            if strand == "-":
                for one in bunch:
                    for low in range(one.start, one.end, chunk):
                        ids = genome.fetch(one.chrom, low, min(low + chunk, one.end))
                        yield Vectors(one.chrom, low, ids, turned(len(ids)))
                continue
            for part in stream_vectors(model, genome, bunch, "+", chunk, window):
                values = part.values
                if strand == "both":
                    values = np.concatenate([values, turned(len(part.ids))], 1)
                yield Vectors(part.chrom, part.start, part.ids, values)
                if progress is not None:
                    progress(len(part.ids))


def symmetric(model: DNALanguageModel | MaskedDNAModel) -> bool:
    """Returns whether a base has the same vector on both strands."""
    return isinstance(model, MaskedDNAModel) and model.symmetric


def windows(intervals: Sequence[Interval], size: int) -> list[Feature]:
    """Returns consecutive windows of intervals; the last of each may be shorter.

    Args:
        intervals: what is cut.
        size: bases of a window.
    """
    check_positive("window", size)
    return [
        Feature(one.chrom, low, min(low + size, one.end), ".", "window")
        for one in intervals
        for low in range(one.start, one.end, size)
    ]


def _bounds(place: Feature) -> tuple[int, int]:
    """Returns the first position of a place on its record, and one past the last."""
    spans = place.spans()
    return spans[0][0], max(end for _, end in spans)


@dataclass
class _Pooled:
    """Sums (or last vectors) of places while a genome is read on one strand."""

    places: Sequence[Feature]
    pool: Pool
    strand: str

    def __post_init__(self) -> None:
        self.values: np.ndarray | None = None
        self.counts = np.zeros(len(self.places), np.int64)
        self.rows: dict[str, list[int]] = {}
        for i, one in enumerate(self.places):
            self.rows.setdefault(one.chrom, []).append(i)
        self.bounds = {
            name: np.array([_bounds(self.places[i]) for i in rows])
            for name, rows in self.rows.items()
        }

    def add(self, part: Vectors) -> None:
        if self.values is None:
            self.values = np.zeros((len(self.places), part.values.shape[1]))
        if part.chrom not in self.rows:
            return
        end = part.start + len(part.ids)
        bounds = self.bounds[part.chrom]
        hit = np.flatnonzero((bounds[:, 0] < end) & (bounds[:, 1] > part.start))
        known = is_base(part.ids)
        for i in (self.rows[part.chrom][k] for k in hit):
            place = self.places[i]
            if self.pool == "last":
                low, high = _bounds(place)
                at = high - 1 if self.strand == "+" else low
                if part.start <= at < end:
                    self.values[i] = part.values[at - part.start]
                    self.counts[i] = 1
                continue
            for low, high in place.spans():
                inside = slice(max(low - part.start, 0), max(high - part.start, 0))
                chosen = part.values[inside][known[inside]]
                self.values[i] += chosen.sum(0, dtype=np.float64)
                self.counts[i] += len(chosen)

    def result(self) -> np.ndarray:
        assert self.values is not None
        counts = self.counts[:, None]
        return np.where(counts > 0, self.values / np.maximum(counts, 1), np.nan).astype(np.float32)


def embed_features(
    model: DNALanguageModel | MaskedDNAModel,
    genome: Genome | Collection,
    features: Sequence[Feature],
    pool: Pool = "mean",
    strand: str = "+",
    intervals: Sequence[Interval] | None = None,
    chunk: int = 4096,
    window: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> np.ndarray:
    """Returns one vector for each feature, in the memory of a few chunks and of the result.

    Args:
        model: a causal language model, in evaluation mode.
        genome: the sequence.
        features: places of it.
        pool: "mean" of the vectors at its known bases (of all its parts); "last", the vector at
            the base of it that is read last.
        strand: on which the genome is read: "+", "-", "both" (the two vectors side by side), or
            "own", that of each feature ("." as "+").
        intervals: what is read, each from an empty state; the records that features lie on if
            None, so that a feature knows all that its record has before it.
        chunk: positions at once.
        window: see ``Stream``.
        progress: called with the number of positions read, again and again.

    Returns:
        float32 (features, D), or (features, 2 D) for both strands; NaN where a feature has no known
        base, or lies in no interval.

    Raises:
        ConfigError: for an unknown pool or strand.
    """
    if pool not in ("mean", "last") or strand not in STRANDS:
        raise ConfigError(f"pool is mean or last, strand one of {', '.join(STRANDS)}")
    if strand == "own":
        result: np.ndarray | None = None
        for which in "+-":
            rows = [i for i, one in enumerate(features) if (one.strand == "-") == (which == "-")]
            if rows:
                own = [features[i] for i in rows]
                part = embed_features(
                    model, genome, own, pool, which, intervals, chunk, window, progress
                )
                if result is None:
                    result = np.empty((len(features), part.shape[1]), np.float32)
                result[rows] = part
        assert result is not None
        return result
    if intervals is None:
        touched = {one.chrom for one in features}
        intervals = [Interval(k, 0, size) for k, size in genome.records.items() if k in touched]
    # The base that is read last is another one on the other strand.
    once = strand == "both" and pool == "mean" and symmetric(model)
    sides = []
    for which in ("+",) if once else ("+", "-") if strand == "both" else (strand,):
        pooled = _Pooled(features, pool, which)
        for part in stream_vectors(model, genome, intervals, which, chunk, window):
            pooled.add(part)
            if progress is not None:
                progress(len(part.ids) * (2 if once else 1))
        sides.append(pooled.result())
    return np.concatenate(sides * (2 if once else 1), 1)
