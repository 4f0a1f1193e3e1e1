"""One sequence over two processes, and a run that goes on with another number of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from longseq.core.errors import ConfigError
from longseq.core.parallel.strategy import ContextParallelStrategy, take_option
from longseq.core.training.loader import data_ranks
from longseq.genomics.task import CausalLanguageModel

FIT = [
    *("--data.fasta=tiny", "--data.length=61", "--data.batch_size=2", "--model.d_model=8"),
    *("--model.n_layers=2", "--trainer.limit_val_batches=1", "--trainer.val_check_interval=3"),
    *("--trainer.accelerator=cpu", "--trainer.accumulate_grad_batches=2", "--name=r"),
    *("--trainer.gradient_clip_val=0.5", "--checkpoint_every=1", "--seed_everything=3"),
]


def fit(root: Path, steps: int, *more: str) -> dict[str, Any]:
    argv = [sys.executable, "-m", "longseq.core.shell.program", "genomics", "fit", *FIT]
    argv += [f"--trainer.max_steps={steps}", f"--trainer.default_root_dir={root}", *more]
    argv += ["--model.total_steps=6"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(argv, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    last = root / "r" / "version_0" / "checkpoints" / "last.ckpt"
    content: dict[str, Any] = torch.load(last, weights_only=True)
    assert content["global_step"] == steps
    return content


def test_three_steps_of_two_processes_and_three_of_one(tmp_path: Path) -> None:
    whole = fit(tmp_path / "one", 6)
    half = tmp_path / "two"
    fit(half, 3, "--trainer.context_parallel_size=2")
    last = half / "r" / "version_0" / "checkpoints" / "last.ckpt"
    resumed = fit(half, 6, f"--ckpt_path={last}")
    for name, value in whole["state_dict"].items():
        torch.testing.assert_close(resumed["state_dict"][name], value, rtol=1e-5, atol=1e-5)


def test_two_processes_with_samples_of_their_own_take_the_steps_of_one(tmp_path: Path) -> None:
    """The tiny genome has N and short records, so that the processes count unlike many bases."""
    whole, half = tmp_path / "one", tmp_path / "two"
    one = fit(whole, 3)
    two = fit(half, 3, "--trainer.devices=2", "--data.batch_size=1")
    for name, value in one["state_dict"].items():
        torch.testing.assert_close(two["state_dict"][name], value, rtol=0, atol=1e-6)
    last = [root / "r" / "version_0" / "checkpoints" / "last.ckpt" for root in (whole, half)]
    one, two = (
        fit(root, 6, f"--ckpt_path={path}", "--data.batch_size=2")
        for root, path in zip((whole, half), last)
    )
    for name, value in one["state_dict"].items():
        torch.testing.assert_close(two["state_dict"][name], value, rtol=0, atol=1e-6)


def test_the_number_of_processes_is_checked() -> None:
    assert take_option({"max_steps": 3}) == {"max_steps": 3}
    assert take_option({"context_parallel_size": 1, "devices": 4}) == {"devices": 4}
    made = take_option({"context_parallel_size": 4, "num_nodes": 2})
    assert made["devices"] == 2 and isinstance(made["strategy"], ContextParallelStrategy)
    with pytest.raises(ConfigError, match="here they are 2 devices × 1 nodes"):
        take_option({"context_parallel_size": 4, "devices": 2})
    with pytest.raises(ConfigError, match="beside 'fsdp'"):
        take_option({"context_parallel_size": 2, "strategy": "fsdp"})
    with pytest.raises(ConfigError, match=r"number of processes, got 0\.5"):
        take_option({"context_parallel_size": 0.5})
    assert data_ranks(None) == (0, 1)


def test_what_cannot_be_divided_is_refused() -> None:
    task = CausalLanguageModel(d_model=8, n_layers=1, kmer=3)
    with pytest.raises(ConfigError, match=r"model\.kmer look at bases of several processes"):
        _ = task.positions
    part = ContextParallelStrategy.part
    with pytest.raises(ConfigError, match="does not divide a sequence"):
        part(None, {"x": 1}, (), "SomeTask")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="does not divide weights"):
        part(None, {"x": 1, "weights": 1}, ("x",), "SomeTask")  # type: ignore[arg-type]
