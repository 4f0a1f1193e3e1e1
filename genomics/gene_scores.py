"""How well found genes agree with an annotation: bases by strand and frame, ends, whole genes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from longseq.genomics.data.annotation import Feature


@dataclass(frozen=True)
class Agreement:
    """Found coding sequences beside annotated ones.

    Attributes:
        found: their number, but for those of which most bases lie in pseudogenes.
        annotated: their number, without pseudogenes.
        shared_bases: positions that are coding on the same strand in the same frame in both.
        found_bases: positions found, counted once for each strand and frame.
        annotated_bases: the same of the annotation.
        ends: genes of both with the same stop codon.
        exact: genes of both with the same stop and start codon.
    """

    found: int
    annotated: int
    shared_bases: int
    found_bases: int
    annotated_bases: int
    ends: int
    exact: int

    def __add__(self, other: Agreement) -> Agreement:
        return Agreement(*(getattr(self, k) + getattr(other, k) for k in self.__dataclass_fields__))

    def numbers(self) -> dict[str, float]:
        """Returns base-level F1, precision and recall; F1, precision and recall of genes by their
        stop codons; and the share of annotated genes that were found with their start too."""
        numbers = {}
        for name, shared, found, wanted in (
            ("base", self.shared_bases, self.found_bases, self.annotated_bases),
            ("gene", self.ends, self.found, self.annotated),
        ):
            numbers[f"{name}_f1"] = 2 * shared / max(found + wanted, 1)
            numbers[f"{name}_precision"] = shared / max(found, 1)
            numbers[f"{name}_recall"] = shared / max(wanted, 1)
        numbers["exact"] = self.exact / max(self.annotated, 1)
        return numbers


def codon_places(one: Feature, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the positions of a coding sequence in reading order, and the frame of each: 0 … 2 on
    the strand +, 3 … 5 on −, by where its codons begin, counted from that strand's begin.

    Args:
        one: of one or more parts; what is counted on beyond ``size`` goes on at 0.
        size: of the record.
    """
    places = np.concatenate([np.arange(low, high) for low, high in one.counted_on()])
    read = np.sort(places)
    if one.strand == "-":
        read = size - 1 - read[::-1]
    frame = (read - (np.arange(len(read)) - (one.phase or 0))) % 3
    if one.strand == "-":
        return (size - 1 - read) % size, frame + 3
    return read % size, frame


def agreement(found: Sequence[Feature], annotated: Sequence[Feature], size: int) -> Agreement:
    """Compares the coding sequences of one record; what lies in pseudogenes counts on neither side.

    Args:
        found: coding sequences.
        annotated: coding sequences; what does not count (``Feature.counts``) is as a pseudogene.
        size: of the record.
    """
    ignored = np.zeros(size, bool)
    for one in annotated:
        if not one.counts:
            ignored[codon_places(one, size)[0]] = True
    wanted = [one for one in annotated if one.counts]
    taken = [one for one in found if ignored[codon_places(one, size)[0]].mean() <= 0.5]
    masks = []
    for genes in (found, wanted):
        mask = np.zeros((6, size), bool)
        for one in genes:
            places, frame = codon_places(one, size)
            mask[frame, places] = True
        masks.append(mask[:, ~ignored])

    def ends(one: Feature) -> tuple[str, int]:
        return one.strand, (one.end if one.strand != "-" else one.start) % size

    def starts(one: Feature) -> tuple[str, int, int]:
        return (*ends(one), (one.start if one.strand != "-" else one.end) % size)

    return Agreement(
        len(taken),
        len(wanted),
        int((masks[0] & masks[1]).sum()),
        int(masks[0].sum()),
        int(masks[1].sum()),
        len({ends(one) for one in taken} & {ends(one) for one in wanted}),
        len({starts(one) for one in taken} & {starts(one) for one in wanted}),
    )
