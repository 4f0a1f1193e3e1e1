"""A killed run goes on in mid-epoch with the windows it had left: the same weights, bit for bit."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ARGUMENTS = [
    "--data.fasta=tiny",
    "--data.length=64",
    "--data.batch_size=2",
    "--data.start_length=32",
    "--data.length_warmup_steps=8",
    "--model.d_model=8",
    "--model.n_layers=1",
    "--model.dropout=0.1",
    "--trainer.max_steps=120",
    "--trainer.val_check_interval=120",
    "--trainer.limit_val_batches=0",
    "--checkpoint_every=1",
]


# Named by --import: kills its own process, as kill -9 would, after a number of batches.
KILLER = """
import os, signal
from lightning.pytorch import Callback

class KillAt(Callback):
    def __init__(self, batches: int):
        self.batches = batches

    def on_train_batch_end(self, trainer, *args):
        if trainer.fit_loop.epoch_loop.batch_progress.total.ready >= self.batches:
            os.kill(os.getpid(), signal.SIGKILL)
"""


def fit(root: Path, *more: str) -> int:
    argv = [
        sys.executable,
        "-m",
        "longseq.core.shell.cli",
        "genomics",
        "fit",
        *ARGUMENTS,
        *more,
        "--name=r",
    ]
    argv += [f"--trainer.default_root_dir={root}"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), *sys.path])}
    return subprocess.run(argv, capture_output=True, env=environment, check=False).returncode


def newest(root: Path) -> Path:
    return max(
        root.glob("r/version_*/checkpoints/last*.ckpt"), key=lambda path: path.stat().st_mtime
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_sigkill_and_resume(tmp_path: Path, workers: int) -> None:
    seed = "--seed_everything=3"
    extra = f"--data.num_workers={workers}"
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert fit(whole, seed, extra) == 0

    broken.mkdir()
    (broken / "killer.py").write_text(KILLER)
    kill = [
        "--import=killer",
        "--trainer.callbacks=killer.KillAt",
        "--trainer.callbacks.batches=37",
    ]
    assert fit(broken, seed, extra, *kill) == -signal.SIGKILL
    assert torch.load(newest(broken), weights_only=True)["global_step"] == 36
    # Another seed on the second start: nothing may depend on it. The callback that killed it is not
    # to come back.
    again = ["--seed_everything=99", extra, "--trainer.callbacks=null"]
    assert fit(broken, *again, f"--ckpt_path={newest(broken)}") == 0

    expected, actual = (torch.load(newest(root), weights_only=True) for root in (whole, broken))
    assert actual["global_step"] == expected["global_step"] == 120
    for name, value in expected["state_dict"].items():
        assert torch.equal(actual["state_dict"][name], value), name
