"""The scores of variants as they are written: INFO fields of VCF, columns of a table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from longseq.core.checks import check_number
from longseq.core.errors import ConfigError
from longseq.genomics.data.vcf import Variant, open_output, read_lines, with_header, with_info
from longseq.genomics.variant_sites import REASONS, Combine, Scored

_RATIO = "ln p(ALT and what follows) - ln p(REF and what follows)"
COMBINED: dict[Combine, str] = {"mean": "mean", "low": "lower"}
_MASKED_RATIO = "ln p(ALT) - ln p(REF) at the hidden site, given both sides"
INFO = {
    "LSQ_LLR": "{ratio}, the {combine} of the strands",
    "LSQ_FWD": "{ratio}, forward strand",
    "LSQ_REV": "{ratio}, reverse strand",
    "LSQ_SITE": "ln p(ALT) - ln p(REF), the part of the alleles themselves, the {combine} of the "
    "strands",
    "LSQ_AFTER": "The part of what follows: ln p(after ALT) - ln p(after REF), the {combine} of "
    "the strands",
    "LSQ_SCORE": "{weight} LSQ_SITE + LSQ_AFTER",
    "LSQ_SKIP": "Why an ALT was not scored, . if it was: " + ", ".join(REASONS),
}
GENE_INFO = {
    "LSQ_GENE": "ln p(ALT and what lies around it) - ln p(REF and the same) under a hidden Markov "
    "model of genes",
    "LSQ_MIX": "{own} + LSQ_GENE",
}
_PARTS = ("LSQ_SITE", "LSQ_AFTER")
COLUMNS = {
    "chrom": "",
    "pos": "d",
    "id": "",
    "ref": "",
    "alt": "",
    "llr": ".6f",
    "llr_forward": ".6f",
    "llr_reverse": ".6f",
    "llr_site": ".6f",
    "llr_after": ".6f",
    "score": ".6f",
    "llr_gene": ".6f",
    "llr_mix": ".6f",
    "reason": "",
}
_COLUMN = {
    "LSQ_SITE": "llr_site",
    "LSQ_AFTER": "llr_after",
    "LSQ_SCORE": "score",
    "LSQ_GENE": "llr_gene",
    "LSQ_MIX": "llr_mix",
}  # the columns that are not always there


def _numbers(values: Sequence[float]) -> str:
    if all(np.isnan(value) for value in values):
        return ""
    return ",".join("." if np.isnan(value) else f"{value:.6f}" for value in values)


@dataclass(frozen=True)
class Fields:
    """Which scores are written.

    Args:
        masked: whether a masked model scores, whose ratios have one part alone.
        combine: how the strands' ratios become one.
        weight: of the site's own part in the score; None for no score.
        genes: whether a model of genes scores too.

    Raises:
        ConfigError: for a weight below 0, or of a masked model.
    """

    masked: bool = False
    combine: Combine = "mean"
    weight: float | None = None
    genes: bool = False

    def __post_init__(self) -> None:
        if self.weight is None:
            return
        if check_number("site_weight", self.weight) < 0:
            raise ConfigError(f"site_weight must not be below 0, got {self.weight:g}")
        if self.masked:
            raise ConfigError("site_weight: a masked model scores the site alone; leave it out")

    def names(self) -> list[str]:
        """Returns the INFO fields, by how they are found in ``values``."""
        left_out = set() if not self.masked else set(_PARTS)
        left_out |= set() if self.weight is not None else {"LSQ_SCORE"}
        return [name for name in (INFO | GENE_INFO if self.genes else INFO) if name not in left_out]

    def values(self, scored: Scored) -> dict[str, list[float]]:
        """Returns the numbers of every field of a variant's alleles."""
        parts = scored.parts(self.combine)
        found = {
            "LSQ_LLR": scored.combined(self.combine),
            "LSQ_FWD": scored.forward,
            "LSQ_REV": scored.reverse,
            "LSQ_SITE": [one.site for one in parts],
            "LSQ_AFTER": [one.after for one in parts],
        }
        if self.weight is not None:
            found["LSQ_SCORE"] = scored.weighed(self.combine, self.weight)
        if scored.genes is not None:
            found["LSQ_GENE"] = scored.genes
            found["LSQ_MIX"] = scored.mixture(self.combine, self.weight)
        names = self.names()
        return {name: numbers for name, numbers in found.items() if name in names}

    def header(self) -> dict[str, str]:
        """Returns the header's description of the INFO fields."""
        values = {
            "ratio": _MASKED_RATIO if self.masked else _RATIO,
            "combine": COMBINED[self.combine],
            "weight": f"{self.weight:g}" if self.weight is not None else "",
            "own": "LSQ_LLR" if self.weight is None else "LSQ_SCORE",
        }
        texts = INFO | GENE_INFO
        kinds = dict.fromkeys(texts, "A,Type=Float") | {"LSQ_SKIP": ".,Type=String"}
        return {
            name: f'Number={kinds[name]},Description="{texts[name].format(**values)}"'
            for name in self.names()
        }

    def columns(self) -> dict[str, str]:
        """Returns the columns of a table."""
        left_out = {_COLUMN[name] for name in _COLUMN if name not in self.names()}
        return {name: how for name, how in COLUMNS.items() if name not in left_out}


def info(scored: Scored, fields: Fields = Fields()) -> dict[str, str]:
    """Returns the INFO fields of a variant."""
    reasons = scored.reasons if any(scored.reasons) else []
    found = {name: _numbers(values) for name, values in fields.values(scored).items()}
    return found | {"LSQ_SKIP": ",".join(reason or "." for reason in reasons)}


def write_vcf(
    source: str | Path, out: str | Path, found: Sequence[Scored], note: str, fields: Fields
) -> None:
    """Writes a VCF file again with the scores: the same lines in the same order.

    Fields of an earlier run are taken away, those too that this one does not write: they would
    stand beside scores that they do not belong to.
    """
    header: list[str] = []
    headed = False
    scores = iter(found)
    ours = INFO | GENE_INFO
    with open_output(out) as write:
        for _, line in read_lines(source):
            if line.startswith("#") and headed:  # a comment between records
                write(line)
            elif line.startswith("#"):
                header.append(line)
                headed = line.startswith("#CHROM")
                if headed:
                    for one in with_header(header, fields.header(), note, ours):
                        write(one)
            elif line:
                write(with_info(line, info(next(scores), fields), ours))


def table_rows(
    variants: Sequence[Variant], found: Sequence[Scored], fields: Fields
) -> Iterator[list[Any]]:
    """Yields a row per alternative allele; the position counts from 1, as in VCF."""
    for variant, scored in zip(variants, found):
        for i, numbers in enumerate(zip(*fields.values(scored).values())):
            yield [
                variant.chrom,
                variant.start + 1,
                variant.name,
                variant.ref,
                variant.alts[i] if variant.alts else ".",
                *(None if np.isnan(number) else number for number in numbers),
                scored.reasons[i],
            ]
