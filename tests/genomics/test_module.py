"""The data module: samples, splits, and bad input found before training."""

from pathlib import Path

import numpy as np
import pytest
import torch

from longseq.core.errors import ConfigError, DataError
from longseq.genomics.data.module import GenomeData
from longseq.genomics.data.tokenizer import decode, reverse_complement
from longseq.genomics.task import CausalLanguageModel


def test_regions_by_fraction_are_disjoint_and_evaluation_reads_them_in_order() -> None:
    data = GenomeData("tiny", valid_fraction=0.1, test_fraction=0.2, eval_length=64)
    data.setup()
    splits = data.splits()
    sizes = [sum(len(item) for item in part) for part in splits]
    assert sum(sizes) == sum(data.genome.records.values())
    batches = list(data.test_dataloader())
    assert batches[0]["first"].item() and not batches[1]["first"].item()
    targets = torch.cat([batch["targets"].flatten() for batch in batches])
    regions = [data.genome.fetch(item.chrom, item.start, item.end) for item in splits.test]
    assert int((targets != -100).sum()) == sum(
        int(((r[1:] >= 7) & (r[1:] <= 10)).sum()) for r in regions
    )


def test_chromosomes_are_found_under_either_name(tmp_path) -> None:
    fasta = tmp_path / "g.fa"
    fasta.write_text(">chr1\nACGTACGTAC\n>chr2\nGGGTTTAAAC\n>chrM\nACACACAC\n")
    data = GenomeData(str(fasta), valid_chromosomes=["2"], test_chromosomes=["MT"])
    splits = data.splits()
    assert [[item.chrom for item in part] for part in splits] == [["chr1"], ["chr2"], ["chrM"]]


def test_a_bed_file_decides_the_split(tmp_path) -> None:
    fasta, bed = tmp_path / "g.fa", tmp_path / "g.bed"
    fasta.write_text(">a\n" + "ACGT" * 25 + "\n")
    bed.write_text("a\t0\t60\ttrain\na\t60\t80\tvalid\na\t80\t100\ttest\n")
    splits = GenomeData(str(fasta), bed=str(bed)).splits()
    assert [(part[0].start, part[0].end) for part in splits] == [(0, 60), (60, 80), (80, 100)]
    with pytest.raises(ConfigError, match="either bed"):
        GenomeData(str(fasta), bed=str(bed), test_chromosomes=["a"])


def test_bad_input_is_found_at_setup(tmp_path) -> None:
    fasta = tmp_path / "bad.fa"
    fasta.write_text(">a\nACGTJJ\n")
    with pytest.raises(DataError, match=r"bad\.fa: a.*J"):
        GenomeData(str(fasta)).setup("fit")
    fasta.write_text(">a\nACGTACGT\n")
    with pytest.raises(ConfigError, match="leaves no bases for training"):
        GenomeData(str(fasta), test_chromosomes=["a"]).setup("fit")
    GenomeData(str(fasta), test_chromosomes=["a"]).setup("test")


def letters(n: int, seed: int = 0) -> str:
    return "".join(np.random.default_rng(seed).choice(list("ACGT"), n).tolist())


def write(path: Path, records: dict[str, str]) -> str:
    path.write_text("".join(f">{name}\n{text}\n" for name, text in records.items()))
    return str(path)


def test_several_files_are_one_collection(tmp_path) -> None:
    a = write(tmp_path / "a.fa", {"chr1": letters(400), "chr2": letters(600, 1)})
    b = write(tmp_path / "b.fa", {"chr1": letters(1000, 2)})
    data = GenomeData([a, b], weights=[0.0, 2.0], length=32, batch_size=4)
    assert data.genome.records == {"a:chr1": 400, "a:chr2": 600, "b:chr1": 1000}
    splits = data.splits()  # the end of each file is held out
    assert [one.chrom for one in splits.test] == ["a:chr2", "b:chr1"]
    assert [len(one) for one in splits.test] == [100, 100]
    assert len(data.genome.fetch("chr2", 0, 5)) == 5 and data.genome.resolve("a:1") == "a:chr1"
    with pytest.raises(DataError, match="in several files"):
        data.genome.fetch("chr1", 0, 5)
    with pytest.raises(DataError, match="no record 'chr9'"):
        data.genome.resolve("chr9")
    only = decode(data.genome.fetch("b:chr1", 0, 1000))
    both = only + decode(reverse_complement(data.genome.fetch("b:chr1", 0, 1000)))
    windows = data.train_dataloader().dataset
    for step in range(20):
        for row in windows[step]["input_ids"].numpy():
            assert decode(row) in both
    assert GenomeData([a, b], tags=["x", "y"]).genome.resolve("x:chr2") == "x:chr2"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"weights": [1.0]}, "2 numbers"),
        ({"weights": [0.0, 0.0]}, "2 numbers"),
        ({"tags": ["x", "x"]}, "distinct"),
        ({"tags": ["x:y", "z"]}, "without a colon"),
        ({"repeat_weight": 2.0}, "0 … 1"),
    ],
)
def test_collections_are_checked(arguments, says, tmp_path) -> None:
    files = [write(tmp_path / name, {"c": "ACGT"}) for name in ("a.fa", "b.fa")]
    with pytest.raises(ConfigError, match=says):
        _ = GenomeData(files, **arguments).genome


def test_windows_are_drawn_by_their_known_bases(tmp_path) -> None:
    fasta = write(tmp_path / "n.fa", {"c": letters(1000) + "N" * 9000 + letters(500, 1)})
    data = GenomeData(fasta, valid_fraction=0.0, test_fraction=0.0, length=64, batch_size=8)
    windows = data.train_dataloader().dataset
    known = [int((windows[step]["targets"] != -100).sum(1).min()) for step in range(50)]
    assert min(known) > 0
    mean = np.mean([float((windows[step]["targets"] != -100).float().mean()) for step in range(50)])
    # Of the windows with a base 1436 + 437 of 2 x 64 more are whole; those at the edges by share.
    assert mean > 0.9


def test_a_held_out_region_without_a_base_is_an_error(tmp_path) -> None:
    fasta = write(tmp_path / "n.fa", {"c": letters(800) + "N" * 200})
    with pytest.raises(DataError, match="validation region has no base"):
        GenomeData(fasta).setup("fit")
    with pytest.raises(DataError, match="test region has no base"):
        GenomeData(fasta).test_dataloader()
    with pytest.raises(DataError, match="training region has no base"):
        GenomeData(write(tmp_path / "all.fa", {"c": "N" * 100})).setup("fit")


def test_repeats_may_count_less(tmp_path) -> None:
    fasta = write(tmp_path / "r.fa", {"c": letters(500) + letters(500, 1).lower()})
    data = GenomeData(fasta, length=64, batch_size=8, repeat_weight=0.25, rc_augment=True)
    batch = data.train_dataloader().dataset[0]
    assert set(batch["weights"].unique().tolist()) <= {0.25, 1.0}
    torch.manual_seed(0)
    task = CausalLanguageModel(d_model=8, n_layers=1)
    plain = task.compute({name: batch[name] for name in ("input_ids", "targets")})
    expected = (plain["nll"] * batch["weights"]).sum() / batch["weights"].sum()
    torch.testing.assert_close(task.compute(batch)["loss"], expected)


def test_a_shorter_length_than_the_warm_up_begins_with_has_none() -> None:
    data = GenomeData("tiny", length=64, start_length=256, length_warmup_steps=10)
    assert {length for _, length in data.warmup.stages} == {64}
