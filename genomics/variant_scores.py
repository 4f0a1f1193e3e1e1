"""Log-likelihood ratios of alleles: the state before a site is computed once and shared.

A variant is scored by ln p(ALT and the W bases after REF) - ln p(REF and the same W bases), both
given the bases before the site: a sum of what the alleles themselves cost and of what the W bases
cost after them, which are kept apart. A record is cut into blocks of C bases; the sites of a block
are read from the begin of the block before it, so that each has between C and 2C bases of context
(or all there are), whatever other variants there are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from longseq.genomics.data.collection import Collection
from longseq.genomics.data.fasta import Genome
from longseq.genomics.data.tokenizer import N, is_base, reverse_complement
from longseq.genomics.models.language_model import DNALanguageModel
from longseq.genomics.streaming import Carried, Stream

WINDOW = 256
_TOKENS = 1 << 15  # positions run at once


class Ratio(NamedTuple):
    """The log-likelihood ratio of an allele to the reference's, in nats, in its two parts.

    Attributes:
        site: of the alleles themselves.
        after: of the bases behind them; 0 of a model that reads both sides at once.
    """

    site: float
    after: float = 0.0

    @property
    def whole(self) -> float:
        """The ratio."""
        return self.site + self.after


@dataclass(frozen=True)
class Site:
    """Alleles at one place, on the strand that is read.

    Attributes:
        index: of the variant, for the caller.
        start: of the reference allele, 0-based on the strand.
        alleles: token ids of the reference allele, then of the others; one of them may have no
            base.
    """

    index: int
    start: int
    alleles: tuple[np.ndarray, ...]

    def mirrored(self, size: int) -> Site:
        """Returns the site on the other strand of a record of this many bases."""
        alleles = tuple(reverse_complement(one) for one in self.alleles)
        return Site(self.index, size - self.start - len(self.alleles[0]), alleles)


@dataclass(frozen=True)
class Unit:
    """The sites of one block of one strand, which share a prefix.

    Attributes:
        chrom: the record.
        strand: "+" or "-".
        begin: where the reading begins, on the strand.
        sites: by start.
    """

    chrom: str
    strand: str
    begin: int
    sites: tuple[Site, ...]


def units(
    sites: Iterable[tuple[str, Site]], sizes: dict[str, int], context: int, strands: str
) -> list[Unit]:
    """Groups sites by record, strand and block.

    Args:
        sites: record and site on the forward strand.
        sizes: length of every record.
        context: C.
        strands: "+", "-" or "+-".
    """
    blocks: dict[tuple[str, str, int], list[Site]] = {}
    for chrom, site in sites:
        for strand in strands:
            here = site if strand == "+" else site.mirrored(sizes[chrom])
            blocks.setdefault((chrom, strand, here.start // context), []).append(here)
    return [
        Unit(chrom, strand, max(0, (block - 1) * context), tuple(sorted(members, key=_start)))
        for (chrom, strand, block), members in blocks.items()
    ]


def _start(site: Site) -> tuple[int, int]:
    return site.start, site.index


@dataclass
class Scorer:
    """Scores units with one model.

    Args:
        model: a causal language model, in evaluation mode.
        genome: the reference.
        window: W, bases after the reference allele.
        reach: positions at once for models that carry no state, see ``streaming``.
    """

    model: DNALanguageModel
    genome: Genome | Collection
    window: int
    reach: int | None = None

    masked = symmetric = False

    def positions(self, unit: Unit) -> int:
        """Returns how many positions the model runs over."""
        prefix = unit.sites[-1].start - unit.begin
        return prefix + sum(len(one) + self.window for site in unit.sites for one in site.alleles)

    @torch.inference_mode()
    def score(self, unit: Unit) -> dict[int, list[Ratio]]:
        """Returns ln p(ALT …) - ln p(REF …) for each other allele, by the sites' indices."""
        size = self.genome.records[unit.chrom]
        stream, ahead, at = Stream(self.model, self.reach, self._start()), None, unit.begin
        found: dict[int, list[Ratio]] = {}
        waiting: list[tuple[Site, Carried, Tensor | None]] = []
        for site in unit.sites:
            if site.start > at:
                logits = stream.read(self._tokens(self._fetch(unit, size, at, site.start)))
                ahead, at = torch.log_softmax(logits[:, -1].float(), -1), site.start
            waiting.append((site, stream.carried, ahead))
            if self._positions(waiting) >= _TOKENS or not self._batched:
                found |= self._alleles(unit, size, waiting)
                waiting = []
        return found | (self._alleles(unit, size, waiting) if waiting else {})

    @property
    def _batched(self) -> bool:
        """Whether what is carried has the same shapes at every site."""
        return self.reach is None and all(
            layer.mixer.finite_state for layer in self.model.backbone.layers
        )

    def _start(self) -> Carried:
        return Carried(self.model.init_states(1)) if self.reach is None else Carried()

    def _positions(self, waiting: Sequence[tuple[Site, Carried, Tensor | None]]) -> int:
        rows = [len(allele) + self.window for site, *_ in waiting for allele in site.alleles]
        return len(rows) * max(rows)

    def _fetch(self, unit: Unit, size: int, start: int, end: int) -> np.ndarray:
        """Returns bases of the strand that is read."""
        if unit.strand == "+":
            return self.genome.fetch(unit.chrom, start, end)
        return self.genome.fetch(unit.chrom, size - end, size - start, "-")

    def _tokens(self, ids: np.ndarray) -> Tensor:
        device = next(self.model.parameters()).device
        return torch.from_numpy(np.atleast_2d(ids).astype(np.int64)).to(device)

    def _alleles(
        self, unit: Unit, size: int, waiting: Sequence[tuple[Site, Carried, Tensor | None]]
    ) -> dict[int, list[Ratio]]:
        """Runs all alleles of some sites, each from the state before its site."""
        rows: list[np.ndarray] = []
        owner: list[int] = []
        for number, (site, _, _) in enumerate(waiting):
            after = site.start + len(site.alleles[0])
            tail = self._fetch(unit, size, after, min(after + self.window, size))
            rows += [np.concatenate([allele, tail]) for allele in site.alleles]
            owner += [number] * len(site.alleles)
        longest = max(map(len, rows))
        ids = np.full((len(rows), longest), N, np.uint8)
        for row, tokens in zip(ids, rows):
            row[: len(tokens)] = tokens
        tokens = self._tokens(ids)
        stream = Stream(self.model, self.reach, _joined([waiting[i][1] for i in owner]))
        logp = torch.log_softmax(stream.read(tokens).float(), -1)
        uniform = torch.full_like(logp[:1, 0], float(np.log(0.25)))
        first = torch.cat([uniform if (said := waiting[i][2]) is None else said for i in owner])
        said = torch.cat([first.unsqueeze(1), logp[:, :-1]], 1)
        scores = said.gather(2, tokens.unsqueeze(2)).squeeze(2).double().cpu().numpy()
        scores = np.where(is_base(ids), scores, 0.0)
        out: dict[int, list[Ratio]] = {}
        row = 0
        for site, _, _ in waiting:
            own = [
                (values[: len(allele)].sum(), values[len(allele) :].sum())
                for allele, values in zip(site.alleles, scores[row:])
            ]
            out[site.index] = [
                Ratio(float(there - own[0][0]), float(after - own[0][1]))
                for there, after in own[1:]
            ]
            row += len(site.alleles)
        return out


def _joined(carried: Sequence[Carried]) -> Carried:
    """Returns what is carried before several rows as one batch."""
    first = carried[0]
    if first.states is not None:
        every = [one.states for one in carried if one.states is not None]
        states = [
            {name: torch.cat([one[layer][name] for one in every]) for name in first.states[layer]}
            for layer in range(len(first.states))
        ]
        return Carried(states, None, first.seen)
    tokens = [one.tokens for one in carried if one.tokens is not None]
    return Carried(None, torch.cat(tokens) if tokens else None, first.seen)
