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
from longseq.genomics.data.tokenizer import encode, is_base
from longseq.genomics.data.vcf import Variant
from longseq.genomics.masked_scores import MaskedScorer
from longseq.genomics.variant_scores import WINDOW, Ratio, Scorer, Site, Unit, units

CONTEXT = 8192
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


def site_of(
    variant: Variant, index: int, genome: Genome | Collection, masked: bool = False
) -> tuple[str, Site | None, list[str]]:
    """Returns a variant's record, what can be scored of it, and a reason ("" for none) per allele.

    Args:
        variant: of a VCF file.
        index: of it.
        genome: the reference.
        masked: whether by a masked model, which scores no insertions and deletions.
    """
    if not variant.alts:
        return "", None, ["NO_ALT"]
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
        return chrom, None, [whole] * len(variant.alts)
    letters = [one for one, reason in zip(variant.alts, reasons) if not reason]
    if not letters:
        return chrom, None, reasons
    alleles = tuple(encode(one) for one in (variant.ref, *letters))
    return chrom, Site(index, variant.start, alleles), reasons


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
    work, found = prepare(variants, scorer.genome, options, scorer.masked, scorer.symmetric)
    for unit in work:
        put(found, unit.strand, scorer.score(unit), scorer.symmetric and options.strand == "both")
    return found


def prepare(
    variants: Sequence[Variant],
    genome: Genome | Collection,
    options: Options,
    masked: bool = False,
    symmetric: bool = False,
) -> tuple[list[Unit], list[Scored]]:
    """Returns what is to be done, and a place for each variant's scores, with reasons.

    Args:
        variants: in any order.
        genome: the reference.
        options: how.
        masked: see ``site_of``.
        symmetric: whether the model says the same on both strands: then one is read.
    """
    found, sites = [], []
    for index, variant in enumerate(variants):
        chrom, site, reasons = site_of(variant, index, genome, masked)
        nothing = [_NOTHING] * len(reasons)
        found.append(Scored(nothing, list(nothing), reasons))
        if site is not None:
            sites.append((chrom, site))
    strands = options.strands[0] if symmetric else options.strands
    return units(sites, genome.records, options.context, strands), found


def put(
    found: Sequence[Scored], strand: str, scores: dict[int, list[Ratio]], both: bool = False
) -> None:
    """Puts the scores of a unit into their places.

    Args:
        found: of ``prepare``.
        strand: of the unit.
        scores: of the scorer.
        both: whether they are those of the other strand too.
    """
    for index, values in scores.items():
        sides = {"+": found[index].plus, "-": found[index].minus}
        places = [i for i, reason in enumerate(found[index].reasons) if not reason]
        for into in sides.values() if both else [sides[strand]]:
            for place, value in zip(places, values, strict=True):
                into[place] = value
