"""What a hidden Markov model of genes says of variants: it learns reading frames from a genome.

States: between genes, and three codon positions on each strand for each kind of gene. Every state
has a probability of a base given the five before it, counted from the genes that ``GeneFinder``
finds without annotation, on both strands. A sequence's probability is the sum over all paths of
states, and a variant's score ln of the ratio that it makes, so that a base counts which ends a
reading frame, shifts it, or is unlike the genome's codons. In the manner of GeneMark.hmm (Lukashin
and Borodovsky 1998).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from longseq.core.errors import DataError
from longseq.genomics.data.collection import Collection
from longseq.genomics.data.fasta import Genome, open_genome
from longseq.genomics.data.tokenizer import encode
from longseq.genomics.data.vcf import Variant
from longseq.genomics.gene_finder import PASSES, GeneFinder
from longseq.genomics.gene_model import (
    ORDER,
    STARTS,
    codon,
    digits,
    smoothed,
    stop_codons,
    turned,
    words,
)
from longseq.genomics.progress import progress_bar
from longseq.genomics.variant_sites import Scored, shortest

FLANK = 250  # bases that are read on both sides of a variant
_WORDS = 4 ** (ORDER + 1)
_ROWS = 512  # sequences read at once
# Probabilities of moves that are not given by the codon. Between genes: into a gene after its start
# codon, after another one; the same from its end. A gene's codon goes on, or, rarely, in another
# place: a shifted frame, or a neighbour that begins at once.
_IN, _IN_RARE, _IN_NEVER, _IN_BACK, _OUT_BACK = 0.02, 0.004, 1e-4, 0.008, 0.03
_AFTER_STOP = (0.8, 0.02, (0.02, 0.06, 0.06, 0.02, 0.02, 0.02))
_AFTER_CODON = (1e-4, 0.9997, (0.0, 5e-5, 5e-5, 3e-5, 3e-5, 4e-5))
_AFTER_START_BACK = (0.02, 0.02, 0.02, 0.05, 0.05, 0.0)  # in parts of what leaves the gene


def _turned_codon(number: int) -> int:
    return (3 - number % 4) * 16 + (3 - number // 4 % 4) * 4 + 3 - number // 16


class GeneHMM:
    """See the head of this file.

    Args:
        log_probs: ln p of a word's last base given the others, (S, 4^6): state 0 between genes,
            then for each kind of gene three codon positions and the same three of the other strand.
        shares: of the kinds, (kinds,), S = 1 + 6 · kinds.
        code: genetic code of the NCBI: 11, 4 or 25.
    """

    def __init__(self, log_probs: np.ndarray, shares: np.ndarray, code: int = 11) -> None:
        unknown = np.full((1, len(log_probs)), 0.25)  # what has an unknown base in its word
        self._emitted = np.concatenate([np.exp(log_probs).T, unknown])
        self._moves = _moves(shares, stop_codons(code))
        self._first = np.concatenate([[0.3], np.repeat(0.7 * shares / 6, 6)])

    @classmethod
    def learn(
        cls,
        sequences: Sequence[np.ndarray],
        code: int = 11,
        progress: Callable[[int], object] | None = None,
    ) -> GeneHMM:
        """Learns from sequences without annotation.

        Args:
            sequences: token ids (n,) each.
            code: genetic code.
            progress: called with the bases read, again and again.

        Raises:
            DataError: if no gene is found.
        """
        finder = GeneFinder(code)
        finder.learn(sequences, progress)
        parts = [(digits(ids), finder.find(ids)) for ids in sequences]
        if not any(len(genes) for _, genes in parts):
            raise DataError("no gene was found to learn reading frames from")
        kinds = finder.model.kinds(parts)
        count = int(max(kind.max(initial=0) for kind in kinds)) + 1
        counts = np.zeros((1 + 6 * count, _WORDS))
        for (bases, genes), kind in zip(parts, kinds):
            for strand in (1, -1):
                here = bases if strand > 0 else turned(bases)
                state = np.zeros(len(here), np.int64)
                for way in (1, -1):
                    own = genes.strand == way * strand
                    low, high = genes.start[own], genes.end[own]
                    if strand < 0:
                        low, high = len(here) - high, len(here) - low
                    for a, b, phase, k in zip(low, high, genes.phase[own], kind[own]):
                        place = np.arange(b - a) - phase
                        place = place % 3 + 1 if way > 0 else place[::-1] % 3 + 4
                        state[a:b] = place + 6 * k
                word = _ending(here)
                seen = word >= 0
                flat = state[seen] * _WORDS + word[seen]
                counts += np.bincount(flat, minlength=counts.size).reshape(counts.shape)
        shares = np.bincount(np.concatenate(kinds), minlength=count) + 1.0
        return cls(smoothed(counts), shares / shares.sum(), code)

    def log_likelihood(self, rows: Sequence[np.ndarray]) -> np.ndarray:
        """Returns ln p of sequences, the mean of reading them on either strand, float64 (n,).

        Args:
            rows: bases, of ``digits``.
        """
        found = np.zeros(len(rows))
        sizes = np.array([len(row) for row in rows])
        for size in np.unique(sizes):
            every = np.flatnonzero(sizes == size)
            for low in range(0, len(every), _ROWS):
                chosen = every[low : low + _ROWS]
                ahead = np.stack([rows[i] for i in chosen])
                back = np.stack([turned(rows[i]) for i in chosen])
                found[chosen] = (self._read(ahead) + self._read(back)) / 2
        return found

    def _read(self, bases: np.ndarray) -> np.ndarray:
        """Returns ln p of rows (n, L) by the forward algorithm."""
        word = np.stack([_ending(row) for row in bases])
        codons = np.stack([words(row, 3) for row in bases])  # −1: the last of the moves
        at = np.tile(self._first, (len(bases), 1))
        total = np.zeros(len(bases))
        for t in range(bases.shape[1]):
            if t:
                before = codons[:, t - 3] if t >= 3 else np.full(len(bases), -1)
                at = np.matmul(at[:, None], self._moves[before])[:, 0]
            at = at * self._emitted[word[:, t]]
            scale = at.sum(1)
            total += np.log(scale)
            at /= scale[:, None]
        return total

    def ratios(
        self,
        variants: Sequence[Variant],
        genome: Genome | Collection,
        reasons: Sequence[Sequence[str]],
        flank: int = FLANK,
    ) -> list[list[float]]:
        """Returns ln p(ALT and what lies around it) − ln p(REF and the same) of every allele.

        Args:
            variants: in any order.
            genome: the reference.
            reasons: of each allele why it is not scored, "" if it is: the others give NaN.
            flank: bases that are read on both sides.
        """
        rows: list[np.ndarray] = []
        owner: list[tuple[int, int]] = []
        for number, (variant, why) in enumerate(zip(variants, reasons)):
            if all(why):
                continue
            chrom = genome.resolve(variant.chrom)
            end, size = variant.start + len(variant.ref), genome.records[chrom]
            left = digits(genome.fetch(chrom, max(0, variant.start - flank), variant.start))
            right = digits(genome.fetch(chrom, end, min(size, end + flank)))
            for i, allele in enumerate((variant.ref, *variant.alts)):
                if i == 0 or not why[i - 1]:
                    rows.append(np.concatenate([left, digits(encode(allele)), right]))
                    owner.append((number, i - 1))
        said = self.log_likelihood(rows)
        found = [[float("nan")] * len(why) for why in reasons]
        reference = 0.0
        for (number, i), value in zip(owner, said.tolist()):
            if i < 0:
                reference = value
            else:
                found[number][i] = value - reference
        return found


def gene_model(
    sources: str | None, reference: Genome | Collection, code: int = 11
) -> GeneHMM | None:
    """Returns a model of genes learnt from genomes without annotation, or None.

    Args:
        sources: "reference", or files or samples to learn from, with commas between; None for none.
        reference: of the variants.
        code: genetic code.

    Raises:
        DataError: if there is no gene to learn from.
    """
    if sources is None:
        return None
    names = [] if sources == "reference" else [one for one in sources.split(",") if one]
    genomes = [open_genome(name) for name in names] or [reference]
    sequences = [one.fetch(name, 0, size) for one in genomes for name, size in one.records.items()]
    with progress_bar("learning genes", PASSES * sum(map(len, sequences))) as progress:
        return GeneHMM.learn(sequences, code, progress)


def with_genes(
    model: GeneHMM,
    variants: Sequence[Variant],
    found: Sequence[Scored],
    genome: Genome | Collection,
) -> list[Scored]:
    """Returns scores with those under a model of genes.

    Args:
        model: of genes.
        variants: what was scored.
        found: the scores.
        genome: the reference.
    """
    ratios = [[float("nan")] * len(one.reasons) for one in found]
    places = [
        (i, k) for i, one in enumerate(found) for k, reason in enumerate(one.reasons) if not reason
    ]
    single = []  # as the network scores them: each allele alone, however it is written
    for i, k in places:
        chrom = genome.resolve(variants[i].chrom)
        start, ref, alt = shortest(variants[i], k, chrom, genome)
        single.append(Variant(chrom, start, ".", ref, (alt,)))
    said = model.ratios(single, genome, [[""]] * len(single))
    for (i, k), (value,) in zip(places, said, strict=True):
        ratios[i][k] = value
    return [one._replace(genes=values) for one, values in zip(found, ratios, strict=True)]


def _ending(bases: np.ndarray) -> np.ndarray:
    """Returns the word of six bases that ends at each position, −1 where there is none."""
    lead = np.full(ORDER, -1, np.int32)
    return np.concatenate([lead, words(bases, ORDER + 1)])[: len(bases)]


def _moves(shares: np.ndarray, stops: Sequence[int]) -> np.ndarray:
    """Returns p of the next state (65, S, S) given the last three bases, the last for unknown ones.

    Args:
        shares: of the kinds of genes.
        stops: stop codons.
    """
    kinds = range(len(shares))
    moves = np.zeros((65, 1 + 6 * len(shares), 1 + 6 * len(shares)))
    starts = {codon(text): _IN if text == STARTS[0] else _IN_RARE for text in STARTS}
    back_starts = {_turned_codon(c): _OUT_BACK if p == _IN else p for c, p in starts.items()}
    back_stops = {_turned_codon(c) for c in stops}

    def elsewhere(row: np.ndarray, parts: Sequence[float], scale: float = 1.0) -> None:
        for k in kinds:
            row[1 + 6 * k : 7 + 6 * k] += scale * shares[k] * np.array(parts)

    for last, move in enumerate(moves):
        into = starts.get(last, _IN_NEVER)
        back = _IN_BACK if last in back_stops else _IN_NEVER
        leave = back_starts.get(last, _IN_NEVER)
        move[0, 0] = 1 - into - back
        for k in kinds:
            first = 1 + 6 * k  # codon positions; first + 3 … those of the other strand
            move[0, first], move[0, first + 5] = into * shares[k], back * shares[k]
            move[first, first + 1] = move[first + 1, first + 2] = 1
            move[first + 5, first + 4] = move[first + 4, first + 3] = 1
            out, on, others = _AFTER_STOP if last in stops else _AFTER_CODON
            move[first + 2, 0], move[first + 2, first] = out, on
            elsewhere(move[first + 2], others)
            move[first + 3, 0], move[first + 3, first + 5] = leave, 1 - leave * 1.16
            elsewhere(move[first + 3], _AFTER_START_BACK, leave)
    return moves / moves.sum(2, keepdims=True)
