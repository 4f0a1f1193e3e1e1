"""Masked models on genomes and variants: equal to hiding one base after the other by hand."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from longseq.core.errors import ConfigError
from longseq.core.shell.cli import main
from longseq.core.tables import read_rows
from longseq.genomics.data.fasta import Genome
from longseq.genomics.data.splits import Interval
from longseq.genomics.data.tokenizer import MASK, decode, encode, is_base, reverse_complement
from longseq.genomics.data.vcf import Variant
from longseq.genomics.masked_scores import MaskedScorer, blocks, masked_scores
from longseq.genomics.masked_task import MaskedLanguageModel
from longseq.genomics.models.masked_model import MaskedDNAModel
from longseq.genomics.predict import score_strands
from longseq.genomics.scorers import export
from longseq.genomics.variant_sites import Options, score_variants, without_shared

KWARGS = {"mixer": "mamba", "mixer_kwargs": {"d_state": 4}}
SIZES = (151, 1, 40)


def make(symmetry: str = "none") -> MaskedLanguageModel:
    torch.manual_seed(0)
    task = MaskedLanguageModel(8, 2, mixer_kwargs=KWARGS, symmetry=symmetry)
    with torch.no_grad():
        for parameter in task.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return task.eval()


@pytest.fixture
def genome(write_fasta, random_bases) -> Genome:
    texts = [random_bases(n, seed=i) for i, n in enumerate(SIZES)]
    texts[0] = texts[0][:70] + "NNN" + texts[0][73:]
    return Genome(write_fasta({f"r{i}": text for i, text in enumerate(texts)}))


def by_hand(model: MaskedDNAModel, ids: np.ndarray, hidden: list[int], at: int) -> float:
    """Returns ln p of one base of a window while some of its bases are hidden."""
    seen = torch.from_numpy(ids.astype(np.int64))[None].clone()
    for one in hidden:
        if is_base(ids[one : one + 1])[0]:
            seen[0, one] = MASK
    with torch.no_grad():
        return float(model(seen)[0, at].log_softmax(-1)[int(ids[at])])


def scores(model: MaskedDNAModel, genome: Genome, item: Interval, **kwargs) -> np.ndarray:
    return np.concatenate([said for *_, said in masked_scores(model, genome, [item], **kwargs)])


@pytest.mark.parametrize("window", [400, 64, 33])
@pytest.mark.parametrize("every", [0, 5])
def test_every_base_is_scored_as_by_hand(genome, every, window) -> None:
    model = make().model
    for name, low, high in (("r0", 20, 151), ("r1", 0, 1), ("r2", 0, 40)):
        item = Interval(name, low, high)
        found = scores(model, genome, item, every=every, window=window)
        wanted = np.full(len(item), np.nan)
        for block in blocks(item, window):
            ids = genome.fetch(name, block.low, block.high)
            assert len(ids) <= window
            for place in range(block.start, block.end):
                at = place - block.low
                if is_base(ids[at : at + 1])[0]:
                    same = [i for i in range(len(ids)) if (i - at) % (every or len(ids)) == 0]
                    wanted[place - low] = by_hand(model, ids, same, at)
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
        assert np.isnan(found).sum() == (3 if name == "r0" else 0)


def test_one_pass_per_base_of_the_whole_record_is_the_pseudo_log_likelihood(genome) -> None:
    model = make().model
    ids = genome.fetch("r2", 0, 40)
    wanted = [by_hand(model, ids, [i], i) for i in range(40)]
    for every in (0, 40, 1000):
        found = scores(model, genome, Interval("r2", 0, 40), every=every, window=80)
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    with pytest.raises(ConfigError, match="hide_every 1"):
        scores(model, genome, Interval("r2", 0, 40), every=1)


@pytest.mark.parametrize("symmetry", ["none", "ph", "ps"])
def test_strands_read_the_same_windows_and_chunks_leave_no_trace(genome, symmetry) -> None:
    model, item = make(symmetry).model, Interval("r0", 3, 150)
    ahead, back = (scores(model, genome, item, window=50, strand=one) for one in "+-")
    assert np.allclose(ahead, back, atol=1e-5, equal_nan=True) == (symmetry != "none")
    both = scores(model, genome, item, window=50, strand="both")
    np.testing.assert_allclose(both, (ahead + back) / 2, atol=1e-5)
    for chunk in (1, 60, 1000):
        parts = list(score_strands(model, genome, [item], "both", chunk, 50))
        np.testing.assert_array_equal(np.concatenate([p.log_likelihood for p in parts]), both)
        assert parts[0].start == 3
    letters = "".join(decode(part.ids) for part in parts)
    assert letters == decode(genome.fetch("r0", 3, 150))


def test_variants_are_ratios_at_the_hidden_site(genome) -> None:
    model, window = make().model, 21
    scorer = MaskedScorer(model, genome, window)
    given = []
    for name, start, width in (("r0", 80, 1), ("r0", 0, 1), ("r0", 150, 1), ("r0", 30, 2)):
        ref = decode(genome.fetch(name, start, start + width))
        given.append(Variant(name, start, ".", ref, ("AC"[:width], "TG"[:width])))
    given.append(Variant("r1", 0, ".", decode(genome.fetch("r1", 0, 1)), ("A", "T", "AT")))
    found = score_variants(given, scorer, Options(50, window))
    for variant, scored in zip(given, found):
        for alt, forward, reverse in zip(variant.alts, scored.forward, scored.reverse):
            if len(alt) != len(variant.ref):
                assert np.isnan(forward) and np.isnan(reverse)
                continue
            shared, ref, rest = without_shared(variant.ref, alt)
            size, width, start = genome.records[variant.chrom], len(ref), variant.start + shared
            side = (window - width) // 2
            low, high = max(0, start - side), min(size, start + width + side)
            ids = genome.fetch(variant.chrom, low, high)
            for turned, value in ((False, forward), (True, reverse)):
                window_ids = reverse_complement(ids) if turned else ids
                at = len(ids) - (start - low) - width if turned else start - low
                hidden = list(range(at, at + width))
                total = 0.0
                for sign, allele in ((1, rest), (-1, ref)):
                    told = window_ids.copy()
                    letters = encode(allele)
                    told[at : at + width] = reverse_complement(letters) if turned else letters
                    total += sign * sum(by_hand(model, told, hidden, i) for i in hidden)
                assert value == pytest.approx(total, abs=1e-5)
    assert found[-1].reasons == ["", "", "NOT_SUBSTITUTION"]
    alone = [score_variants([one], scorer, Options(50, window))[0] for one in given]
    for one, other in zip(found, alone):
        np.testing.assert_allclose(one.mean(), other.mean(), atol=1e-5)


def test_the_commands_take_a_masked_checkpoint(genome, tmp_path, capsys) -> None:
    task = make("ps")
    task.facts = {"length": 64}
    checkpoint, fasta = tmp_path / "m.safetensors", str(genome.path)
    export(task, checkpoint)
    at = ["--ckpt_path", str(checkpoint), "--out"]
    out = str(tmp_path / "scores.parquet")
    assert main(["genomics", "predict", fasta, *at, out, "--hide_every", "0"]) == 0
    assert "pseudo-log-likelihood" in capsys.readouterr().out
    table = pq.read_table(out)
    assert table.num_rows == sum(SIZES) and table["log_likelihood"].null_count == 3
    assert b"one at a time" in table.schema.metadata[b"log_likelihood"]
    wanted = scores(task.model, genome, Interval("r0", 0, 151), every=0, window=64)
    np.testing.assert_allclose(table["log_likelihood"].to_numpy()[:151], wanted, atol=1e-6)

    ref = decode(genome.fetch("r0", 9, 10))
    alt = "ACGT".replace(ref, "")[0]
    vcf = tmp_path / "in.vcf"
    head = "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
    vcf.write_text(f"{head}r0\t10\ta\t{ref}\t{alt},{ref}A\t.\t.\t.\n")
    out = str(tmp_path / "out.vcf")
    assert main(["genomics", "variants", str(vcf), "--fasta", fasta, *at, out]) == 0
    text = (tmp_path / "out.vcf").read_text()
    assert "at the hidden site" in text and "LSQ_SKIP=.,NOT_SUBSTITUTION" in text
    assert "LSQ_SITE" not in text and "LSQ_AFTER" not in text  # of which it has one alone
    matrix = str(tmp_path / "m.tsv")
    assert main(["genomics", "mutagenesis", fasta, "--region", "r0:10-10", *at, matrix]) == 0
    (row,) = list(read_rows(matrix))
    value = float(text.split("LSQ_LLR=")[-1].split(",")[0])
    assert float(row[alt]) == pytest.approx(value, abs=1e-5) and float(row[ref]) == 0
    refused = ["genomics", "variants", str(vcf), "--fasta", fasta, *at, out, "--context", "100"]
    assert main(refused) == 2 and "leave it out" in capsys.readouterr().err
    assert main([*refused[:-2], "--site_weight", "0.5"]) == 2
    assert "site_weight: a masked model" in capsys.readouterr().err
    assert main(["genomics", "variants", str(vcf), "--fasta", fasta, *at, out, "--window=0"]) == 2
    argv = ["genomics", "predict", fasta, "--out", str(tmp_path / "x.csv"), "--hide_every", "5"]
    assert main(argv) == 2 and "masked models" in capsys.readouterr().err
