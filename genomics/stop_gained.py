"""Changes that make a stop codon beside ones that change no amino acid: a test of variant scores.

What has learnt reading frames ranks the first below the second.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from longseq.core.errors import DataError
from longseq.genomics.data.annotation import Feature
from longseq.genomics.data.collection import Collection
from longseq.genomics.data.fasta import Genome
from longseq.genomics.data.splits import Interval
from longseq.genomics.data.tokenizer import decode, reverse_complement
from longseq.genomics.data.vcf import Variant

_COMPLEMENT = dict(zip("ACGT", "TGCA"))
_LAST = 10  # codons at a gene's end that are left out: a stop there may matter little


def draw_changes(
    genome: Genome | Collection,
    features: Sequence[Feature],
    regions: Sequence[Interval],
    count: int = 250,
    seed: int = 0,
    code: int = 11,
) -> tuple[list[Variant], np.ndarray]:
    """Draws as many single-base changes of either kind, by place.

    Args:
        genome: the reference.
        features: its genes; coding sequences of whole codons that end in a stop codon are taken.
        regions: where they lie as a whole.
        count: of each kind.
        seed: of the draw.
        code: genetic code of the NCBI.

    Returns:
        The variants, and which of them make a stop codon, bool (2 count,).

    Raises:
        DataError: if there are fewer changes of a kind.
    """
    from Bio.Data.CodonTable import unambiguous_dna_by_id

    table = unambiguous_dna_by_id[code]
    amino = {**table.forward_table, **dict.fromkeys(table.stop_codons, "*")}
    kinds: tuple[list[Variant], list[Variant]] = ([], [])
    for one in features:
        inside = any(
            r.chrom == one.chrom and r.start <= one.start and one.end <= r.end for r in regions
        )
        whole = one.kind == "CDS" and not (one.parts or one.phase or one.size or len(one) % 3)
        if not inside or not whole or one.pseudo:
            continue
        ids = genome.fetch(one.chrom, one.start, one.end)
        text = decode(ids if one.strand != "-" else reverse_complement(ids))
        if amino.get(text[-3:]) != "*":
            continue
        for at in range(3, len(text) - 3 * _LAST, 3):
            codon = text[at : at + 3]
            for i in range(3):
                for base in "ACGT":
                    new = amino.get(codon[:i] + base + codon[i + 1 :])
                    if codon not in amino or base == codon[i] or new not in ("*", amino[codon]):
                        continue
                    place, ref, alt = one.start + at + i, codon[i], base
                    if one.strand == "-":
                        place = one.end - 1 - at - i
                        ref, alt = _COMPLEMENT[ref], _COMPLEMENT[alt]
                    kinds[new == "*"].append(Variant(one.chrom, place, ".", ref, (alt,)))
    if min(map(len, kinds)) < count:
        raise DataError(
            f"{len(kinds[1])} changes make a stop codon and {len(kinds[0])} are synonymous in "
            f"these regions, of each {count} are needed"
        )
    rng = np.random.default_rng(seed)
    drawn = [
        (kind[i], stop)
        for stop, kind in enumerate(kinds)
        for i in rng.choice(len(kind), count, replace=False).tolist()
    ]
    drawn.sort(key=lambda pair: (pair[0].chrom, pair[0].start))
    return [variant for variant, _ in drawn], np.array([bool(stop) for _, stop in drawn])


def separation(stops: np.ndarray, ratios: Sequence[float] | np.ndarray) -> float:
    """Returns the area under the ROC curve: how often a stop has the lower ratio.

    Args:
        stops: which variants make a stop codon, bool (n,).
        ratios: ln p(ALT …) − ln p(REF …), (n,).
    """
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(stops, -np.asarray(ratios)))
