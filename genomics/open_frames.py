"""Open reading frames of a record, and the best set of genes among them."""

from __future__ import annotations

from bisect import bisect_right

import numpy as np

from longseq.genomics.gene_model import GAPS, GeneModel, Genes, turned, words

SHORTEST = 90  # bases of a gene, stop codon included
_SHORTEST_OPEN = 60  # of one that is cut by the record's end
_STARTS = 6  # per open frame that are kept
_SAME, _OPPOSITE = 60, 200  # bases that two genes may share on one strand, on both
_LONG = 500  # without a stop codon: taken for a gene where nothing is known yet


def open_frames(bases: np.ndarray, model: GeneModel, closed: bool = False) -> Genes:
    """Returns genes that could be: on both strands, from a start codon (or the record's begin) to
    the next stop codon in frame (or the record's end), with a score above 0.

    Args:
        bases: of ``digits`` (n,).
        model: that gives the scores.
        closed: whether no gene goes beyond an end of the record.
    """
    sides = [_one_strand(bases, model, closed), _one_strand(turned(bases), model, closed)]
    size = len(bases)
    fields = []
    for strand, (first, end, *others) in zip((1, -1), sides):
        low, high = (first, end) if strand > 0 else (size - end, size - first)
        fields.append((low, high, np.full(len(low), strand), *others))
    return Genes(*(np.concatenate(pair) for pair in zip(*fields)))


def stops_after(bases: np.ndarray, stops: tuple[int, ...]) -> list[np.ndarray]:
    """Returns, for each frame (position of a codon's first base mod 3), where stop codons begin."""
    at = np.flatnonzero(np.isin(words(bases, 3), stops))
    return [at[at % 3 == frame] for frame in range(3)]


def _one_strand(bases: np.ndarray, model: GeneModel, closed: bool) -> tuple[np.ndarray, ...]:
    size = len(bases)
    along = model.along(bases)
    three = words(bases, 3)
    begin = np.flatnonzero(np.isin(three, model.starts))
    found = []
    for frame, stops in enumerate(stops_after(bases, model.stops)):
        place = (np.arange(size) - frame) % 3
        total = np.zeros((len(along), size + 1))
        np.cumsum(along[:, place, np.arange(size)], axis=1, out=total[:, 1:])
        first = begin[begin % 3 == frame]
        begun = np.zeros(len(first), bool)
        if not closed and frame < size:
            first, begun = np.append(frame, first), np.append(True, begun)
        number = np.searchsorted(stops, first)  # of the stop codon that ends it
        last = size - (size - frame) % 3
        ends = np.append(stops, last)
        stop = ends[number]
        open_end = number == len(stops)
        end = np.where(open_end, last, stop + 3)
        each = total[:, stop] - total[:, first] + np.log(model.shares)[:, None]
        score = np.logaddexp.reduce(each, 0)
        score += np.where(open_end, 0.0, model.stop_odds)
        score += np.where(begun, 0.0, model.start_scores(bases, first))
        cut = begun | open_end
        good = (end - first >= np.where(cut, _SHORTEST_OPEN, SHORTEST)) & (score > 0)
        if closed:
            good &= ~open_end
        keep = np.flatnonzero(good)
        order = keep[np.lexsort((-score[keep], number[keep]))]
        rank = np.arange(len(order)) - np.searchsorted(number[order], number[order])
        keep = np.sort(order[rank < _STARTS])
        phase = np.where(begun, first, 0)
        first, end = first - phase, np.where(open_end, size, end)
        fields = (first, end, score, begun, open_end, phase)
        found.append(tuple(values[keep] for values in fields))
    return tuple(np.concatenate(parts) for parts in zip(*found))


def best_chain(frames: Genes, gaps: np.ndarray | None = None) -> Genes:
    """Returns the genes of the highest sum of scores that overlap only a little.

    Two neighbours may share 60 bases, or 200 on opposite strands, as long as neither lies within
    the other; what they share counts once.

    Args:
        frames: of ``open_frames``.
        gaps: what a gene is worth more, by its distance from the one before it on its strand, see
            ``GeneModel``; nothing if None.
    """
    order = np.lexsort((frames.start, frames.end))
    frames = frames.rows(order)
    low, high = frames.start.tolist(), frames.end.tolist()
    strand, own = frames.strand.tolist(), frames.score.tolist()
    best, per_base = [0.0] * len(low), (frames.score / (frames.end - frames.start)).tolist()
    back = [-1] * len(low)
    bonus = [] if gaps is None else gaps.tolist()
    top: list[int] = []  # the best chain among the first k + 1 genes
    for j in range(len(low)):
        value, before = 0.0, -1
        apart = bisect_right(high, low[j], 0, j) - 1
        if apart >= 0:
            before = top[apart]
            value = best[before]
        i = apart + 1
        if gaps is not None:
            i = bisect_right(high, low[j] - GAPS.stop, 0, j)
        while i < j:
            shared = high[i] - low[j]
            if shared > _OPPOSITE:
                break
            allowed = _SAME if strand[i] == strand[j] else _OPPOSITE
            if shared <= allowed and low[i] < low[j] and high[i] < high[j]:
                less = min(per_base[i], per_base[j]) * max(shared, 0)
                if gaps is not None and strand[i] == strand[j]:
                    less -= bonus[-shared - GAPS.start] if -shared in GAPS else 0.0
                if best[i] - less > value:
                    value, before = best[i] - less, i
            i += 1
        best[j], back[j] = own[j] + value, before
        top.append(j if not top or best[j] > best[top[-1]] else top[-1])
    chosen = []
    at = top[-1] if top else -1
    while at >= 0:
        chosen.append(at)
        at = back[at]
    return frames.rows(np.array(chosen[::-1], np.int64))


def long_frames(bases: np.ndarray, model: GeneModel) -> Genes:
    """Returns frames of at least 500 bases from a start to a stop codon, the longest first, none of
    which shares more than 60 bases with a longer one: genes to begin with.

    Args:
        bases: of ``digits``.
        model: for start and stop codons.
    """
    rows = []
    size = len(bases)
    for strand in (1, -1):
        here = bases if strand > 0 else turned(bases)
        begin = np.flatnonzero(np.isin(words(here, 3), model.starts))
        for frame, stops in enumerate(stops_after(here, model.stops)):
            first = begin[begin % 3 == frame]
            number = np.searchsorted(stops, first)
            first, number = first[number < len(stops)], number[number < len(stops)]
            number, earliest = np.unique(number, return_index=True)
            low, high = first[earliest], stops[number] + 3
            long = high - low >= _LONG
            low, high = low[long], high[long]
            if strand < 0:
                low, high = size - high, size - low
            rows.append(np.stack([low, high, np.full(len(low), strand)], 1))
    places = np.concatenate(rows)
    places = places[np.argsort(places[:, 0] - places[:, 1], kind="stable")]
    taken = np.zeros(size, bool)
    kept = []
    for low, high, strand in places.tolist():
        if int(taken[low:high].sum()) <= _SAME:
            taken[low:high] = True
            kept.append((low, high, strand))
    found = np.array(kept, np.int64).reshape(-1, 3)
    none = np.zeros(len(found), bool)
    return Genes(found[:, 0], found[:, 1], found[:, 2], np.zeros(len(found)), none, none, 0 * none)
