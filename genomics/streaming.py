"""Reading sequences of any length with any causal model: a carried state, or overlapping windows.

Models whose state is bounded are exact: what they say of a base depends on all bases before it. The
others (Hyena beyond its ``l_max``, attention) read windows of their own reach, each of which begins
half a window later than the one before: every base is predicted from at least half a window, or
from all there is. Where the cuts between calls fall changes nothing in either case.

Short sequences run side by side, padded at their right, which no causal model sees: alone, a read
of 150 bases costs more in calls than in arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from longseq.core.checks import check_positive
from longseq.core.mixers import State
from longseq.genomics.data.collection import Collection
from longseq.genomics.data.fasta import Genome
from longseq.genomics.data.padding import pad
from longseq.genomics.data.splits import Interval
from longseq.genomics.models.language_model import DNALanguageModel

DEFAULT_WINDOW = 1024
_BATCH = 8  # windows run at once
_POSITIONS = 8192  # of short intervals run at once, padding included: more is no faster
_WAITING = 65536  # bases of short intervals that are sorted by length together
_PADDING = 256  # positions of a row: so many cost about what a call costs


def reach(model: DNALanguageModel, trained: int | None = None) -> int | None:
    """Returns the window in which a model has to be run; None if its state can be carried for ever.

    Args:
        model: a causal language model.
        trained: length of the windows it was trained on, for mixers that set no limit themselves.
    """
    limits = []
    for layer in model.backbone.layers:
        mixer = layer.mixer
        if mixer.bounded_state:
            continue
        limits.append(int(getattr(mixer, "l_max", 0) or trained or DEFAULT_WINDOW))
    return min(limits) if limits else None


@dataclass(frozen=True)
class Carried:
    """What is known of the sequence so far.

    Attributes:
        states: of the model's layers, where they are bounded.
        tokens: the last ones (B, n), where windows are read.
        seen: positions so far.
    """

    states: list[State] | None = None
    tokens: Tensor | None = None
    seen: int = 0


@dataclass
class Stream:
    """A model that reads on from where it stopped.

    Args:
        model: a causal language model.
        window: positions at once; None to carry the states.
        carried: of the sequence so far; nothing at its start.
        hidden: whether the last layer's output is wanted in place of logits.
    """

    model: DNALanguageModel
    window: int | None = None
    carried: Carried = field(default_factory=Carried)
    hidden: bool = False

    def __post_init__(self) -> None:
        if self.window is not None:
            check_positive("window", self.window)

    def read(self, input_ids: Tensor) -> Tensor:
        """Reads the next tokens.

        Args:
            input_ids: (B, L), L ≥ 1.

        Returns:
            Logits of the token after each (B, L, V), or the last layer's output (B, L, D).
        """
        run = self.model.hidden if self.hidden else self.model
        before = self.carried
        length = input_ids.shape[1]
        if self.window is None:
            logits, states = run(input_ids, before.states)
            self.carried = Carried(states, None, before.seen + length)
            return logits
        hop = max(1, self.window // 2)
        past = input_ids[:, :0] if before.tokens is None else before.tokens
        tokens = torch.cat([past, input_ids], 1)
        zero = before.seen - past.shape[1]  # position of tokens[:, 0]
        # Blocks begin at multiples of the hop; each sees window - hop positions before itself.
        spans = []
        position, end = before.seen, before.seen + length
        while position < end:
            begin = position // hop * hop
            stop = min(begin + hop, end)
            spans.append((max(0, begin - (self.window - hop)), position, stop))
            position = stop
        pieces: list[Tensor] = []
        for group in _alike(spans):
            rows = torch.cat([tokens[:, low - zero : stop - zero] for low, _, stop in group])
            logits = run(rows, None, keep_states=False)[0]
            for part, (low, position, _) in zip(logits.split(len(input_ids)), group):
                pieces.append(part[:, position - low :])
        kept = max(0, end // hop * hop - (self.window - hop))
        self.carried = Carried(None, tokens[:, max(0, kept - zero) :].clone(), end)
        return torch.cat(pieces, 1)


def _alike(spans: Sequence[tuple[int, int, int]]) -> Iterator[list[tuple[int, int, int]]]:
    """Yields consecutive windows of equal length, a few at a time."""
    group: list[tuple[int, int, int]] = []
    for span in spans:
        if group and (span[2] - span[0] != group[0][2] - group[0][0] or len(group) == _BATCH):
            yield group
            group = []
        group.append(span)
    if group:
        yield group


@dataclass(frozen=True)
class Chunk:
    """Consecutive bases of one record with what the model said before each.

    Attributes:
        chrom: the record.
        start: 0-based position of the first base.
        ids: tokens, uint8 (n,).
        log_probs: ln p of every token, float32 (n, V); NaN for the first base of a record or
            region, which nothing precedes.
    """

    chrom: str
    start: int
    ids: np.ndarray
    log_probs: Tensor


def stream_log_probs(
    model: DNALanguageModel,
    genome: Genome | Collection,
    intervals: Sequence[Interval] | None = None,
    chunk: int = 65536,
    window: int | None = None,
    strand: str = "+",
) -> Iterator[Chunk]:
    """Yields what a model says of every base of a genome.

    Args:
        model: a causal language model, in evaluation mode.
        genome: the sequence.
        intervals: what to score, each from an empty state; every record as a whole if None.
        chunk: bases read at once; memory grows with it, the result does not depend on it.
        window: see ``Stream``; that of ``reach`` if None.
        strand: "-" reads each interval from its end, on the other strand; positions and bases are
            then those of the interval read backwards: ``start`` is that of the chunk's last base.
    """
    check_positive("chunk", chunk)
    device = next(model.parameters()).device
    window = reach(model) if window is None else window
    if intervals is None:
        intervals = [Interval(name, 0, size) for name, size in genome.records.items()]
    for bunch in bunches(intervals, chunk):
        if len(bunch) > 1:
            yield from _side_by_side(model, genome, bunch, min(chunk, _POSITIONS), window, strand)
            continue
        item = bunch[0]
        stream, ahead = Stream(model, window), None  # ahead: ln p of the base that comes next (V,)
        for done in range(0, len(item), chunk):
            count = min(chunk, len(item) - done)
            start = item.start + done if strand == "+" else item.end - done - count
            ids = genome.fetch(item.chrom, start, start + count, strand)
            tokens = torch.from_numpy(ids.astype(np.int64)).to(device)
            with torch.inference_mode():
                logp = torch.log_softmax(stream.read(tokens.unsqueeze(0))[0].float(), -1)
                first = torch.full_like(logp[:1], float("nan")) if ahead is None else ahead
                said = torch.cat([first, logp[:-1]])
                ahead = logp[-1:].clone()
            yield Chunk(item.chrom, start, ids, said)


def bunches(
    intervals: Sequence[Interval], chunk: int, waiting: int = _WAITING
) -> Iterator[list[Interval]]:
    """Yields intervals in their order: consecutive short ones together, each of which is a single
    ``Chunk``; a long one alone. Empty ones are left out.

    Args:
        intervals: what is to be read.
        chunk: bases read at once; no longer interval is short.
        waiting: bases of a bunch at most.
    """
    held: list[Interval] = []
    bases = 0
    for item in intervals:
        short = len(item) <= min(chunk, _POSITIONS)
        if held and (not short or bases + len(item) > waiting):
            yield held
            held, bases = [], 0
        if short and len(item):
            held.append(item)
            bases += len(item)
        elif len(item):
            yield [item]
    if held:
        yield held


def _side_by_side(
    model: DNALanguageModel,
    genome: Genome | Collection,
    bunch: Sequence[Interval],
    positions: int,
    window: int | None,
    strand: str,
) -> Iterator[Chunk]:
    """Yields one chunk for each interval of a bunch, in its order; see ``stream_log_probs``."""
    device = next(model.parameters()).device
    ids = [genome.fetch(item.chrom, item.start, item.end, strand) for item in bunch]
    said: dict[int, Tensor] = {}
    for rows in alike([len(one) for one in ids], positions):
        tokens, _ = pad([ids[i] for i in rows])
        with torch.inference_mode():
            logits = Stream(model, window).read(tokens.to(device))
            logp = torch.log_softmax(logits.float(), -1).roll(1, 1)
            logp[:, 0] = float("nan")
        said |= {i: row[: len(ids[i])] for i, row in zip(rows, logp)}
    for i, item in enumerate(bunch):
        yield Chunk(item.chrom, item.start, ids[i], said[i])


def alike(lengths: Sequence[int], positions: int, padding: int = _PADDING) -> Iterator[list[int]]:
    """Yields the numbers of sequences of like length that are to run side by side, the longest
    first.

    Args:
        lengths: of the sequences.
        positions: of a batch at most, padding included, but for a longer sequence alone.
        padding: positions of a row at most; 0 for sequences of one length.
    """
    rows: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        width = lengths[rows[0]] if rows else 0
        if rows and ((len(rows) + 1) * width > positions or width - lengths[i] > padding):
            yield rows
            rows = []
        rows.append(i)
    if rows:
        yield rows
