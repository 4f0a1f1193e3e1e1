"""Mixers without a finite state train, are tested and predict from the command line; so is a genome
that no training has seen."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from longseq.core.shell.cli import main
from longseq.core.tables import read_rows
from longseq.genomics.scorers import load_model

SMALL = ["--model.d_model=8", "--model.n_layers=1", "--data.batch_size=1", "--trainer.max_steps=1"]
SMALL += ["--trainer.val_check_interval=1", "--progress", "lines"]


@pytest.fixture
def genomes(workdir: Path) -> tuple[str, str]:
    rng = np.random.default_rng(0)
    for name, sizes in (("train.fa", [30_000]), ("other.fa", [5000, 2500, 1])):
        with open(name, "w") as file:
            for i, size in enumerate(sizes):
                file.write(f">r{i}\n{''.join(rng.choice(list('ACGT'), size).tolist())}\n")
    return "train.fa", "other.fa"


@pytest.mark.parametrize("mixer", ["hyena", "attention"])
def test_fit_test_and_predict(mixer: str, genomes: tuple[str, str], capsys) -> None:
    train, other = genomes
    heads = ["--model.mixer_kwargs.n_heads=2"] if mixer == "attention" else []
    argv = ["genomics", "fit", "--data.fasta", train, "--model.mixer", mixer, *heads, *SMALL]
    assert main([*argv, "--name", mixer]) == 0
    best = f"outputs/genomics/{mixer}/version_0/checkpoints/best.ckpt"
    assert main(["genomics", "test", "--ckpt_path", best]) == 0
    assert "r0:27001-30000" in capsys.readouterr().out  # the last tenth of the training's genome
    assert main(["genomics", "test", "--ckpt_path", best, "--data.fasta", other]) == 0
    out, err = capsys.readouterr()
    # baselines of a part of it would be no measure of the whole
    assert ": 7,500 test bases in 2 regions" in out and "order-" not in out
    assert "markov is left out" in err and "longseq genomics compare" in err
    # all records, every base but each one's first; a record of one base has none to predict
    assert re.search(r"r0 +│ +4,999", out) and re.search(r"r1 +│ +2,499", out)
    whole = float(re.search(r"all +│ +7,498 +│ +([\d.]+)", out)[1])
    table = ["--out", "scores.csv", "--chunk", "777"]
    assert main(["genomics", "predict", other, "--ckpt_path", best, *table]) == 0
    rows = read_rows("scores.csv")
    values = [float(row["log_likelihood"]) for row in rows if row["log_likelihood"]]
    assert len(rows) == 7501 and len(values) == 7498
    assert -np.mean(values) / np.log(2) == pytest.approx(whole, abs=6e-5)
    assert re.search(rf"all +│ +7,498 +│ +{whole:.4f}", capsys.readouterr().out)


def test_a_list_of_files_trains_and_is_known_again(genomes: tuple[str, str], capsys) -> None:
    files = f"[{', '.join(genomes)}]"
    argv = ["genomics", "fit", "--data.fasta", files, "--data.weights", "[1, 0.5]", *SMALL]
    assert main([*argv, "--model.mixer_kwargs.d_state=4", "--name", "two"]) == 0
    best = "outputs/genomics/two/version_0/checkpoints/best.ckpt"
    assert main(["genomics", "test", "--ckpt_path", best]) == 0
    out = capsys.readouterr().out
    assert "train:r0:27001-30000" in out and "other:r1:1752-2500" in out


def test_hybridna_trains_from_its_configuration(workdir) -> None:
    argv = ["genomics", "fit", "--config", "hybridna", "--data.fasta", "tiny"]
    small = ["--model.d_model", "32", "--data.length", "64", "--data.eval_length", "128"]
    steps = ["--trainer.max_steps", "1", "--trainer.val_check_interval", "1", "--name", "h"]
    assert main([*argv, *small, *steps]) == 0
    (last,) = workdir.glob("outputs/genomics/h/*/checkpoints/last.ckpt")
    task = load_model(last)
    kinds = [type(layer.mixer).__name__ for layer in task.model.backbone.layers]
    assert len(kinds) == 8 and kinds.count(kinds[0]) == 7 and "Attention" in kinds[3]
    assert task.hparams["mixer"][3] == ["attention", {"rope_base": None}] and task.window == 64
