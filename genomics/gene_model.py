"""A statistical model of bacterial genes: codon positions, starts, and what lies before a start.

Every base of a gene has a probability given the five before it, its codon position and the gene's
kind (contexts of 0 to 5 bases, each smoothed by the next shorter); every base of the genome one
that asks for no position. What a gene is worth is the logarithm of the ratio of the two along it,
and of the ratio for its start: the start codon, the bases before it, and a ribosome binding site at
one of some distances. The model is counted from genes, annotated or found by the model before, as
in GeneMarkS (Besemer et al. 2001) and Prodigal (Hyatt et al. 2010).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from longseq.core.errors import ConfigError
from longseq.genomics.data.tokenizer import A, is_base

ORDER = 5
_WORDS = 4**ORDER
UNKNOWN = 4
_SMOOTHING = (4.0, 4.0, 4.0, 32.0, 32.0, 128.0)  # bases with which the next shorter context counts
UPSTREAM = 20  # bases before a start in which its binding site lies
_MOTIF = 6
# Genes in the mean of 300 codons, and how densely they begin on a strand: it is what a gene must
# be worth at least, chosen on C. trachomatis alone.
_CODONS = 300
_DENSITY = 1 / 736
KINDS = 3  # of genes, by composition: those acquired from elsewhere are unlike the others
GAPS = range(-60, 60)  # bases between neighbours on one strand whose frequency is learnt
_FEWEST = 20  # genes from which starts, or a kind, are learnt

STOPS = {4: ("TAA", "TAG"), 11: ("TAA", "TAG", "TGA"), 25: ("TAA", "TAG")}
STARTS = ("ATG", "GTG", "TTG")


def codon(text: str) -> int:
    """Returns the number of a word, 0 … 4^n − 1, A counting 0 and T 3."""
    return int("".join(str("ACGT".index(letter)) for letter in text), 4)


def stop_codons(code: int) -> tuple[int, ...]:
    """Returns the stop codons of a genetic code of the NCBI.

    Args:
        code: 11 (bacteria, archaea), 4 (Mycoplasma: TGA is tryptophan) or 25 (TGA is glycine).

    Raises:
        ConfigError: for another one.
    """
    if code not in STOPS:
        raise ConfigError(f"genetic code {code}: {', '.join(map(str, STOPS))} are known")
    return tuple(codon(text) for text in STOPS[code])


def digits(ids: np.ndarray) -> np.ndarray:
    """Returns 0 … 3 for A, C, G and T and 4 for anything else, int8 (n,), of token ids (n,)."""
    return np.where(is_base(ids), ids.astype(np.int8) - A, UNKNOWN).astype(np.int8)


def words(bases: np.ndarray, k: int) -> np.ndarray:
    """Returns the number of the word of k bases that begins at each position, int32 (n,); −1 where
    it holds an unknown base or goes beyond the end.

    Args:
        bases: of ``digits``.
        k: 1 … 15.
    """
    size = len(bases)
    found = np.full(size, -1, np.int32)
    if size < k:
        return found
    code = np.zeros(size - k + 1, np.int32)
    good = np.ones(size - k + 1, bool)
    for i in range(k):
        part = bases[i : size - k + 1 + i]
        code = code * 4 + part
        good &= part < UNKNOWN
    found[: size - k + 1] = np.where(good, code, -1)
    return found


def turned(bases: np.ndarray) -> np.ndarray:
    """Returns the other strand of what ``digits`` gave."""
    back = bases[::-1]
    return np.where(back < UNKNOWN, 3 - back, UNKNOWN).astype(np.int8)


def smoothed(counts: np.ndarray) -> np.ndarray:
    """Returns ln p of a base given the five before it, each context smoothed by the next shorter.

    Args:
        counts: of words of six bases (..., 4^6).

    Returns:
        float64 of the same shape.
    """
    shape = counts.shape[:-1]
    p = np.full((*shape, 1, 4), 0.25)
    for k in range(ORDER + 1):
        c = counts.reshape(*shape, 4 ** (ORDER - k), 4**k, 4).sum(-3)
        shorter = np.tile(p, (*[1] * len(shape), 4 if k else 1, 1))
        weight = _SMOOTHING[k]
        p = (c + weight * shorter) / (c.sum(-1, keepdims=True) + weight)
    return np.log(p).reshape(counts.shape)


@dataclass(frozen=True)
class Genes:
    """Places of genes on one record, all arrays (n,).

    Attributes:
        start: lowest position, 0-based, in the genome's own order.
        end: one past the highest, stop codon included.
        strand: 1 or −1.
        score: ln of the ratio to no gene.
        open_start: whether the gene begins before the record does.
        open_end: whether it ends after the record does.
        phase: bases before its first whole codon: not 0 only where it begins before the record.
    """

    start: np.ndarray
    end: np.ndarray
    strand: np.ndarray
    score: np.ndarray
    open_start: np.ndarray
    open_end: np.ndarray
    phase: np.ndarray

    def __len__(self) -> int:
        return len(self.start)

    def rows(self, chosen: np.ndarray) -> Genes:
        """Returns some of them, by index or mask."""
        return Genes(*(getattr(self, name)[chosen] for name in self.__dataclass_fields__))

    def on_strand(self, strand: int, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns first position and end of the genes of a strand, as they are read on it."""
        own = self.strand == strand
        low, high = self.start[own], self.end[own]
        return (low, high) if strand > 0 else (size - high, size - low)


@dataclass
class Upstream:
    """What lies before a start: bases by their distance from it, and in some of these places a
    ribosome binding site of six bases, or none.

    Attributes:
        each: ln p of the bases at each place (UPSTREAM, 5), the last for unknown ones.
        background: ln p of the bases of the genome (5,).
        site: ln p of the bases of the site (6, 5).
        where: ln p of each place of the site (UPSTREAM − 5,).
        none: ln p that there is no site.
    """

    each: np.ndarray
    background: np.ndarray
    site: np.ndarray
    where: np.ndarray
    none: float

    def score(self, windows: np.ndarray) -> np.ndarray:
        """Returns ln p(window | start) − ln p(window) of the bases (n, 20) before starts."""
        plain = self.each[np.arange(UPSTREAM), windows].sum(1)
        plain -= self.background[windows].sum(1)
        places = _placed(windows, self.site, self.each) + self.where
        return plain + np.logaddexp(np.logaddexp.reduce(places, 1), self.none)


def _placed(windows: np.ndarray, site: np.ndarray, each: np.ndarray) -> np.ndarray:
    """Returns ln of the ratio that a site makes at each place of windows, (n, places)."""
    places = np.arange(UPSTREAM - _MOTIF + 1)
    found = np.zeros((len(windows), len(places)))
    for i in range(_MOTIF):
        part = windows[:, places + i]
        found += site[i][part] - each[places + i, part]
    return found


def _with_unknown(p: np.ndarray) -> np.ndarray:
    """Returns ln p with a column of 0 for unknown bases."""
    return np.concatenate([np.log(p), np.zeros((*p.shape[:-1], 1))], -1)


def learn_upstream(windows: np.ndarray, background: np.ndarray, passes: int = 30) -> Upstream:
    """Finds the binding site by expectation-maximisation from the commonest enriched word.

    Args:
        windows: bases before starts, of ``digits`` (n, 20).
        background: p of the bases of the genome (4,).
        passes: of the algorithm.
    """
    count = UPSTREAM - _MOTIF + 1
    seen = np.stack([(windows == base).sum(0) for base in range(4)], 1)
    each = (seen + 5 * background) / (seen.sum(1, keepdims=True) + 5)
    logs = _with_unknown(each)
    flat = sum(
        4 ** (_MOTIF - 1 - i) * np.minimum(windows[:, i : i + count], 3).astype(np.int32)
        for i in range(_MOTIF)
    )
    shown = np.bincount(np.ravel(flat), minlength=4**_MOTIF).astype(float)
    grid = np.indices((4,) * _MOTIF).reshape(_MOTIF, -1)
    mean = each.mean(0)
    expected = mean[grid].prod(0) * flat.size
    word = grid[:, int(((shown - expected) / np.sqrt(expected + 1)).argmax())]
    p = np.where(np.arange(4) == word[:, None], 0.7, 0.1)
    where, none = np.full(count, 0.5 / count), 0.5
    for _ in range(passes):
        weight = np.exp(_placed(windows, _with_unknown(p), logs)) * where
        total = weight.sum(1, keepdims=True) + none
        weight /= total
        none = float((none / total).mean())
        where = weight.mean(0) + 1e-4
        where *= (1 - none) / where.sum()
        for i in range(_MOTIF):
            part = windows[:, i : i + count]
            found = np.array([weight[part == base].sum() for base in range(4)])
            p[i] = (found + 5 * background) / (found.sum() + 5)
    none = float(np.log(max(none, 1e-6)))
    return Upstream(logs, _with_unknown(background), _with_unknown(p), np.log(where), none)


class GeneModel:
    """See the head of this file.

    Args:
        code: genetic code, see ``stop_codons``.
    """

    def __init__(self, code: int = 11) -> None:
        self.code = code
        self.stops = stop_codons(code)
        self.starts = tuple(codon(text) for text in STARTS)
        # ln p by kind of gene, codon position and word of six; none before anything was learnt
        self.positions = np.zeros((0, 3, 4 * _WORDS))
        self.shares = np.ones(0)  # of the kinds
        self.anywhere = np.zeros(4 * _WORDS)
        self.start_odds = np.zeros(64)
        self.stop_odds = 0.0
        self.upstream: Upstream | None = None
        self.gaps = np.zeros(len(GAPS))

    def learn(self, records: Sequence[tuple[np.ndarray, Genes]]) -> None:
        """Counts genes; each is of the kind under which it was likeliest so far.

        Args:
            records: bases (of ``digits``) of each record and its genes.

        Raises:
            ConfigError: if there is no gene.
        """
        if not any(len(found) for _, found in records):
            raise ConfigError("no gene to learn from")
        kinds = self.kinds(records)
        inside = np.zeros((int(max(k.max(initial=0) for k in kinds)) + 1, 3, 4 * _WORDS))
        everywhere = np.zeros(4 * _WORDS)
        codons, seen, single = np.zeros(64), np.ones(64), np.zeros(4)
        before: list[np.ndarray] = []
        for (bases, found), kind in zip(records, kinds):
            for strand in (1, -1):
                here = bases if strand > 0 else turned(bases)
                six, three = _ending(here), words(here, 3)
                everywhere += np.bincount(_known(six), minlength=4 * _WORDS)
                seen += np.bincount(_known(three), minlength=64)
                single += np.bincount(here, minlength=5)[:4]
                first, end = found.on_strand(strand, len(here))
                own = found.rows(found.strand == strand)
                place = np.full(len(here), -1, np.int8)
                stop = np.where(own.open_end, end, end - 3)
                for low, high, phase, k in zip(
                    first, stop, own.phase, kind[found.strand == strand]
                ):
                    place[low:high] = (np.arange(high - low) - phase) % 3 + 3 * k
                for i in range(3 * len(inside)):
                    chosen = _known(six[place == i])
                    inside[i // 3, i % 3] += np.bincount(chosen, minlength=4 * _WORDS)
                first = first[~own.open_start & (first >= UPSTREAM)]
                codons += np.bincount(_known(three[first]), minlength=64)
                before.append(here[first[:, None] + np.arange(-UPSTREAM, 0)])
        self.positions, self.anywhere = smoothed(inside), smoothed(everywhere)
        for table in self.positions:
            table[2] = _without(table[2], self.stops)
        self.shares = (np.bincount(np.concatenate(kinds), minlength=len(inside)) + 1.0) / (
            sum(map(len, kinds)) + len(inside)
        )
        common = seen / seen.sum()
        share = np.full(64, 1e-9)
        chosen = list(self.starts)
        share[chosen] = (codons[chosen] + 1) / (codons[chosen].sum() + len(chosen))
        self.start_odds = np.log(share / common)
        self.stop_odds = float(np.log(1 / _CODONS / common[list(self.stops)].sum()))
        windows = np.concatenate(before)
        enough = len(windows) >= _FEWEST
        self.upstream = learn_upstream(windows, single / single.sum()) if enough else None
        self.gaps = _gap_odds([found for _, found in records])

    def kinds(self, records: Sequence[tuple[np.ndarray, Genes]]) -> list[np.ndarray]:
        """Returns the kind of every gene. All are of one kind at first; then by how well that fits
        them, in three parts; later the likeliest.

        Args:
            records: see ``learn``.
        """
        total = sum(len(found) for _, found in records)
        if len(self.positions) == 0 or total < _FEWEST * KINDS:
            return [np.zeros(len(found), np.int64) for _, found in records]
        values = []
        for bases, found in records:
            fit = np.zeros((len(self.positions), len(found)))
            for strand in (1, -1):
                here = bases if strand > 0 else turned(bases)
                along = self.along(here)
                first, end = found.on_strand(strand, len(here))
                own = np.flatnonzero(found.strand == strand)
                for at, low, high in zip(own, first + found.phase[own], end):
                    fit[:, at] = sum(along[:, i, low + i : high : 3].sum(1) for i in range(3))
            values.append(fit / (found.end - found.start))
        fit = np.concatenate(values, 1)
        kind = fit.argsort(1).argsort(1)[0] * KINDS // total if len(fit) == 1 else fit.argmax(0)
        return np.split(kind, np.cumsum([len(found) for _, found in records])[:-1])

    def along(self, bases: np.ndarray) -> np.ndarray:
        """Returns the ratio of each base by the codon position it would have, float32 (kinds, 3,
        n).

        Args:
            bases: of ``digits``; what is unknown, or has an unknown one just before it, gives 0.
        """
        ratio = (self.positions - self.anywhere).astype(np.float32)
        table = np.concatenate([ratio, np.zeros((len(ratio), 3, 1), np.float32)], 2)
        return table[:, :, _ending(bases)]  # index −1 is the last column

    def start_scores(self, bases: np.ndarray, at: np.ndarray) -> np.ndarray:
        """Returns the ratio of starts at these positions: codon, binding site, and how seldom genes
        begin.

        Args:
            bases: of ``digits``.
            at: positions (n,) of their first bases.
        """
        score = np.log(_DENSITY) + self.start_odds[words(bases, 3)[at]]
        if self.upstream is not None and len(at):
            padded = np.concatenate([np.full(UPSTREAM, UNKNOWN, np.int8), bases])
            score = score + self.upstream.score(padded[at[:, None] + np.arange(UPSTREAM)])
        return score


def _ending(bases: np.ndarray) -> np.ndarray:
    """Returns the word of six bases that ends at each position, see ``words``."""
    return np.concatenate([np.full(ORDER, -1, np.int32), words(bases, ORDER + 1)])[: len(bases)]


def _known(codes: np.ndarray) -> np.ndarray:
    return codes[codes >= 0]


def _without(logs: np.ndarray, stops: tuple[int, ...]) -> np.ndarray:
    """Returns ln p of third positions under which no stop codon is ever read."""
    p = np.exp(logs).reshape(-1, 16, 4)
    for stop in stops:
        p[:, stop // 4, stop % 4] = 1e-9
    return np.log(p / p.sum(-1, keepdims=True)).reshape(-1)


def _gap_odds(records: list[Genes]) -> np.ndarray:
    """Returns ln of how much likelier a gene begins at each distance from the one before it on its
    strand than anywhere, at least 0: operons."""
    counts, pairs = np.zeros(len(GAPS)), 0
    for found in records:
        order = np.argsort(found.start, kind="stable")
        low, high, strand = found.start[order], found.end[order], found.strand[order]
        gap = (low[1:] - high[:-1])[strand[1:] == strand[:-1]]
        pairs += len(gap)
        near = gap[(gap >= GAPS.start) & (gap < GAPS.stop)] - GAPS.start
        counts += np.bincount(near, minlength=len(GAPS))
    return np.maximum(np.log((counts + 0.1) / (pairs + 1) / _DENSITY), 0.0)
