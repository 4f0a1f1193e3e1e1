"""Labels of every base by its gene: from annotation to states, equal on both strands, learnt, and
back to genes."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from longseq.core.errors import ConfigError, DataError
from longseq.core.shell.cli import main
from longseq.core.training import fit
from longseq.genomics.data.annotation import Feature
from longseq.genomics.data.fasta import Genome
from longseq.genomics.data.gene_labels import OTHER_STRAND, GeneLabelData, GeneRegions, gene_states
from longseq.genomics.data.module import GenomeData
from longseq.genomics.data.splits import Interval
from longseq.genomics.data.tokenizer import IGNORE_INDEX, PAD, encode
from longseq.genomics.gene_finder import GeneFinder
from longseq.genomics.gene_network import NetworkFinder, read_states
from longseq.genomics.gene_task import GeneLabelling
from longseq.genomics.metrics import CodingF1
from longseq.genomics.models.sequence_model import reverse_complement_rows

SMALL = {"d_model": 8, "n_layers": 1, "mixer": "mamba"}
BOTH = {"d_model": 8, "n_layers": 1, "mixer": "bidirectional", "mixer_kwargs": {"mixer": "mamba"}}


def cds(start: int, end: int, strand: str = "+", **more: object) -> Feature:
    return Feature("chr", start, end, strand, "CDS", **more)  # type: ignore[arg-type]


def genes_of_a_genome(seed: int, count: int = 60) -> tuple[str, list[Feature]]:
    """A genome whose genes are ATG, codons that begin with G and end with C, TAA, on both strands
    in turn, and whatever between them."""
    rng, text, found = np.random.default_rng(seed), "", []
    for number in range(count):
        text += "".join(rng.choice(list("ACGT"), int(rng.integers(40, 120))))
        codons = "".join(f"G{one}C" for one in rng.choice(list("ACGT"), int(rng.integers(40, 90))))
        gene, strand = f"ATG{codons}TAA", "+-"[number % 2]
        if strand == "-":
            gene = gene[::-1].translate(str.maketrans("ACGT", "TGCA"))
        found.append(cds(len(text), len(text) + len(gene), strand))
        text += gene
    return text, found


def write(folder: Path, name: str, text: str, features: list[Feature]) -> tuple[str, str]:
    fasta, genes = folder / f"{name}.fa", folder / f"{name}.gff3"
    fasta.write_text(f">chr\n{text}\n")
    rows = [
        f"chr\tx\tCDS\t{one.start + 1}\t{one.end}\t.\t{one.strand}\t0\tID=c{i}\n"
        for i, one in enumerate(features)
    ]
    genes.write_text("##gff-version 3\n" + "".join(rows))
    return str(fasta), str(genes)


def test_states_say_strand_and_codon_position() -> None:
    states = gene_states([cds(2, 8), cds(10, 16, "-"), cds(18, 20, phase=1)], 22)
    assert states.tolist() == [0, 0, 1, 2, 3, 1, 2, 3, 0, 0, 6, 5, 4, 6, 5, 4, 0, 0, 3, 1, 0, 0]
    joined = gene_states([cds(0, 10, parts=((0, 2), (6, 10)))], 12)
    assert joined.tolist() == [1, 2, 0, 0, 0, 0, 3, 1, 2, 3, 0, 0]
    assert gene_states([Feature("chr", 0, 6, "+", "tRNA")], 6).tolist() == [0] * 6


def test_what_is_ambiguous_has_no_state() -> None:
    assert gene_states([cds(0, 6), cds(4, 10)], 10).tolist() == [1, 2, 3, 1, -1, -1, 3, 1, 2, 3]
    assert gene_states([cds(0, 6), cds(3, 9)], 9).tolist() == [1, 2, 3] * 3  # one frame: no clash
    assert gene_states([cds(0, 3, pseudo=True)], 4).tolist() == [-1, -1, -1, 0]


@pytest.mark.parametrize("encoder", [SMALL, BOTH], ids=["causal", "bidirectional"])
def test_the_other_strand_gets_the_same_answer(encoder: dict[str, object]) -> None:
    torch.manual_seed(0)
    model = GeneLabelling(encoder=encoder).eval().model.double()
    ids, lengths = torch.randint(7, 11, (2, 33)), torch.tensor([33, 20])
    ids[1, 20:] = PAD
    with torch.no_grad():
        here = model(ids, lengths)
        there = model(reverse_complement_rows(ids, lengths), lengths)
        alone = model(ids[1:, :20], lengths[1:])
    for row, size in enumerate(lengths.tolist()):
        turned = there[row, :size].flip(0)[:, list(OTHER_STRAND)]
        torch.testing.assert_close(here[row, :size], turned, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(here[1:, :20], alone, rtol=1e-10, atol=1e-10)


def test_f1_counts_coding_bases_of_the_right_state() -> None:
    metric = CodingF1()
    metric.update(torch.tensor([0, 1, 2, 3]), torch.tensor([1, 1, 2, 0]))
    assert metric.compute().item() == pytest.approx(2 * 2 / (3 + 3))
    metric.update(torch.tensor([4, 4]), torch.tensor([1, 4]))
    assert metric.compute().item() == pytest.approx(2 * 3 / (5 + 5))
    none = CodingF1()
    none.update(torch.tensor([0]), torch.tensor([0]))
    assert math.isnan(none.compute().item())


def test_regions_are_read_once_and_padded(tmp_path: Path) -> None:
    fasta, _ = write(tmp_path, "a", "ACGTN" * 5, [])
    states = {"chr": gene_states([cds(0, 6), cds(6, 9, pseudo=True)], 25)}
    regions = GeneRegions(states, Genome(fasta), [Interval("chr", 0, 21)], 8, 2)
    first, last = regions[0], regions[1]
    assert first["input_ids"].shape == (2, 8) and last["input_ids"].shape == (1, 5)
    assert first["targets"][0].tolist() == [1, 2, 3, 1, IGNORE_INDEX, 3, IGNORE_INDEX, IGNORE_INDEX]
    assert [*first["lengths"].tolist(), *last["lengths"].tolist()] == [8, 8, 5]
    with pytest.raises(IndexError):
        regions[2]


def test_it_learns_genes_and_finds_them_in_another_genome(tmp_path, capsys) -> None:
    text, features = genes_of_a_genome(0)
    fasta, genes = write(tmp_path, "a", text, features)
    data = GeneLabelData(fasta, genes, length=256, batch_size=4, eval_length=512)
    task = GeneLabelling(encoder={**SMALL, "d_model": 16, "kmer": 3}, hidden=16, lr=1e-2)
    fit(task, data, tmp_path / "run", max_steps=40)
    text, features = genes_of_a_genome(1)
    fasta, genes = write(tmp_path, "b", text, features)
    checkpoint = str(next((tmp_path / "run").rglob("last.ckpt")))
    out = str(tmp_path / "found.gff3")
    argv = ["genomics", "annotate", fasta, "--out", out, "--truth", genes, "--learn", fasta]
    assert main([*argv, "--learn_genes", genes, "--ckpt_path", checkpoint]) == 0
    said = capsys.readouterr().out
    assert "network + gene model" in said and "base-level F1" in said
    rows = [line.split("\t") for line in Path(out).read_text().splitlines() if "\tCDS\t" in line]
    found = {(row[3], row[4], row[6]) for row in rows}
    wanted = {(str(one.start + 1), str(one.end), one.strand) for one in features}
    assert len(found & wanted) >= 48
    capsys.readouterr()
    scores = []
    for data in ([], ["--data=GeneLabelData"]):  # the checkpoint knows its kind of data
        argv = ["genomics", "test", f"--ckpt_path={checkpoint}", *data, f"--data.fasta={fasta}"]
        assert main([*argv, f"--data.genes={genes}"]) == 0
        scores += [line for line in capsys.readouterr().out.splitlines() if "base_f1" in line]
    assert len(scores) == 2 and scores[0] == scores[1]
    # another genome is not scored against the annotation of the one before it
    argv = ["genomics", "test", f"--ckpt_path={checkpoint}", f"--data.fasta={fasta}"]
    assert main(argv) == 2
    said = capsys.readouterr().err
    assert f"data.genes ({tmp_path / 'a.gff3'}) is of {tmp_path / 'a.fa'}: give" in said
    assert main([*argv, "--data.genes", "null"]) == 2
    assert "no coding sequences" in capsys.readouterr().err
    assert main([*argv, f"--data.genes={genes}", "--data.genez=1"]) == 2
    assert "GeneLabelData has no such argument; did you mean" in capsys.readouterr().err


@pytest.mark.parametrize("encoder", [SMALL, BOTH], ids=["causal", "bidirectional"])
def test_states_of_a_record_are_those_of_one_pass(encoder, tmp_path) -> None:
    text, _ = genes_of_a_genome(2, 2)
    fasta, _ = write(tmp_path, "a", text, [])
    torch.manual_seed(0)
    task = GeneLabelling(encoder=encoder).eval()
    task.facts["length"] = 4 * len(text)
    seen: list[int] = []
    found = read_states(task, Genome(fasta), chunk=50, progress=seen.append)["chr"]
    ids = torch.from_numpy(encode(text).astype(np.int64))[None]
    with torch.no_grad():
        wanted = task(ids, torch.tensor([len(text)]))[0].log_softmax(-1).numpy()
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    assert sum(seen) == 2 * len(text)


def test_genes_follow_the_states_across_gaps_and_the_origin() -> None:
    text, features = genes_of_a_genome(3, 30)
    low = features[7].start + 60  # the record begins within this gene
    text = text[low:] + text[:low]
    size = len(text)
    finder = GeneFinder()
    longer, more = genes_of_a_genome(4)
    finder.learn_annotated([(encode(longer), more)])
    moved = [(one.start - low, one.end - low, one.strand) for one in features]
    moved = [(a + size, b + size, c) if b <= 0 else (a, b, c) for a, b, c in moved]
    logs = np.full((size, 7), -9.0, np.float32)
    logs[:, 0] = 0
    for start, end, strand in moved:
        places = np.arange(start, end)
        position = (places - start) % 3 if strand == "+" else (end - 1 - places) % 3
        logs[places % size, 0] = -9
        logs[places % size, 1 + position + 3 * (strand == "-")] = 0
    found = NetworkFinder(finder).find_by(encode(text), logs, circular=True)
    places = {(a % size, (b - 1) % size) for a, b in zip(found.start, found.end)}
    assert {(a % size, (b - 1) % size) for a, b, _ in moved} == places
    text = text[:500] + "N" * 40 + text[500:]
    logs = np.concatenate([logs[:500], np.zeros((40, 7), np.float32), logs[500:]])
    cut = NetworkFinder(finder).find_by(encode(text), logs)
    later = {(a + 40, b + 40) for a, b, _ in moved if a >= 500 and b <= size}
    assert later <= set(zip(cut.start.tolist(), cut.end.tolist()))


def test_what_cannot_be_learnt_is_refused_by_name(tmp_path: Path) -> None:
    fasta, genes = write(tmp_path, "a", "ACGT" * 100, [])
    with pytest.raises(DataError, match="no coding sequences"):
        GeneLabelData(fasta).setup("fit")
    with pytest.raises(ConfigError, match="one annotation for each of 1 genomes"):
        GeneLabelData(fasta, [genes, genes])
    with pytest.raises(ConfigError, match="GeneLabelData"):
        GeneLabelling(encoder=SMALL).check_data(GenomeData(fasta))
    with pytest.raises(ConfigError, match=r"model\.pretrained"):
        GeneLabelling(frozen=True)
    (tmp_path / "t.ckpt").write_bytes(b"nothing")
    argv = ["genomics", "annotate", fasta, "--out", str(tmp_path / "o.gff3")]
    assert main([*argv, "--ckpt_path", str(tmp_path / "t.ckpt")]) == 2
