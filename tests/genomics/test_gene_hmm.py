"""A model of genes scores variants: equal to a sum over all paths, the same on both strands."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from longseq.core.errors import DataError
from longseq.core.shell.cli import main
from longseq.core.tables import read_rows
from longseq.genomics.data.fasta import Genome
from longseq.genomics.data.tokenizer import decode, encode, reverse_complement
from longseq.genomics.data.vcf import Variant
from longseq.genomics.gene_hmm import GeneHMM, gene_model, with_genes
from longseq.genomics.gene_model import codon, digits, smoothed, words
from longseq.genomics.variant_scores import Ratio
from longseq.genomics.variant_sites import Options, Scored, prepare


def random_model(code: int = 11, kinds: int = 1) -> GeneHMM:
    rng = np.random.default_rng(0)
    counts = rng.gamma(0.3, 20.0, (1 + 6 * kinds, 4096))
    return GeneHMM(smoothed(counts), np.full(kinds, 1 / kinds), code)


def by_paths(model: GeneHMM, bases: np.ndarray) -> float:
    """p(bases) read on this strand: every path of states is walked by itself."""
    size = len(bases)
    six = [-1 if t < 5 else words(bases[t - 5 : t + 1], 6)[0] for t in range(size)]
    three = [-1 if t < 3 else words(bases[t - 3 : t], 3)[0] for t in range(size)]

    def from_here(t: int, state: int, p: float) -> float:
        p *= model._emitted[six[t], state]
        if t + 1 == size:
            return p
        nexts = model._moves[three[t + 1], state]
        return sum(from_here(t + 1, i, p * nexts[i]) for i in range(7) if nexts[i])

    return sum(from_here(0, i, model._first[i]) for i in range(7))


@pytest.mark.parametrize("text", ["ACGTGAT", "TTANCA", "C"])
def test_the_forward_algorithm_sums_over_all_paths(text: str) -> None:
    model, bases = random_model(), digits(encode(text))
    sides = [by_paths(model, bases), by_paths(model, digits(reverse_complement(encode(text))))]
    said = model.log_likelihood([bases])[0]
    assert said == pytest.approx(np.log(sides).mean(), abs=1e-10)


@pytest.mark.parametrize("code", [11, 4])
def test_moves_are_probabilities_and_know_the_stop_codons(code: int) -> None:
    moves = random_model(code, 3)._moves
    np.testing.assert_allclose(moves.sum(2), 1, atol=1e-12)
    assert moves[codon("TAA"), 3, 0] > 0.5 > 0.01 > moves[codon("TAC"), 3, 0]
    assert (moves[codon("TGA"), 3, 0] > 0.5) == (code == 11)
    assert (moves[codon("TCA"), 0, 6] > 1e-3) == (code == 11)  # TGA on the other strand


def test_sequences_of_several_lengths_and_no_bases() -> None:
    model = random_model()
    rows = [digits(encode(text)) for text in ("ACGTACGTTA", "AC", "NNNN", "", "ACGTACGTTA")]
    together = model.log_likelihood(rows)
    alone = [model.log_likelihood([row])[0] for row in rows]
    np.testing.assert_allclose(together, alone, atol=1e-12)
    assert together[2] == pytest.approx(4 * np.log(0.25)) and together[3] == 0
    assert model.log_likelihood([]).shape == (0,)


@pytest.fixture(scope="module")
def made(make_genes, tmp_path_factory):
    text, places = make_genes(genes=60)
    path = tmp_path_factory.mktemp("made") / "made.fa"
    path.write_text(f">chr\n{text}\n")
    genome = Genome(path)
    return genome, text, places, GeneHMM.learn([encode(text)])


def ratios(model: GeneHMM, genome: Genome, variants: list[Variant]) -> np.ndarray:
    return np.array([one[0] for one in model.ratios(variants, genome, [[""]] * len(variants))])


def test_stops_and_shifted_frames_cost_more_than_whole_codons(made) -> None:
    genome, text, places, model = made
    stops, whole, shifts = [], [], []
    for low, high, strand in places[10:50]:
        at = low + (high - low) // 6 * 3  # a codon's first base as the genome is written
        three, stop, kept = text[at : at + 3], "TAA", "GAA"
        if strand < 0:
            stop, kept = "TTA", "TTC"
        for alts, into in ((stop, stops), (kept, whole)):
            if alts != three:
                into.append(Variant("chr", at, ".", three, (alts,)))
        shifts.append(Variant("chr", at, ".", text[at], (text[at] + "C",)))
    lost = {k: ratios(model, genome, v) for k, v in zip("swf", (stops, whole, shifts))}
    assert np.median(lost["s"]) < -4 and np.median(lost["f"]) < -4 and np.median(lost["w"]) > -2
    assert (lost["s"][:, None] < lost["w"]).mean() > 0.95


def test_the_other_strand_has_the_same_scores(made, tmp_path: Path) -> None:
    genome, text, _, model = made
    size, sites = len(text), (3, 500, 5000, len(text) - 2)
    path = tmp_path / "back.fa"
    path.write_text(f">chr\n{decode(reverse_complement(encode(text)))}\n")
    there, back = [], []
    for at in sites:
        ref, alts = text[at : at + 2], ("A", "GGC", "NA")
        there.append(Variant("chr", at, ".", ref, alts))
        turn = [decode(reverse_complement(encode(one))) for one in (ref, *alts)]
        back.append(Variant("chr", size - at - 2, ".", turn[0], tuple(turn[1:])))
    why = [["", "", "UNKNOWN_BASE"]] * 4
    here = np.array(model.ratios(there, genome, why))
    turned = np.array(model.ratios(back, Genome(path), why))
    np.testing.assert_allclose(here[:, :2], turned[:, :2], atol=1e-9)
    assert np.isnan(here[:, 2]).all() and np.isfinite(here[:, :2]).all()
    again = GeneHMM.learn([reverse_complement(encode(text))])
    np.testing.assert_allclose(np.array(again.ratios(there, genome, why))[:, :2], here[:, :2])


def test_a_change_has_one_score_however_it_is_written(made) -> None:
    genome, text, places, model = made
    at = (places[20][0] + places[20][1]) // 2
    ref, other = text[at], "A" if text[at] != "A" else "C"
    before, after = text[at - 40 : at], text[at + 1 : at + 9]
    ways = [
        Variant("chr", at, ".", ref, (other,)),
        Variant("chr", at - 40, ".", text[at - 40 : at + 9], (before + other + after,)),
        Variant("chr", at, ".", text[at : at + 2], (ref, other + text[at + 1], "*")),
    ]
    work, found, _ = prepare(ways, genome, Options())
    assert work
    values = [one.genes for one in with_genes(model, ways, found, genome)]
    assert [values[1][0], values[2][1]] == pytest.approx([values[0][0]] * 2, abs=1e-9)
    assert np.isfinite(values[2][0]) and np.isnan(values[2][2])


def test_nothing_to_learn_from_is_an_error(made) -> None:
    genome = made[0]
    assert gene_model(None, genome) is None
    with pytest.raises(DataError, match="open reading frame"):
        GeneHMM.learn([encode("ACGT" * 300)])


def test_variants_have_the_genes_scores_beside_the_networks(made, workdir: Path, capsys) -> None:
    genome, text, places, model = made
    at = (places[20][0] + places[20][1]) // 2
    ref = text[at]
    other = "A" if ref != "A" else "C"
    Path("in.vcf").write_text(
        "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
        f"chr\t{at + 1}\t.\t{ref}\t{other},<DEL>\t.\t.\t.\n"
        f"chr\t{at + 1}\t.\t{other}\t{ref}\t.\t.\t.\n"
    )
    argv = ["genomics", "variants", "in.vcf", "--fasta", str(genome.path), "--window", "20"]
    argv += ["--context", "100"]
    genes = ["--genes_from", f"{genome.path}", "--combine", "low"]
    assert main([*argv, "--out", "out.tsv", *genes]) == 0
    first, symbolic, wrong = read_rows("out.tsv")
    low = min(float(first["llr_forward"]), float(first["llr_reverse"]))
    variant = Variant("chr", at, ".", ref, (other,))
    assert float(first["llr"]) == pytest.approx(low)
    assert float(first["llr_gene"]) == pytest.approx(ratios(model, genome, [variant])[0], abs=1e-6)
    assert float(first["llr_mix"]) == pytest.approx(low + float(first["llr_gene"]), abs=2e-6)
    assert symbolic["llr_gene"] == symbolic["llr_mix"] == wrong["llr_mix"] == ""
    assert main([*argv, "--out", "out.vcf", "--genes_from", "reference"]) == 0
    lines = Path("out.vcf").read_text().splitlines()
    assert sum(line.startswith("##INFO=<ID=LSQ_") for line in lines) == 8
    assert f"LSQ_GENE={first['llr_gene']},." in lines[-2] and "LSQ_MIX=" in lines[-2]
    assert "LSQ_MIX" not in lines[-1] and "REF_MISMATCH" in lines[-1]
    capsys.readouterr()
    assert main([*argv, "--out", "x.tsv", "--code", "4"]) == 2
    assert "--genes_from" in capsys.readouterr().err


def test_strands_are_combined() -> None:
    nan = float("nan")
    none = Ratio(nan, nan)
    plus = [Ratio(-2.0, 1.0), Ratio(-2.0, 0.0), none, none]
    minus = [Ratio(1.0, -4.0), none, Ratio(0.0, -4.0), none]
    one = Scored(plus, minus, [""] * 4, [0.5] * 4)
    np.testing.assert_equal(one.combined(), [-2.0, -2.0, -4.0, nan])
    np.testing.assert_equal(one.combined("low"), [-3.0, -2.0, -4.0, nan])
    np.testing.assert_equal(one.parts(), [(-0.5, -1.5), (-2.0, 0.0), (0.0, -4.0), none])
    np.testing.assert_equal(one.parts("low"), [(-2.0, -4.0), (-2.0, 0.0), (0.0, -4.0), none])
    np.testing.assert_equal(one.weighed("mean", 1.0), one.combined())
    np.testing.assert_equal(one.weighed("low", 0.5), [-5.0, -1.0, -4.0, nan])
    np.testing.assert_equal(one.mixture("low"), [-2.5, -1.5, -3.5, nan])
    np.testing.assert_equal(one.mixture("low", 0.5), [-4.5, -0.5, -3.5, nan])
    np.testing.assert_equal(one._replace(genes=None).mixture(), [nan] * 4)
