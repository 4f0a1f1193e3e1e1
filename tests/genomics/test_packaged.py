"""The packaged model of bacterial DNA works at once, and knows reading frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from longseq.core.errors import DataError
from longseq.core.shell.cli import main
from longseq.genomics.data.fasta import Genome
from longseq.genomics.data.samples import SAMPLES
from longseq.genomics.data.splits import Interval
from longseq.genomics.predict import stream_log_likelihood
from longseq.genomics.scorers import PACKAGED, export, load_model


def test_it_is_small_and_reads_an_unseen_genome() -> None:
    assert PACKAGED.stat().st_size < 5_000_000
    task = load_model()
    genome = Genome(SAMPLES.path("chlamydia_trachomatis"))
    region = [Interval(next(iter(genome.records)), 1_000_000, 1_008_000)]
    parts = stream_log_likelihood(task.model, genome, intervals=region, window=task.window)
    bits = -np.nanmean(np.concatenate([part.log_likelihood for part in parts])) / np.log(2)
    assert bits < 1.97  # order-0 to order-12 Markov models of other genomes are above


def test_commands_need_no_checkpoint(workdir: Path) -> None:
    assert main(["genomics", "predict", "tiny", "--region", "tiny1:1-200", "--out", "s.csv"]) == 0
    argv = ["genomics", "mutagenesis", "tiny", "--region", "tiny1:50-52", "--window", "16"]
    assert main([*argv, "--out", "m.csv"]) == 0
    assert main(["genomics", "export", "--ckpt_path", str(PACKAGED), "--out", "c.ckpt"]) == 2


def test_a_model_is_written_and_read_again(tmp_path: Path) -> None:
    task = load_model()
    export(task, tmp_path / "again.safetensors")
    again = load_model(tmp_path / "again.safetensors")
    assert again.facts == task.facts and dict(again.hparams) == dict(task.hparams)
    (tmp_path / "bad.safetensors").write_bytes(PACKAGED.read_bytes()[:1000])
    with pytest.raises(DataError):
        load_model(tmp_path / "bad.safetensors")


def test_a_training_starts_from_it(workdir: Path) -> None:
    assert main(["genomics", "export", "--out", "start.safetensors"]) == 0
    argv = ["genomics", "fit", "--config", "bacteria", "--init_from", "start.safetensors"]
    small = ["--data.fasta", "tiny", "--data.length", "96", "--data.test_fraction", "0.2"]
    rate = ["--model.lr", "0", "--model.optimizer_kwargs", "{muon_lr: 0}"]
    steps = ["--trainer.max_steps", "1", "--trainer.val_check_interval", "1", "--name", "on"]
    assert main([*argv, *small, *rate, *steps]) == 0
    (last,) = workdir.glob("outputs/genomics/on/*/checkpoints/last.ckpt")
    before, after = load_model().model.state_dict(), load_model(last).model.state_dict()
    assert before.keys() == after.keys()
    assert all(bool((before[name] == after[name]).all()) for name in before)
