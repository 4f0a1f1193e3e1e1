"""How generated DNA compares with a genome: words, GC content, open reading frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from longseq.core.errors import DataError
from longseq.genomics.baselines import MarkovModel
from longseq.genomics.data.tokenizer import A, C, G, T, is_base, reverse_complement
from longseq.genomics.sequence_baselines import kmer_shares

ORDERS = (1, 2, 3, 4, 5, 6)
_STOPS = ((T, A, A), (T, A, G), (T, G, A))
LONG = 300
"""Bases from which an open reading frame counts as long."""


def divergence(left: np.ndarray, right: np.ndarray) -> float:
    """Returns the Jensen-Shannon divergence of two distributions, in bits (0 … 1).

    Args:
        left: shares (n,) of sum 1.
        right: likewise.
    """
    middle = (left + right) / 2
    total = 0.0
    for one in (left, right):
        some = one > 0
        total += float((one[some] * np.log2(one[some] / middle[some])).sum()) / 2
    return max(total, 0.0)


def reading_frames(ids: np.ndarray) -> np.ndarray:
    """Returns the lengths in bases of the open stretches between stop codons, in all six frames.

    Those that are cut by an end of the sequence count as far as they go.

    Args:
        ids: token ids, uint8 (n,).
    """
    found = []
    for strand in (ids, reverse_complement(ids)):
        for frame in range(3):
            codons = strand[frame:]
            codons = codons[: len(codons) // 3 * 3].reshape(-1, 3)
            stop = np.zeros(len(codons), bool)
            for one in _STOPS:
                stop |= (codons == one).all(1)
            ends = np.concatenate([[-1], np.flatnonzero(stop), [len(codons)]])
            found.append((np.diff(ends) - 1) * 3)
    lengths = np.concatenate(found)
    return lengths[lengths > 0]


def sample_markov(
    model: MarkovModel, order: int, count: int, length: int, seed: int
) -> list[np.ndarray]:
    """Returns sequences drawn from a Markov model.

    Args:
        model: fitted; contexts that it has not seen are drawn uniformly.
        order: bases that decide about the next.
        count: sequences.
        length: of each.
        seed: of the random numbers.
    """
    rng = np.random.default_rng(seed)
    tables = []
    for k in range(order + 1):
        counts = model.counts[k].astype(np.float64)
        total = counts.sum(1, keepdims=True)
        tables.append(np.where(total > 0, counts / np.maximum(total, 1), 0.25).cumsum(1))
    found = np.empty((count, length), np.uint8)
    code = np.zeros(count, np.int64)
    for at in range(length):
        k = min(at, order)
        chosen = (rng.random((count, 1)) >= tables[k][code % 4**k]).sum(1).clip(max=3)
        found[:, at] = chosen + A
        code = (code * 4 + chosen) % 4 ** max(order, 1)
    return list(found)


@dataclass(frozen=True)
class SampleReport:
    """Figures of a set of sequences beside a genome.

    Attributes:
        name: of the set.
        divergence: k → Jensen-Shannon divergence of the k-mers from the genome's, in bits.
        gc: share of G and C.
        gc_spread: its standard deviation from sequence to sequence.
        orf_mean: mean length in bases of open stretches, over six frames.
        orf_longest: mean over sequences of the longest.
        long_orfs: open stretches of at least ``LONG`` bases per 10,000 bases.
    """

    name: str
    divergence: dict[int, float]
    gc: float
    gc_spread: float
    orf_mean: float
    orf_longest: float
    long_orfs: float


def report(
    name: str, sequences: Sequence[np.ndarray], words: dict[int, np.ndarray]
) -> SampleReport:
    """Returns the figures of sequences.

    Args:
        name: of the set.
        sequences: token ids, uint8 (n,) each.
        words: of the genome: k → shares of its k-mers on both strands.

    Raises:
        DataError: if they have no base.
    """
    bases = sum(int(is_base(ids).sum()) for ids in sequences)
    if not bases:
        raise DataError(f"{name}: no base to report on")
    shares = [np.isin(ids, (C, G)).sum() / max(is_base(ids).sum(), 1) for ids in sequences]
    frames = [reading_frames(ids) for ids in sequences]
    lengths = np.concatenate(frames)
    own = {k: word_shares(sequences, k) for k in words}
    return SampleReport(
        name,
        {k: divergence(own[k], words[k]) for k in words},
        float(np.mean(shares)),
        float(np.std(shares)),
        float(lengths.mean()) if len(lengths) else 0.0,
        float(np.mean([one.max(initial=0) for one in frames])),
        float((lengths >= LONG).sum() / bases * 10_000),
    )


def word_shares(sequences: Sequence[np.ndarray], k: int) -> np.ndarray:
    """Returns the share of each word of k bases in all sequences together, on both strands.

    Args:
        sequences: token ids, uint8 (n,) each.
        k: length of the words.
    """
    weights = np.array([max(len(ids) - k + 1, 0) for ids in sequences], np.float64)
    total = weights @ kmer_shares(sequences, k, True)
    return total / max(total.sum(), 1e-12)
