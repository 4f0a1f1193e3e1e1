"""Changes that make a stop codon, and synonymous ones: what is drawn is what it is said to be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from Bio.Seq import translate

from longseq.core.errors import DataError
from longseq.core.results import Score
from longseq.genomics.data.annotation import Feature
from longseq.genomics.data.fasta import Genome
from longseq.genomics.data.splits import Interval, Splits
from longseq.genomics.demo import _beside_geco3, _variants
from longseq.genomics.gene_hmm import GeneHMM
from longseq.genomics.stop_gained import draw_changes, separation


@pytest.fixture(scope="module")
def made(make_genes, tmp_path_factory):
    text, places = make_genes(genes=60)
    path = tmp_path_factory.mktemp("made") / "made.fa"
    path.write_text(f">chr\n{text}\n")
    genes = [Feature("chr", a, b, "+" if s > 0 else "-", "CDS") for a, b, s in places]
    return Genome(path), text, genes


@pytest.mark.parametrize("code", [11, 4])
def test_changes_are_of_their_kind(made, code: int) -> None:
    genome, text, genes = made
    region = [Interval("chr", genes[30].start, genes[50].end)]
    variants, stops = draw_changes(genome, genes, region, 100, 3, code)
    assert stops.sum() == 100 and len(variants) == 200
    assert [one.start for one in variants] == sorted(one.start for one in variants)
    assert len({(one.start, one.alts) for one in variants}) == 200
    for variant, stop in zip(variants, stops):
        assert text[variant.start] == variant.ref != variant.alts[0]
        gene = next(one for one in genes if one.start <= variant.start < one.end)
        assert region[0].start <= gene.start and gene.end <= region[0].end
        changed = text[: variant.start] + variant.alts[0] + text[variant.start + 1 :]
        proteins = []
        for whole in (text, changed):
            piece = whole[gene.start : gene.end]
            if gene.strand == "-":
                piece = piece[::-1].translate(str.maketrans("ACGT", "TGCA"))
            proteins.append(translate(piece, table=code))
        assert proteins[0].count("*") == 1
        assert (proteins[1].count("*") == 2) if stop else proteins[0] == proteins[1]
    again, _ = draw_changes(genome, genes, region, 100, 3, code)
    assert again == variants
    other, _ = draw_changes(genome, genes, region, 100, 4, code)
    assert other != variants


def test_too_few_changes_are_an_error(made) -> None:
    genome, _, genes = made
    with pytest.raises(DataError, match="of each 9 are needed"):
        draw_changes(genome, [], [Interval("chr", 0, 1000)], 9)
    joined = [Feature("chr", genes[0].start, genes[0].end, genes[0].strand, "CDS", pseudo=True)]
    with pytest.raises(DataError, match="0 changes make a stop codon and 0 are"):
        draw_changes(genome, joined, [Interval("chr", 0, genes[0].end)], 9)


def test_the_area_counts_pairs() -> None:
    stops = np.array([True, True, False, False])
    assert separation(stops, [-5.0, -1.0, 0.0, -2.0]) == 0.75
    assert separation(stops, [0.0] * 4) == 0.5


def test_the_demo_ranks_variants(made, monkeypatch) -> None:
    genome, _, genes = made
    monkeypatch.setattr("longseq.genomics.demo._CHANGES", 4)
    monkeypatch.setattr("longseq.genomics.demo.SAMPLES.path", lambda name: Path(genome.path))
    first = genes[55].start
    size = genome.records["chr"]
    splits = Splits([Interval("chr", 0, first)], [], [Interval("chr", first, size)])
    said = _variants("made", genome, genes, splits)
    assert "4 that make a stop codon, 4 synonymous" in said and "(both)" in said
    variants, stops = draw_changes(genome, genes, splits.test, 4)
    model = GeneHMM.learn([genome.fetch("chr", 0, first)])
    ratios = [one[0] for one in model.ratios(variants, genome, [[""]] * 8)]
    assert f"{separation(stops, ratios):.3f} (gene HMM" in said
    assert _variants("made", genome, [], splits).startswith("No variants were ranked: 0 changes")


def test_the_mixture_stands_beside_geco3() -> None:
    scores = [Score("gene HMM", 1.88, "baseline"), Score("experts + net", 1.87, "model")]
    (text,) = _beside_geco3(scores, "chlamydia_trachomatis")
    assert "1.9352" in text and "1.8800 (gene HMM)" in text and "1.8700 (experts + net)" in text
    assert _beside_geco3(scores, "tiny") == []
