"""What of a VCF record can be scored, why the rest cannot, and a place for the scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from longseq.core.checks import check_positive
from longseq.core.errors import ConfigError, DataError
from longseq.genomics.data.collection import Collection
from longseq.genomics.data.fasta import Genome
from longseq.genomics.data.tokenizer import decode, encode, is_base
from longseq.genomics.data.vcf import Variant
from longseq.genomics.masked_scores import MaskedScorer
from longseq.genomics.variant_scores import WINDOW, Ratio, Scorer, Site, Unit, units

CONTEXT = 8192
_STEP = 256  # bases before a site that are looked at together
Combine = Literal["mean", "low"]
REASONS = {
    "REF_MISMATCH": "REF is not what the reference has there",
    "NO_SUCH_RECORD": "CHROM is not in the reference",
    "OUTSIDE": "REF reaches outside the record",
    "UNKNOWN_BASE": "REF or ALT has a letter other than A, C, G and T",
    "SYMBOLIC": "ALT is symbolic or a breakend",
    "SPANNING_DELETION": "ALT is *",
    "NO_ALT": "ALT is .",
    "NOT_SUBSTITUTION": "masked models score substitutions alone",
}


@dataclass(frozen=True)
class Options:
    """How variants are scored.

    Args:
        context: C, see ``variant_scores``; of no effect on masked models.
        window: W, bases after the reference allele; of masked models, bases read around it.
        strand: "both", "+" or "-".
    """

    context: int = CONTEXT
    window: int = WINDOW
    strand: str = "both"

    def __post_init__(self) -> None:
        check_positive("context", self.context)
        check_positive("window", self.window)
        if self.strand not in ("both", "+", "-"):
            raise ConfigError(f"strand {self.strand!r} must be both, + or -")

    @property
    def strands(self) -> str:
        return "+-" if self.strand == "both" else self.strand


def options_for(scorer: Scorer | MaskedScorer, context: int | None, strand: str) -> Options:
    """Returns the options of a scorer.

    Args:
        scorer: the model.
        context: C; None for 8192.
        strand: "both", "+" or "-".

    Raises:
        ConfigError: for a context of a masked model, or what ``Options`` does not take.
    """
    if scorer.masked and context is not None:
        raise ConfigError(
            "context: a masked model reads its window, with the site in the middle; leave it out"
        )
    return Options(CONTEXT if context is None else context, scorer.window, strand)


_NOTHING = Ratio(float("nan"), float("nan"))


class Scored(NamedTuple):
    """The scores of one variant's alternative alleles; NaN where an allele has a reason instead.

    Attributes:
        plus: ratios of the strand +, in their two parts.
        minus: those of the strand -.
        reasons: why an allele was not scored, "" if it was.
        genes: under a hidden Markov model of genes, see ``GeneHMM.ratios``; None without one.
    """

    plus: list[Ratio]
    minus: list[Ratio]
    reasons: list[str]
    genes: list[float] | None = None

    @property
    def forward(self) -> list[float]:
        """The log-likelihood ratios of the strand +."""
        return [one.whole for one in self.plus]

    @property
    def reverse(self) -> list[float]:
        """The log-likelihood ratios of the strand -."""
        return [one.whole for one in self.minus]

    def mean(self) -> list[float]:
        """Returns the mean over the strands that were read."""
        return self.combined()

    def combined(self, how: Combine = "mean") -> list[float]:
        """Returns the mean over the strands that were read, or the lower of them ("low")."""
        return [_combined(a, b, how) for a, b in zip(self.forward, self.reverse)]

    def parts(self, how: Combine = "mean") -> list[Ratio]:
        """Returns both parts of the ratios, each the mean over the strands or the lower of them."""
        return [
            Ratio(_combined(a.site, b.site, how), _combined(a.after, b.after, how))
            for a, b in zip(self.plus, self.minus)
        ]

    def weighed(self, how: Combine, weight: float) -> list[float]:
        """Returns both parts of the ratios added, the site's own with a weight.

        Args:
            how: see ``parts``.
            weight: of the site's own part; 0.25 tells broken reading frames better than 1.
        """
        return [weight * one.site + one.after for one in self.parts(how)]

    def mixture(self, how: Combine = "mean", weight: float | None = None) -> list[float]:
        """Returns the model's ratios (see ``combined``; with a weight, ``weighed``) and those of
        the genes, added; without genes, all are NaN."""
        genes = self.genes or [float("nan")] * len(self.reasons)
        own = self.combined(how) if weight is None else self.weighed(how, weight)
        return [a + b for a, b in zip(own, genes)]


def _combined(a: float, b: float, how: Combine) -> float:
    """Returns the mean of two numbers, or the lower; the other where one is NaN."""
    if how == "low":
        return float(np.fmin(a, b))
    return b if np.isnan(a) else a if np.isnan(b) else (a + b) / 2


class Place(NamedTuple):
    """Alleles that change the same bases of the reference.

    Attributes:
        variant: its index.
        numbers: of the alternative alleles, from 0.
    """

    variant: int
    numbers: tuple[int, ...]


def without_shared(ref: str, alt: str) -> tuple[int, str, str]:
    """Returns how many bases two alleles begin with alike, and what is left of both when these and
    what they end with alike are left out, the end first; equal alleles stay as they are.

    Args:
        ref: of the reference.
        alt: the other.
    """
    if ref == alt:
        return 0, ref, alt
    least, first, last = min(len(ref), len(alt)), 0, 0
    while last < least and ref[-1 - last] == alt[-1 - last]:
        last += 1
    while first < least - last and ref[first] == alt[first]:
        first += 1
    return first, ref[first : len(ref) - last], alt[first : len(alt) - last]


def leftmost(
    start: int, ref: str, alt: str, chrom: str, genome: Genome | Collection
) -> tuple[int, str, str]:
    """Returns an insertion or deletion at the first place at which it gives the same sequence, as
    `bcftools norm` does (Tan et al. 2015, Bioinformatics 31, 2202); others as they are.

    Args:
        start: first position, 0-based.
        ref: what is deleted, or "".
        alt: what is inserted, or "".
        chrom: the record.
        genome: the reference.
    """
    held = ref or alt
    while start > 0 and not (ref and alt):
        before = decode(genome.fetch(chrom, max(0, start - _STEP), start))
        turns = 0
        while turns < len(before) and before[-1 - turns] == held[-1 - turns % len(held)]:
            turns += 1
        start -= turns
        turned = -turns % len(held)
        held = held[turned:] + held[:turned]
        if turns < len(before):
            break
    if ref and alt:
        return start, ref, alt
    return (start, held, "") if ref else (start, "", held)


def shortest(
    variant: Variant, number: int, chrom: str, genome: Genome | Collection
) -> tuple[int, str, str]:
    """Returns position, REF and ALT of one allele as they are scored: without shared bases, an
    insertion or deletion at its first place.

    Args:
        variant: with REF as the reference has it.
        number: of the alternative allele, from 0, of letters.
        chrom: its record.
        genome: the reference.
    """
    shared, ref, alt = without_shared(variant.ref, variant.alts[number])
    return leftmost(variant.start + shared, ref, alt, chrom, genome)


def sites_of(
    variant: Variant, genome: Genome | Collection, masked: bool = False
) -> tuple[str, list[tuple[tuple[int, ...], int, tuple[str, ...]]], list[str]]:
    """Returns a variant's record, what can be scored of it, and a reason ("" for none) per allele.

    An allele is scored without what it shares with REF, and an insertion or deletion at the first
    place where it gives the same sequence: a change has one score, however it is written and
    whatever stands beside it in its record.

    Args:
        variant: of a VCF file.
        genome: the reference.
        masked: whether by a masked model, which scores no insertions and deletions.

    Returns:
        The record; for alleles that change the same bases their numbers, the position of the first
        such base, and its alleles, that of the reference first; the reasons.
    """
    if not variant.alts:
        return "", [], ["NO_ALT"]
    kinds = [_reason(one) for one in (variant.ref, *variant.alts)]
    reasons = kinds[1:]
    if masked:
        reasons = [
            reason or ("" if len(one) == len(variant.ref) else "NOT_SUBSTITUTION")
            for one, reason in zip(variant.alts, reasons)
        ]
    whole, chrom = kinds[0], ""
    try:
        chrom = genome.resolve(variant.chrom)
    except DataError:
        whole = "NO_SUCH_RECORD"
    else:
        end = variant.start + len(variant.ref)
        if variant.start < 0 or end > genome.records[chrom]:
            whole = "OUTSIDE"
        elif not whole:
            there = genome.fetch(chrom, variant.start, end)
            if not np.array_equal(there, encode(variant.ref)):
                whole = "REF_MISMATCH" if is_base(there).all() else "UNKNOWN_BASE"
    if whole:
        return chrom, [], [whole] * len(variant.alts)
    groups: dict[tuple[int, str], list[tuple[int, str]]] = {}
    for i, reason in enumerate(reasons):
        if not reason:
            start, ref, rest = shortest(variant, i, chrom, genome)
            groups.setdefault((start, ref), []).append((i, rest))
    sites = [
        (tuple(i for i, _ in own), start, (ref, *(alt for _, alt in own)))
        for (start, ref), own in groups.items()
    ]
    return chrom, sites, reasons


def _reason(allele: str) -> str:
    if allele == "*":
        return "SPANNING_DELETION"
    if not allele.isalpha():
        return "SYMBOLIC"
    return "" if set(allele) <= set("ACGT") else "UNKNOWN_BASE"


def score_variants(
    variants: Sequence[Variant],
    scorer: Scorer | MaskedScorer,
    options: Options = Options(),
) -> list[Scored]:
    """Scores variants in one process.

    Args:
        variants: in any order.
        scorer: the model with its reference; a causal one's window is that of the options.
        options: how.

    Returns:
        Scores in the order of the variants.
    """
    both = scorer.symmetric and options.strand == "both"
    work, found, places = prepare(variants, scorer.genome, options, scorer.masked, scorer.symmetric)
    for unit in work:
        put(found, places, unit.strand, scorer.score(unit), both)
    return found


def prepare(
    variants: Sequence[Variant],
    genome: Genome | Collection,
    options: Options,
    masked: bool = False,
    symmetric: bool = False,
) -> tuple[list[Unit], list[Scored], list[Place]]:
    """Returns what is to be done, a place for each variant's scores, with reasons, and which
    alleles the sites of the work are, by their indices.

    Args:
        variants: in any order.
        genome: the reference.
        options: how.
        masked: see ``sites_of``.
        symmetric: whether the model says the same on both strands: then one is read.
    """
    found: list[Scored] = []
    places: list[Place] = []
    sites = []
    for index, variant in enumerate(variants):
        chrom, own, reasons = sites_of(variant, genome, masked)
        nothing = [_NOTHING] * len(reasons)
        found.append(Scored(nothing, list(nothing), reasons))
        for numbers, start, alleles in own:
            sites.append((chrom, Site(len(places), start, tuple(map(encode, alleles)))))
            places.append(Place(index, numbers))
    strands = options.strands[0] if symmetric else options.strands
    return units(sites, genome.records, options.context, strands), found, places


def put(
    found: Sequence[Scored],
    places: Sequence[Place],
    strand: str,
    scores: dict[int, list[Ratio]],
    both: bool = False,
) -> None:
    """Puts the scores of a unit into their places.

    Args:
        found: of ``prepare``.
        places: of ``prepare``.
        strand: of the unit.
        scores: of the scorer.
        both: whether they are those of the other strand too.
    """
    for index, values in scores.items():
        variant, numbers = places[index]
        sides = {"+": found[variant].plus, "-": found[variant].minus}
        for into in sides.values() if both else [sides[strand]]:
            for number, value in zip(numbers, values, strict=True):
                into[number] = value
