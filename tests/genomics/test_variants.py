"""Variants: equal to two passes, whatever their neighbours; the VCF as it was, but for INFO."""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from longseq.core.errors import DataError
from longseq.core.shell.cli import main
from longseq.core.tables import read_rows
from longseq.genomics.data.fasta import Genome
from longseq.genomics.data.tokenizer import decode, encode, is_base, reverse_complement
from longseq.genomics.data.vcf import Variant, read_variants
from longseq.genomics.masked_scores import MaskedScorer
from longseq.genomics.models.language_model import DNALanguageModel
from longseq.genomics.models.masked_model import MaskedDNAModel
from longseq.genomics.scorers import load_scorer
from longseq.genomics.streaming import Stream, reach
from longseq.genomics.variant_scores import Scorer
from longseq.genomics.variant_sites import (
    Options,
    leftmost,
    prepare,
    score_variants,
    without_shared,
)

MIXERS = {
    "mamba": ({"d_state": 4}, 6),
    "hyena": ({"l_max": 64, "filter_order": 8}, 0),
    "long_conv": ({"l_max": 32}, 0),
    "attention": ({"n_heads": 2}, 0),
}
C, W = 100, 24


@pytest.fixture
def genome(tmp_path: Path) -> Genome:
    rng = np.random.default_rng(0)
    path = tmp_path / "ref.fa"
    texts = ["".join(rng.choice(list("ACGT"), n).tolist()) for n in (730, 90)]
    texts[0] = texts[0][:400] + "N" * 20 + texts[0][420:]
    path.write_text("".join(f">chr{i + 1}\n{text}\n" for i, text in enumerate(texts)))
    return Genome(path)


def scorer(genome: Genome, mixer: str = "mamba") -> Scorer:
    torch.manual_seed(0)
    kwargs, kmer = MIXERS[mixer]
    model = DNALanguageModel(8, 2, mixer, kwargs, kmer=kmer).double().eval()
    return Scorer(model, genome, W, reach(model, 64))


def variants(genome: Genome) -> list[Variant]:
    """SNVs, insertions, deletions, several alleles; at ends of blocks and of records; unsorted."""
    found = []
    for chrom, start, length, alts in [
        ("chr1", 300, 1, ["A", "C", "G", "T"]),
        ("chr1", 0, 1, ["A", "C"]),
        ("chr1", 99, 1, ["AC"]),
        ("chr1", 100, 4, ["G"]),
        ("chr1", 101, 1, ["T", "TTTTT", "G"]),
        ("chr1", 729, 1, ["A", "C"]),
        ("chr1", 700, 30, ["A"]),
        ("chr1", 390, 1, ["G", "C"]),  # the window reaches over the N
        ("2", 45, 2, ["CA"]),
    ]:
        ref = decode(genome.fetch(chrom, start, start + length))
        found.append(Variant(chrom, start, ".", ref, tuple(a for a in alts if a != ref)))
    return found


def passes(scorer: Scorer, chrom: str, strand: str, start: int, ref: str, alt: str) -> list[float]:
    """ln p(ALT …) - ln p(REF …) by two passes from the first base of the context to the last: of
    the alleles, of what follows, and of both."""
    size = scorer.genome.records[scorer.genome.resolve(chrom)]
    if strand == "-":
        start, ref, alt = (
            size - start - len(ref),
            *(decode(reverse_complement(encode(one))) for one in (ref, alt)),
        )
    whole = decode(scorer.genome.fetch(chrom, 0, size, strand))
    begin, end = max(0, (start // C - 1) * C), start + len(ref)
    totals = []
    for allele in (ref, alt):
        ids = encode(whole[begin:start] + allele + whole[end : end + W])
        tokens = torch.from_numpy(ids.astype(np.int64))[None]
        with torch.no_grad():
            logp = Stream(scorer.model, scorer.reach).read(tokens)[0].float().log_softmax(-1)
        logp = torch.cat([torch.full_like(logp[:1], math.log(0.25)), logp[:-1]])
        scores = logp.gather(1, tokens[0, :, None])[:, 0].double().numpy()
        own = np.where(is_base(ids), scores, 0)[start - begin :]
        totals.append([own[: len(allele)].sum(), own[len(allele) :].sum(), own.sum()])
    return [float(b - a) for a, b in zip(*totals)]


@pytest.mark.parametrize("mixer", MIXERS)
def test_scores_are_those_of_two_passes(mixer: str, genome: Genome) -> None:
    given, by = variants(genome), scorer(genome, mixer)
    found = score_variants(given, by, Options(C, W))
    for variant, scored in zip(given, found, strict=True):
        assert not any(scored.reasons)
        for i, alt in enumerate(variant.alts):
            for strand, values in (("+", scored.plus), ("-", scored.minus)):
                shared, ref, rest = without_shared(variant.ref, alt)
                chrom = genome.resolve(variant.chrom)
                where = (chrom, strand, *leftmost(variant.start + shared, ref, rest, chrom, genome))
                got = [*values[i], values[i].whole]
                assert got == pytest.approx(passes(by, *where), abs=1e-5), where
            assert scored.mean()[i] == (scored.forward[i] + scored.reverse[i]) / 2


@pytest.mark.parametrize("masked", [False, True])
def test_a_change_has_one_score_however_it_is_written(masked: bool, genome: Genome) -> None:
    text = decode(genome.fetch("chr1", 0, 730))
    other = "A" if text[300] != "A" else "C"
    torch.manual_seed(0)
    by: Scorer | MaskedScorer = scorer(genome)
    if masked:
        model = MaskedDNAModel(8, 1, mixer_kwargs={"mixer": "mamba"}).double().eval()
        by = MaskedScorer(model, genome, 21)
    ways = [
        Variant("chr1", 300, ".", text[300], (other,)),
        Variant("chr1", 300, ".", text[300:304], (other + text[301:304],)),
        Variant("chr1", 296, ".", text[296:303], (text[296:300] + other + text[301:303],)),
        Variant("chr1", 300, ".", text[300:302], (text[300], other + text[301], "*")),
        Variant("chr1", 299, ".", text[299:301], (text[299] + "GG" + text[300], text[299] + other)),
    ]
    numbers = [0, 0, 0, 1, 1]
    found = score_variants(ways, by, Options(C, W))
    rows = [
        [*one.plus[i], *one.minus[i], *one.parts()[i], one.weighed("low", 0.25)[i]]
        for one, i in zip(found, numbers)
    ]
    assert np.isfinite(rows).all()
    np.testing.assert_allclose(rows, np.tile(rows[0], (5, 1)), atol=1e-5)


def test_an_indel_has_one_score_wherever_it_is_put(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    before, after = ("".join(rng.choice(list("ACGT"), n).tolist()) for n in (300, 200))
    text = before[:-1] + "C" + "AG" * 200 + "T" + after  # longer than what is looked at at once
    path = tmp_path / "repeat.fa"
    path.write_text(f">r\n{text}\n>s\n{'AG' * 20}T\n")
    genome = Genome(path)
    deleted = [Variant("r", at, ".", text[at : at + 3], (text[at],)) for at in (299, 300, 511, 697)]
    inserted = [
        Variant("r", at, ".", text[at], (text[at] + text[at - 1 : at + 1] * 2,))
        for at in (301, 302, 600)
    ]
    inserted.append(Variant("r", 299, ".", "C", ("CAGAG",)))
    for ways in (deleted, inserted):
        found = [
            one.plus + one.minus for one in score_variants(ways, scorer(genome), Options(C, W))
        ]
        assert np.isfinite(found).all()
        np.testing.assert_allclose(found, np.tile(found[-1], (len(found), 1, 1)), atol=1e-5)
    assert leftmost(30, "", "AG", "s", genome) == (0, "", "AG")
    assert leftmost(31, "G", "", "s", genome) == (31, "G", "")
    assert leftmost(31, "GA", "", "s", genome) == (0, "AG", "")
    assert leftmost(31, "G", "C", "s", genome) == (31, "G", "C")


def test_what_alleles_share() -> None:
    assert without_shared("AG", "GG") == (0, "A", "G")
    assert without_shared("CAA", "CA") == (1, "A", "")
    assert without_shared("T", "TA") == (1, "", "A")
    assert without_shared("ACGT", "ATGT") == (1, "C", "T")
    assert without_shared("A", "A") == (0, "A", "A")


def test_neighbours_change_nothing_and_prefixes_are_shared(genome: Genome) -> None:
    given, by = variants(genome), scorer(genome)
    together = score_variants(given, by, Options(C, W))
    alone = [score_variants([one], by, Options(C, W))[0] for one in given]
    for a, b in zip(together, alone):
        np.testing.assert_allclose(a.mean(), b.mean(), atol=1e-6)
    work, *_ = prepare(given, genome, Options(C, W, "+"))
    begins = [("chr1", 0), ("chr1", 200), ("chr1", 600), ("chr2", 0)]
    assert {(unit.chrom, unit.begin) for unit in work} == set(begins)


HEADER = """##fileformat=VCFv4.2
##source=somebody's = odd; header
##INFO=<ID=AF,Number=A,Type=Float,Description="frequency">
##contig=<ID=1>
#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\tNA1
"""


def vcf(genome: Genome) -> str:
    base = decode(genome.fetch("chr1", 299, 300))
    other = "A" if base != "A" else "C"
    rows = [
        ("1", 300, "rs1", base, other, "AF=0.1;DB"),
        ("1", 300, "rs2", other, base, "."),
        ("1", 300, ".", base, "<DEL>", "END=400"),
        ("1", 300, ".", base, f"{other},*", "AF=0.1,0.2"),
        ("1", 730, ".", decode(genome.fetch("chr1", 729, 730)) + "A", "A", "."),
        ("1", 405, ".", "N", "A", "."),
        ("7", 5, ".", "A", "G", "."),
        ("1", 10, ".", decode(genome.fetch("chr1", 9, 10)), ".", "."),
        ("1", 300, ".", base, f"{base}[1:5[", "."),
        ("1", 300, ".", base.lower(), other.lower(), "LSQ_LLR=7;X=1"),
        ("1", 0, ".", "A", "C", "."),
        ("1", 300, ".", base, "R", "."),
    ]
    lines = [f"{c}\t{p}\t{n}\t{r}\t{a}\t50\tPASS\t{i}\tGT:DP\t0|1:9" for c, p, n, r, a, i in rows]
    return HEADER + "\n".join(lines) + "\n"


REASONS = ["", "REF_MISMATCH", "SYMBOLIC", ".,SPANNING_DELETION", "OUTSIDE", "UNKNOWN_BASE"]
REASONS += ["NO_SUCH_RECORD", "NO_ALT", "SYMBOLIC", "", "OUTSIDE", "UNKNOWN_BASE"]


@pytest.fixture
def checkpoint(workdir: Path, genome: Genome) -> str:
    small = ["--model.d_model=8", "--model.n_layers=1", "--data.length=32", "--progress", "lines"]
    steps = ["--trainer.max_steps=1", "--trainer.val_check_interval=1", "--name", "m"]
    assert main(["genomics", "fit", "--data.fasta", str(genome.path), *small, *steps]) == 0
    return "outputs/genomics/m/version_0/checkpoints/best.ckpt"


def info(line: str) -> dict[str, str]:
    return dict(one.partition("=")[::2] for one in line.split("\t")[7].split(";"))


@pytest.mark.parametrize("suffix", [".vcf", ".vcf.gz"])
def test_vcf_in_vcf_out(suffix: str, checkpoint: str, genome: Genome, capsys) -> None:
    text = vcf(genome)
    source = Path("in.vcf.gz")
    source.write_bytes(gzip.compress(text.encode()))
    argv = ["genomics", "variants", str(source), "--fasta", str(genome.path)]
    argv += ["--ckpt_path", checkpoint, "--context", str(C), "--window", str(W)]
    assert main([*argv, "--out", f"out{suffix}"]) == 0
    said = capsys.readouterr().out
    assert "12 records, 3 of 13 alleles scored" in said and "2 not scored: OUTSIDE" in said
    raw = Path(f"out{suffix}").read_bytes()
    lines = (gzip.decompress(raw) if suffix == ".vcf.gz" else raw).decode().splitlines()
    before = text.splitlines()
    added = [one for one in lines if one.startswith("##") and one not in before]
    assert [one.startswith("##INFO=<ID=LSQ_") for one in added] == [True] * 6 + [False]
    assert [one for one in lines if one.startswith("#") and one not in added] == before[:5]
    for old, new, reason in zip(before[5:], lines[5 + len(added) :], REASONS, strict=True):
        parts, again = old.split("\t"), new.split("\t")
        assert parts[:7] + parts[8:] == again[:7] + again[8:]
        fields = info(new)
        assert fields.get("LSQ_SKIP", "") == reason
        kept = {key: value for key, value in info(old).items() if key not in (".", "LSQ_LLR")}
        assert kept.items() <= fields.items()
        assert ("LSQ_LLR" in fields) == (not reason or reason.startswith("."))
    assert info(lines[-9])["LSQ_LLR"].endswith(",.")
    assert not list(Path().glob("*.partial"))
    # the same numbers from several processes, and as a table
    assert main([*argv, "--out", "out.tsv", "--workers", "2"]) == 0
    rows = read_rows("out.tsv")
    assert len(rows) == 13 and rows[0]["id"] == "rs1" and rows[0]["pos"] == "300"
    assert rows[0]["llr"] == info(lines[5 + len(added)])["LSQ_LLR"]
    assert rows[1]["reason"] == "REF_MISMATCH" and rows[1]["llr"] == ""


def test_the_sites_own_part_may_count_less(checkpoint: str, genome: Genome, capsys) -> None:
    Path("in.vcf").write_text(vcf(genome))
    argv = ["genomics", "variants", "in.vcf", "--fasta", str(genome.path), "--combine", "low"]
    argv += ["--ckpt_path", checkpoint, "--context", str(C), "--window", str(W)]
    assert main([*argv, "--out", "plain.vcf"]) == 0
    assert "LSQ_SCORE" not in Path("plain.vcf").read_text()
    assert main([*argv, "--out", "out.vcf", "--site_weight", "0.25"]) == 0
    lines = Path("out.vcf").read_text().splitlines()
    (said,) = [one for one in lines if "ID=LSQ_SCORE" in one]
    assert "Number=A,Type=Float" in said and '"0.25 LSQ_SITE + LSQ_AFTER"' in said
    assert main([*argv, "--out", "out.tsv", "--site_weight", "0.25"]) == 0
    rows = [row for row in read_rows("out.tsv") if row["llr"]]
    first = info(next(one for one in lines if one.startswith("1\t300\trs1")))
    names = ("llr", "llr_site", "llr_after", "score")
    fields = ("LSQ_LLR", "LSQ_SITE", "LSQ_AFTER", "LSQ_SCORE")
    assert [first[name] for name in fields] == [rows[0][name] for name in names]
    variants_ = list(read_variants("in.vcf"))
    found = score_variants(variants_, load_scorer(genome.path, checkpoint, W), Options(C, W))
    for row, one in zip(rows, [one for one in found if "" in one.reasons], strict=True):
        numbers = [one.combined("low")[0], *one.parts("low")[0], one.weighed("low", 0.25)[0]]
        assert [float(row[name]) for name in names] == pytest.approx(numbers, abs=1e-6)
    # what was given for plain.vcf is as it was, whatever the weight
    assert info(Path("plain.vcf").read_text().splitlines()[-3])["LSQ_LLR"] == rows[-1]["llr"]
    assert main([*argv, "--out", "bad.vcf", "--site_weight", "-1"]) == 2
    assert "site_weight must not be below 0" in capsys.readouterr().err


def test_an_interrupted_run_goes_on(checkpoint: str, genome: Genome, capsys, monkeypatch) -> None:
    Path("in.vcf").write_text(vcf(genome))
    argv = ["genomics", "variants", "in.vcf", "--fasta", str(genome.path)]
    argv += ["--ckpt_path", checkpoint, "--context", str(C)]
    assert main([*argv, "--out", "whole.vcf"]) == 0
    real, calls = Scorer.score, []

    def failing(self: Scorer, unit: object) -> object:
        calls.append(unit)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(self, unit)

    monkeypatch.setattr(Scorer, "score", failing)
    assert main([*argv, "--out", "out.vcf"]) == 130
    assert Path("out.vcf.partial").exists() and not Path("out.vcf").exists()
    monkeypatch.setattr(Scorer, "score", real)
    capsys.readouterr()
    assert main([*argv, "--out", "out.vcf"]) == 0
    assert "going on: 1 of 2" in capsys.readouterr().out
    assert Path("out.vcf").read_text() == Path("whole.vcf").read_text()
    assert not Path("out.vcf.partial").exists()


def test_lines_between_records_and_marks_before_them(checkpoint: str, genome: Genome) -> None:
    """A byte order mark goes, a comment stays where it was, the folder of --out is made."""
    *records, last = vcf(genome).removeprefix(HEADER).splitlines(True)
    text = HEADER + "".join(records) + "#a comment\n##another\n" + last
    Path("in.vcf").write_text("\ufeff" + text)
    argv = ["genomics", "variants", "in.vcf", "--fasta", str(genome.path)]
    argv += ["--ckpt_path", checkpoint, "--context", str(C), "--window", str(W)]
    assert main([*argv, "--out", "new/out.vcf"]) == 0
    lines = Path("new/out.vcf").read_text().splitlines()
    assert lines[0] == "##fileformat=VCFv4.2" and lines[-3:-1] == ["#a comment", "##another"]
    assert sum(one.startswith("#CHROM") for one in lines) == 1
    assert len(lines) == len(text.splitlines()) + 7


def test_scores_of_an_earlier_run_are_taken_away(checkpoint: str, genome: Genome) -> None:
    """LSQ_SCORE of another run would stand beside a ratio that it is not made of."""
    Path("in.vcf").write_text(vcf(genome))
    argv = ["genomics", "variants", "--fasta", str(genome.path), "--ckpt_path", checkpoint]
    argv += ["--context", str(C), "--window", str(W)]
    assert main([*argv, "in.vcf", "--out", "plain.vcf"]) == 0
    assert main([*argv, "in.vcf", "--out", "weighed.vcf", "--site_weight", "0.25"]) == 0
    assert "LSQ_SCORE" in Path("weighed.vcf").read_text()
    assert main([*argv, "weighed.vcf", "--out", "again.vcf"]) == 0
    plain, again = (
        [one for one in Path(name).read_text().splitlines() if "longseq_variants" not in one]
        for name in ("plain.vcf", "again.vcf")
    )
    assert again == plain


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("hello\n", "line 1 must begin"),
        ("BCF\x02\x02", "is BCF.*bcftools view"),
        ("##fileformat=VCFv4.2\n", "no line #CHROM"),
        (HEADER + "1\t5\n", "line 6: 2 columns by tabs"),
        (HEADER + "1\tx\t.\tA\tC\t.\t.\t.\n", "line 6: POS 'x'"),
        (HEADER + "1\t5\t.\t<A>\tC\t.\t.\t.\n", "line 6: REF '<A>'"),
        (HEADER + "1\t²\t.\tA\tC\t.\t.\t.\n", "line 6: POS '²'"),
        (HEADER + "1\t5\t.\tA\tC,\t.\t.\t.\n", "line 6: ALT 'C,'"),
        (HEADER + "1\t5\t.\tA\t\t.\t.\t.\n", "line 6: ALT ''"),
        (HEADER + "1\t5\t.\tA\tC\t.\t.\t.\n" + HEADER, "line 11: a second line #CHROM"),
    ],
)
def test_bad_files_are_named(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.vcf"
    path.write_text(text)
    with pytest.raises(DataError, match=says):
        list(read_variants(path))
