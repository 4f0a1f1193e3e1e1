"""In-silico mutagenesis: a variant each, the table and the picture; regions as written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from longseq.core.errors import DataError
from longseq.core.shell.cli import main
from longseq.core.tables import read_rows
from longseq.genomics.data.fasta import Genome
from longseq.genomics.data.regions import chosen, parse_region
from longseq.genomics.data.splits import Interval
from longseq.genomics.data.vcf import Variant
from longseq.genomics.models.language_model import DNALanguageModel
from longseq.genomics.mutagenesis import mutate
from longseq.genomics.variant_scores import Scorer
from longseq.genomics.variant_sites import Options, score_variants


def test_every_entry_is_a_variant(tiny: Genome) -> None:
    torch.manual_seed(0)
    model = DNALanguageModel(8, 1, mixer_kwargs={"d_state": 4}).double().eval()
    scorer, options = Scorer(model, tiny, 16), Options(100, 16)
    letters, matrix = mutate(scorer, Interval("tiny2", 995, 1003), options)
    assert letters[5:] == "NNN" and np.isnan(matrix[5:]).all()
    assert [matrix[i, "ACGT".index(letters[i])] for i in range(5)] == [0] * 5
    variants = [Variant("tiny2", 997, ".", letters[2], (alt,)) for alt in "ACGT"]
    for j, scored in enumerate(score_variants(variants, scorer, options)):
        assert matrix[2, j] == pytest.approx(scored.mean()[0], abs=1e-6)
    with pytest.raises(DataError, match="too many"):
        mutate(scorer, Interval("tiny1", 0, 10_001), options)


def test_command_line(workdir: Path) -> None:
    small = ["--model.d_model=8", "--model.n_layers=1", "--data.length=32", "--progress", "lines"]
    steps = ["--trainer.max_steps=1", "--trainer.val_check_interval=1", "--name", "m"]
    assert main(["genomics", "fit", "--data.fasta", "tiny", *small, *steps]) == 0
    best = "outputs/genomics/m/version_0/checkpoints/best.ckpt"
    argv = ["genomics", "mutagenesis", "tiny", "--ckpt_path", best, "--window", "16"]
    out = ["--region", "tiny1:11-40", "--out", "m.tsv", "--plot", "m.png"]
    assert main([*argv, *out]) == 0
    rows = read_rows("m.tsv")
    assert len(rows) == 30 and rows[0]["pos"] == "11"
    assert all(float(row[row["ref"]]) == 0 for row in rows)
    assert Path("m.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("text", "start", "end"),
    [("tiny1", 0, 3000), ("tiny1:1-1", 0, 1), ("tiny1:7", 6, 7), ("tiny1:1,001-2,000", 1000, 2000)],
)
def test_regions(text: str, start: int, end: int, tiny: Genome) -> None:
    assert parse_region(text, tiny) == Interval("tiny1", start, end)


@pytest.mark.parametrize("text", ["tiny1:0-5", "tiny1:5-4", "tiny1:1-3001", "chr9:1-2"])
def test_wrong_regions_are_named(text: str, tiny: Genome) -> None:
    with pytest.raises(DataError, match=r"does not lie|no record"):
        parse_region(text, tiny)


def test_what_is_chosen(tiny: Genome, tmp_path: Path) -> None:
    bed = tmp_path / "r.bed"
    bed.write_text("tiny2\t5\t9\n")
    assert chosen(tiny, bed=bed) == [Interval("tiny2", 5, 9)]
    assert chosen(tiny) == [Interval("tiny1", 0, 3000), Interval("tiny2", 0, 2000)]
    with pytest.raises(DataError, match="either"):
        chosen(tiny, "tiny1", bed)
