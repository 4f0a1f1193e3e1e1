"""A killed run goes on in mid-epoch with the windows it had left: the same weights, bit for bit."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ARGUMENTS = [
    "--data.fasta=tiny", "--data.length=64", "--data.batch_size=2", "--data.start_length=32",
    "--data.length_warmup_steps=8", "--model.d_model=8", "--model.n_layers=1", "--model.dropout=0.1",
    "--trainer.max_steps=120", "--trainer.val_check_interval=120", "--trainer.limit_val_batches=0",
    "--checkpoint_every=1",
]  # fmt: skip


def fit(root: Path, *more: str) -> "subprocess.Popen[bytes]":
    argv = [sys.executable, "-m", "longseq.core.shell.cli", "genomics", "fit", *ARGUMENTS, *more, "--name=r"]
    argv += [f"--trainer.default_root_dir={root}"]
    return subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def newest(root: Path) -> Path:
    return max(root.glob("r/version_*/checkpoints/last*.ckpt"), key=lambda path: path.stat().st_mtime)


@pytest.mark.parametrize("workers", [0, 2])
def test_sigkill_and_resume(tmp_path: Path, workers: int) -> None:
    seed = "--seed_everything=3"
    extra = f"--data.num_workers={workers}"
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert fit(whole, seed, extra).wait(300) == 0

    process = fit(broken, seed, extra)
    deadline = time.monotonic() + 120
    while not list(broken.glob("r/version_*/checkpoints/last*.ckpt")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    step = torch.load(newest(broken), weights_only=True)["global_step"]
    assert 0 < step < 120, "the run was not killed in the middle"
    # Another seed on the second start: nothing may depend on it.
    assert fit(broken, "--seed_everything=99", extra, f"--ckpt_path={newest(broken)}").wait(300) == 0

    expected, actual = (torch.load(newest(root), weights_only=True) for root in (whole, broken))
    assert actual["global_step"] == expected["global_step"] == 120
    for name, value in expected["state_dict"].items():
        assert torch.equal(actual["state_dict"][name], value), name
