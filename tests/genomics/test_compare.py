"""Language models beside Markov models: the table, the verdict, and test bases that were trained
on."""

import shutil
from pathlib import Path

from longseq.core.shell.cli import main
from longseq.core.tables import read_rows
from longseq.genomics.data.samples import SAMPLES

SMALL = ["--model.d_model=8", "--model.n_layers=1", "--data.length=64", "--data.start_length=null"]
SMALL += ["--data.length_warmup_steps=0"]


def test_models_stand_beside_markov_models(workdir: Path, capsys) -> None:
    argv = ["genomics", "compare", "--data", "tiny", "--seeds", "0,1"]
    steps = ["--trainer.max_steps=2", "--trainer.val_check_interval=2"]
    assert main([*argv, "--models", "markov,mamba_tiny", *SMALL, *steps, "--out", "t.csv"]) == 0
    out = capsys.readouterr().out
    assert "the best baseline" in out and "bits per base" in out and "(median of 2 seeds)" in out
    rows = read_rows("t.csv")
    names = [row["model"] for row in rows]
    assert names[0] == "uniform" and "order-12" in names and names[-2:] == ["mamba_tiny"] * 2
    assert float(rows[0]["bits_per_base"]) == 2 and len({row["bases"] for row in rows}) == 1
    assert [row["seed"] for row in rows[-2:]] == ["0", "1"] and rows[-1]["bits_per_base"] != rows[
        -2
    ]["bits_per_base"]
    best = "outputs/genomics/mamba_tiny_seed1/version_0/checkpoints/best.ckpt"
    assert main([*argv, "--models", best, "--out", "u.csv"]) == 0
    (again,) = read_rows("u.csv")
    assert again["bits_per_base"] == rows[-1]["bits_per_base"] and again["model"] == "best"
    assert main([*argv, "--models", f"{best},experts", "--out", "w.csv"]) == 0
    rows = {row["model"]: row for row in read_rows("w.csv")}
    assert {"best", "experts + best", "experts", "gene HMM", "copies", "counts"} <= set(rows)
    assert rows["experts + best"]["kind"] == "model" and "experts" in rows["best"]["verdict"]
    assert rows["best"]["bits_per_base"] == again["bits_per_base"]
    assert rows["best"]["bases"] == rows["experts"]["bases"]
    assert main([*argv, "--models", best, "--test_fraction", "0.3", "--out", "v.csv"]) == 2
    assert "it may have been trained on test bases" in capsys.readouterr().err
    copy = shutil.copy(SAMPLES.path("tiny"), "copy.fa")  # by its bases, whatever its name
    argv_copy = ["--data", str(copy), "--models", best, "--test_fraction", "0.3"]
    assert main([*argv, *argv_copy, "--out", "v.csv"]) == 2
    assert "it may have been trained on test bases" in capsys.readouterr().err
    assert not Path("v.csv").exists()
    assert main([*argv, "--test_fraction", "0", "--out", "v.csv"]) == 2
    assert "leaves no bases" in capsys.readouterr().err
