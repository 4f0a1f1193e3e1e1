"""What a masked language model says of bases and variants: it hides them and reads both sides.

Every base is predicted while it is hidden (pseudo-log-likelihood: Salazar et al., arXiv 1910.14659,
equation 1). One base at a time costs a pass per base; hiding every K-th base of a window at once
costs K passes per window, and each base is then predicted without the others of its pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from longseq.core.checks import check_positive
from longseq.core.errors import ConfigError
from longseq.genomics.data.collection import Collection
from longseq.genomics.data.fasta import Genome
from longseq.genomics.data.splits import Interval
from longseq.genomics.data.tokenizer import MASK, is_base
from longseq.genomics.models.masked_model import MaskedDNAModel
from longseq.genomics.streaming import DEFAULT_WINDOW
from longseq.genomics.variant_scores import Ratio, Site, Unit

HIDE_EVERY = 7  # a seventh is near the 15% hidden in training, and no multiple of a codon
_TOKENS = 1 << 15  # positions run at once
_POSITIONS = 8192  # of several windows run at once: more is no faster
_WAITING = 1 << 16  # bases that are read before their windows are run


@dataclass(frozen=True)
class Block:
    """Consecutive bases of an interval, with what is read around them; positions in the record.

    Attributes:
        start: first base of the block.
        end: behind its last base.
        low: first base that is read.
        high: behind the last.
    """

    start: int
    end: int
    low: int
    high: int


def blocks(item: Interval, window: int) -> Iterator[Block]:
    """Yields blocks of half a window, with a quarter of one on both sides, or up to the interval's
    ends.

    Args:
        item: what is cut.
        window: positions read at once.
    """
    check_positive("window", window)
    hop = max(1, window // 2)
    side = (window - hop) // 2
    for start in range(item.start, item.end, hop):
        end = min(start + hop, item.end)
        yield Block(start, end, max(item.start, start - side), min(item.end, end + side))


def masked_scores(
    model: MaskedDNAModel,
    genome: Genome | Collection,
    intervals: Sequence[Interval],
    every: int = HIDE_EVERY,
    window: int | None = None,
    strand: str = "+",
) -> Iterator[tuple[Block, np.ndarray, np.ndarray]]:
    """Yields ln p of every base given those on both sides, while it is hidden.

    Args:
        model: a masked language model, in evaluation mode.
        genome: the sequence.
        intervals: nothing outside an interval is read.
        every: K: positions of one remainder modulo K are hidden at once; 0 to hide one at a time.
        window: positions read at once; 1024 if None.
        strand: "-" gives the model the reverse complement of the same windows with the same bases
            hidden; "both" takes the mean of the two logarithms. Only for models without symmetry
            is there a difference.

    Yields:
        The block, its tokens, uint8 (n,), and ln p, float32 (n,); NaN for what is no base.

    Raises:
        ConfigError: for K below 0, or 1, which would hide everything.
    """
    if every < 0 or every == 1:
        raise ConfigError(f"hide_every {every} must be 0 (one base at a time) or at least 2")
    window = window or DEFAULT_WINDOW
    if strand == "both":
        strand = "+" if model.symmetric else "+-"
    waiting: list[_Window] = []
    bases = 0
    for item in intervals:
        for block in blocks(item, window):
            waiting.append(_read(genome, item.chrom, block, every))
            bases += block.high - block.low
            if bases >= _WAITING:
                yield from _scored(model, waiting, strand)
                waiting, bases = [], 0
    yield from _scored(model, waiting, strand)


@dataclass(frozen=True)
class _Window:
    """What is read for a block.

    Attributes:
        block: its place.
        ids: tokens, uint8 (L,).
        inside: where the block is, bool (L,).
        group: positions of one number are hidden together, int64 (L,).
    """

    block: Block
    ids: np.ndarray
    inside: np.ndarray
    group: np.ndarray

    @property
    def wanted(self) -> np.ndarray:
        """The places (n,) that are to be scored."""
        return np.flatnonzero(self.inside & is_base(self.ids))

    @property
    def groups(self) -> np.ndarray:
        """The numbers (G,) of the groups that have such a place."""
        return np.unique(self.group[self.wanted])


def _read(genome: Genome | Collection, chrom: str, block: Block, every: int) -> _Window:
    ids = genome.fetch(chrom, block.low, block.high)
    place = np.arange(len(ids))
    inside = (place >= block.start - block.low) & (place < block.end - block.low)
    group = (place + block.low) % every if every else place
    return _Window(block, ids, inside, group)


def _scored(
    model: MaskedDNAModel, waiting: Sequence[_Window], strand: str
) -> Iterator[tuple[Block, np.ndarray, np.ndarray]]:
    """Yields what ``masked_scores`` does, in order; windows of equal length are run together."""
    totals = [np.zeros(len(one.ids)) for one in waiting]
    rows: list[tuple[int, int]] = []  # window, and the group of it that is hidden
    order = sorted(range(len(waiting)), key=lambda i: len(waiting[i].ids))
    for i in order:
        size = len(waiting[i].ids)
        for number in waiting[i].groups.tolist():
            most = _TOKENS if rows and rows[0][0] == i else _POSITIONS
            other = bool(rows) and len(waiting[rows[0][0]].ids) != size
            if rows and (other or (len(rows) + 1) * size > most):
                _add_hidden(model, waiting, rows, strand, totals)
                rows = []
            rows.append((i, number))
    if rows:
        _add_hidden(model, waiting, rows, strand, totals)
    for one, total in zip(waiting, totals):
        known = one.inside & is_base(one.ids)
        said = np.where(known, total / len(strand), np.nan).astype(np.float32)
        yield one.block, one.ids[one.inside], said[one.inside]


def _add_hidden(
    model: MaskedDNAModel,
    waiting: Sequence[_Window],
    rows: Sequence[tuple[int, int]],
    strand: str,
    totals: Sequence[np.ndarray],
) -> None:
    """Adds ln p of the wanted places of each row's group while the group is hidden."""
    ids = np.stack([waiting[i].ids for i, _ in rows])
    hidden = np.stack([waiting[i].group == number for i, number in rows]) & is_base(ids)
    masked = np.where(hidden, np.uint8(MASK), ids)
    wanted = hidden & np.stack([waiting[i].inside for i, _ in rows])
    row, at = np.nonzero(wanted)
    for one in strand:
        logp = _log_probs(model, masked, one)
        found = logp[row, at, ids[row, at].astype(np.int64)].double().cpu().numpy()
        for number, (i, _) in enumerate(rows):
            here = row == number
            totals[i][at[here]] += found[here]


@torch.inference_mode()
def _log_probs(model: MaskedDNAModel, rows: np.ndarray, strand: str) -> Tensor:
    """Returns ln p (B, L, V) in the order and letters of the strand +, whichever is read."""
    device = next(model.parameters()).device
    tokens = torch.from_numpy(rows.astype(np.int64)).to(device)
    if strand == "+":
        return torch.log_softmax(model(tokens).float(), -1)
    other = model.complement[tokens].flip(1)
    return torch.log_softmax(model(other).float(), -1).flip(1)[..., model.complement]


@dataclass
class MaskedScorer:
    """Scores substitutions: ln p(ALT) - ln p(REF) at the hidden site, given both sides.

    Of several bases, all are hidden at once and their logarithms added (Meier et al., 2021,
    "masked marginals").

    Args:
        model: a masked language model, in evaluation mode.
        genome: the reference.
        window: positions read, with the site in their middle.
    """

    model: MaskedDNAModel
    genome: Genome | Collection
    window: int

    masked = True

    def __post_init__(self) -> None:
        check_positive("window", self.window)

    @property
    def symmetric(self) -> bool:
        """Whether both strands get the same scores."""
        return self.model.symmetric

    def positions(self, unit: Unit) -> int:
        """Returns how many positions the model runs over."""
        size = self.genome.records[unit.chrom]
        return sum(high - low for low, high in (self._span(site, size) for site in unit.sites))

    def score(self, unit: Unit) -> dict[int, list[Ratio]]:
        """Returns the ratio of each other allele, by the sites' indices."""
        size = self.genome.records[unit.chrom]
        found: dict[int, list[Ratio]] = {}
        waiting: list[tuple[Site, int, np.ndarray]] = []
        for site in unit.sites:
            low, high = self._span(site, size)
            if unit.strand == "+":
                ids = self.genome.fetch(unit.chrom, low, high).copy()
            else:
                ids = self.genome.fetch(unit.chrom, size - high, size - low, "-").copy()
            begin = site.start - low
            ids[begin : begin + len(site.alleles[0])] = MASK
            same = bool(waiting) and len(waiting[0][2]) == len(ids)
            if waiting and (not same or (len(waiting) + 1) * len(ids) > _TOKENS):
                found |= self._run(waiting)
                waiting = []
            waiting.append((site, begin, ids))
        return found | (self._run(waiting) if waiting else {})

    def _span(self, site: Site, size: int) -> tuple[int, int]:
        """Returns what is read: as much on both sides, so that the strands see the same."""
        width = len(site.alleles[0])
        side = max(0, self.window - width) // 2
        return max(0, site.start - side), min(size, site.start + width + side)

    def _run(self, waiting: Sequence[tuple[Site, int, np.ndarray]]) -> dict[int, list[Ratio]]:
        logp = _log_probs(self.model, np.stack([ids for _, _, ids in waiting]), "+")
        found = {}
        for row, (site, begin, _) in enumerate(waiting):
            there = logp[row, begin : begin + len(site.alleles[0])].double().cpu().numpy()
            at = np.arange(len(there))
            totals = [float(there[at, allele.astype(np.int64)].sum()) for allele in site.alleles]
            found[site.index] = [Ratio(one - totals[0]) for one in totals[1:]]
        return found
