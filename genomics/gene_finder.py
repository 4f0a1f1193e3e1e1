"""Finds the genes of bacteria; learns from the genome itself, or from annotated ones."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import numpy as np

from longseq.core.errors import DataError
from longseq.genomics.data.annotation import Feature
from longseq.genomics.gene_model import UNKNOWN, GeneModel, Genes, digits
from longseq.genomics.open_frames import best_chain, long_frames, open_frames

PASSES = 3
_GAP = 10  # unknown bases that end all reading frames: a gap between contigs
_TURN = 20_000  # bases that are read again behind the origin of a circle
_FEW = 50  # genes from which little is learnt


class GeneFinder:
    """Finds protein-coding genes, see ``GeneModel`` for what they are told by.

    Args:
        code: genetic code of the NCBI: 11, 4 or 25.
        closed: whether no gene goes beyond the end of a record or into a gap.
    """

    def __init__(self, code: int = 11, closed: bool = False) -> None:
        self.model = GeneModel(code)
        self.closed = closed

    def learn(
        self, sequences: Sequence[np.ndarray], progress: Callable[[int], object] | None = None
    ) -> int:
        """Learns from sequences without annotation: long reading frames first, then three times
        what was found with what was known before.

        Args:
            sequences: token ids (n,) each.
            progress: called with the bases read, again and again.

        Returns:
            The number of genes that were learnt from.

        Raises:
            DataError: if there is no long reading frame.
        """
        parts = [bases for ids in sequences for _, bases in contigs(digits(ids))]
        found = [long_frames(bases, self.model) for bases in parts]
        if not any(map(len, found)):
            raise DataError(
                "no open reading frame of at least 500 bases to learn genes from",
                hint="learn from a longer genome of a related organism",
            )
        for number in range(PASSES + 1):
            if number:
                gaps = self.model.gaps if number > 1 else None
                found = []
                for bases in parts:
                    found.append(best_chain(open_frames(bases, self.model, self.closed), gaps))
                    if progress is not None:
                        progress(len(bases))
            if not any(map(len, found)):
                raise DataError("no reading frame looks like a gene")
            self.model.learn(list(zip(parts, found)))
        return self._counted(found)

    def learn_annotated(
        self, genomes: Sequence[tuple[np.ndarray, Sequence[Feature]]], progress: object = None
    ) -> int:
        """Learns from annotated sequences.

        Args:
            genomes: token ids (n,) of a record, and the coding sequences on it; those that are not
                working genes, are joined of parts, span the origin of a circle, or are not of whole
                codons do not count.
            progress: not called.

        Returns:
            The number of genes.

        Raises:
            DataError: if there is none.
        """
        records = []
        for ids, features in genomes:
            rows = [
                (one.start, one.end, 1 if one.strand == "+" else -1)
                for one in features
                if one.kind == "CDS"
                and one.strand in "+-"
                and not one.pseudo
                and not one.parts
                and not one.size
                and not one.phase
                and len(one) % 3 == 0
            ]
            places = np.array(rows, np.int64).reshape(-1, 3)
            none = np.zeros(len(places), bool)
            zero = np.zeros(len(places))
            genes = Genes(*places.T, zero, none, none, none.astype(np.int64))
            records.append((digits(ids), genes))
        if not any(len(genes) for _, genes in records):
            raise DataError("the annotation has no CDS of whole codons to learn genes from")
        for _ in range(PASSES + 1):  # for the kinds of genes to settle
            self.model.learn(records)
        return self._counted([genes for _, genes in records])

    def find(self, ids: np.ndarray, circular: bool = False) -> Genes:
        """Returns the genes of a sequence, in order.

        Args:
            ids: token ids (n,).
            circular: whether its end is followed by its begin; a gene across the origin then ends
                beyond n.
        """
        size = len(ids)
        turn = min(_TURN, size) // 2 * 2 if circular else 0
        bases = digits(np.concatenate([ids, ids[:turn]]))
        parts = []
        for start, part in contigs(bases):
            self.prepare(start, len(part))
            genes = best_chain(open_frames(part, self.model, self.closed), self.model.gaps)
            parts.append(_moved(genes, start))
        found = Genes(*(np.concatenate([getattr(g, k) for g in parts]) for k in _FIELDS))
        if circular:
            # What begins in the first half of the turn is taken from its end, where all that lies
            # before it is known.
            own = (found.start >= turn // 2) & (found.start < size + turn // 2)
            own &= found.end - found.start <= size
            found = found.rows(own)
            found = _moved(found, np.where(found.start >= size, -size, 0))
        return found.rows(np.lexsort((found.end, found.start)))

    def prepare(self, start: int, size: int) -> None:
        """Called before each part of a record between gaps; nothing to do here.

        Args:
            start: of the part; what lies beyond the record's end goes on at its begin.
            size: of the part.
        """

    @staticmethod
    def _counted(found: Sequence[Genes]) -> int:
        count = sum(map(len, found))
        if count < _FEW:
            warnings.warn(
                f"The longseq gene finder has learnt from {count} genes only: give a longer genome "
                "of a related organism to learn from",
                stacklevel=3,
            )
        return count


_FIELDS = tuple(Genes.__dataclass_fields__)


def _moved(genes: Genes, by: int | np.ndarray) -> Genes:
    """Returns genes with their places moved."""
    values = {name: getattr(genes, name) for name in _FIELDS}
    return Genes(**{**values, "start": genes.start + by, "end": genes.end + by})


def contigs(bases: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """Returns the parts of a record between runs of ten or more unknown bases, with their places.

    Args:
        bases: of ``digits`` (n,).
    """
    edges = np.flatnonzero(np.diff(np.concatenate([[0], bases == UNKNOWN, [0]]).astype(np.int8)))
    found, low = [], 0
    for begin, end in edges.reshape(-1, 2).tolist():
        if end - begin >= _GAP:
            found.append((low, bases[low:begin]))
            low = end
    found.append((low, bases[low:]))
    return [(start, part) for start, part in found if len(part)] or [(0, bases[:0])]
