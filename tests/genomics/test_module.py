"""The data module: samples, splits, and bad input found before training."""

import pytest
import torch

from longseq.core.errors import ConfigError, DataError
from longseq.genomics.data.module import GenomeData


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
    with pytest.raises(ConfigError, match="left for training"):
        GenomeData(str(fasta), test_chromosomes=["a"]).setup("fit")
