"""One run, one folder: claimed by one, continued by what resumes it, with its best kept."""

from __future__ import annotations

import csv
import errno
import os
import runpy
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger

from longseq.core import domain as domains
from longseq.core import files
from longseq.core.checkpoints.safe import load_checkpoint
from longseq.core.errors import ConfigError, DataError, LongseqError
from longseq.core.shell.cli import main
from longseq.core.training.folders import (
    claim_version,
    loggers_of,
    nothing_left,
    resumed_folder,
)
from longseq.core.training.guards import StopAtTime, seconds_of
from longseq.core.training.run import fit

HELPER = Path(__file__).parent / "fake_domain.py"


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.chdir(tmp_path)
    module: ModuleType = runpy.run_path(str(HELPER))["install"]()
    yield module
    domains.unregister_domain("toy")


class Stop(Callback):
    """Ends a training after a step: as a signal does, or as SIGKILL does, with nothing written."""

    def __init__(self, step: int, kill: bool = False) -> None:
        self.step, self.kill = step, kill

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            if self.kill:
                raise RuntimeError("killed")
            os.kill(os.getpid(), signal.SIGTERM)


def run(toy: ModuleType, out: str, **options: Any) -> Any:
    torch.manual_seed(3)
    options = {"val_check_interval": 3, "log_every_n_steps": 1, **options}
    steps = options.pop("max_steps", 9)
    return fit(toy.ToyTask(), toy.ToyData(), out, steps, progress="lines", **options)


def metrics(folder: str | Path) -> dict[tuple[str, str], str]:
    """Returns what was logged by step and name, times apart; twice the same is an error."""
    found: dict[tuple[str, str], str] = {}
    with (Path(folder) / "metrics.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            for name, value in row.items():
                if value and name not in ("step", "epoch") and "_per_s" not in name:
                    assert (row["step"], name) not in found
                    found[row["step"], name] = value
    return found


@pytest.mark.parametrize("kill", [False, True])
@pytest.mark.filterwarnings("ignore:.*exists and is not empty")
def test_a_resumed_run_ends_as_a_whole_one(toy: ModuleType, kill: bool) -> None:
    whole = run(toy, "whole")
    for step in (4, 7):
        last = Path("cut/fit/version_0/checkpoints/last.ckpt")
        resumed = {"ckpt_path": last} if last.exists() else {}
        with pytest.raises(RuntimeError if kill else LongseqError):
            run(toy, "cut", callbacks=[Stop(step, kill)], checkpoint_every=2, **resumed)
    again = run(toy, "cut", ckpt_path="last")
    assert [one.name for one in Path("cut/fit").iterdir()] == ["version_0"]
    assert sorted(one.name for one in again.last.parent.iterdir()) == ["best.ckpt", "last.ckpt"]
    assert again.folder == Path("cut/fit/version_0") and again.best.name == "best.ckpt"
    for name in ("best.ckpt", "last.ckpt"):
        one, two = (load_checkpoint(run.last.with_name(name)) for run in (whole, again))
        assert one["global_step"] == two["global_step"]
        for key, value in one["state_dict"].items():
            assert torch.equal(value, two["state_dict"][key])
    one, two = metrics(whole.folder), metrics(again.folder)
    assert {key: two[key] for key in two if key in one} == {k: one[k] for k in one if k in two}
    # A killed run loses what its last step before the checkpoint would have logged, no more.
    assert {step for step, _ in set(one) - set(two)} <= ({"3", "5"} if kill else set())
    assert set(two) <= set(one) and (again.folder / "loss_curve.png").is_file()


@pytest.mark.parametrize("steps", [3, 5])
def test_a_finished_run_that_goes_on_counts_its_steps(toy: ModuleType, steps: int) -> None:
    whole = run(toy, "whole")
    run(toy, "more", max_steps=steps)
    again = run(toy, "more", ckpt_path="last")
    for name in ("train/loss", "train/lr"):
        every = [str(step) for step in range(9)]
        for made in (whole, again):
            assert [step for step, key in metrics(made.folder) if key == name] == every


def test_the_best_is_not_forgotten(toy: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    worse = count(1)

    def compute(self: Any, batch: Any, inner: Any = toy.ToyTask.compute) -> Any:
        out = inner(self, batch)
        return out if self.training else {**out, "loss": torch.tensor(float(next(worse)))}

    monkeypatch.setattr(toy.ToyTask, "compute", compute)
    with pytest.raises(LongseqError):
        run(toy, "cut", callbacks=[Stop(7)], num_sanity_val_steps=0)
    Path("cut").rename("moved")
    again = run(toy, "moved", ckpt_path="last", num_sanity_val_steps=0)
    assert load_checkpoint(again.best)["global_step"] == 3
    assert again.best == Path("moved/fit/version_0/checkpoints/best.ckpt")


def test_which_folder_a_run_goes_on_in(toy: ModuleType) -> None:
    first = run(toy, "out")
    assert resumed_folder(first.last, "out", None) == first.folder.resolve()
    assert resumed_folder(first.last, "out", "fit") == first.folder.resolve()
    assert resumed_folder(first.last, "out", "other") is None
    assert resumed_folder(first.last, "elsewhere", None) is None
    assert resumed_folder(first.best, "out", None) is None  # a fork: what came after it stays
    assert resumed_folder(None, "out", None) is None
    copy = Path("last.ckpt")
    copy.write_bytes(first.last.read_bytes())
    assert resumed_folder(copy, "out", None) is None
    assert run(toy, "out", ckpt_path=first.best).folder == Path("out/fit/version_1")


def test_a_version_that_another_run_takes_meanwhile_is_left_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # All that is there is seen too late: as if others had claimed 0 … 2 in between.
    for number in range(3):
        (tmp_path / f"version_{number}").mkdir()
    monkeypatch.setattr(Path, "glob", lambda *_: iter(()))
    assert claim_version(tmp_path) == 3


def test_versions_are_claimed_once(tmp_path: Path) -> None:
    found: list[int] = []
    folder = tmp_path / "name"
    folder.mkdir()
    (folder / "version_4").mkdir()
    (folder / "version_x").mkdir()
    threads = [
        threading.Thread(target=lambda: found.append(claim_version(folder))) for _ in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == list(range(5, 21))
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be written"):
        claim_version(tmp_path / "file")


def test_two_cannot_go_on_in_one_folder(toy: ModuleType) -> None:
    folder = run(toy, "out").folder.resolve()
    board, _ = loggers_of("out", "fit", folder)
    with pytest.raises(DataError, match="another run is writing here"):
        loggers_of("out", "fit", folder)
    board.finalize("success")
    loggers_of("out", "fit", folder)[0].finalize("success")


def test_temporary_files_of_the_dead_are_swept(tmp_path: Path) -> None:
    code = "import os, sys; from longseq.core.files import atomic_path\n"
    code += "with atomic_path(sys.argv[1]): os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", code, tmp_path / "last.ckpt"], check=False)
    (left,) = tmp_path.iterdir()
    mine = tmp_path / f".last.{files._HOST}-{os.getpid()}-abcdefgh.ckpt"
    other = tmp_path / ".last.00000000-1-abcdefgh.ckpt"
    old = tmp_path / ".last.00000000-2-abcdefgh.ckpt"
    user = tmp_path / ".last.hidden.ckpt"
    for file in (mine, other, old, user):
        file.touch()
    os.utime(old, (0, 0))
    files.sweep.cache_clear()
    with files.atomic_path(tmp_path / "next.txt") as temporary:
        temporary.write_text("x")
    kept = {mine.name, other.name, user.name, "next.txt"}
    assert {file.name for file in tmp_path.iterdir()} == kept and left.name not in kept


def test_a_new_version_sweeps_what_killed_runs_left_in_theirs(tmp_path: Path) -> None:
    checkpoints = tmp_path / "version_0" / "checkpoints"
    checkpoints.mkdir(parents=True)
    (tmp_path / "version_notes.txt").touch()
    code = "import os, sys; from longseq.core.files import atomic_path\n"
    code += "with atomic_path(sys.argv[1]): os.kill(os.getpid(), 9)"
    for place in (checkpoints / "last.ckpt", checkpoints.parent / "loss_curve.png"):
        subprocess.run([sys.executable, "-c", code, place], check=False)
    (checkpoints / "best.ckpt").touch()
    assert len(list(tmp_path.rglob(".*"))) == 2
    assert claim_version(tmp_path) == 1
    left = {str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if file.is_file()}
    assert left == {"version_notes.txt", "version_0/checkpoints/best.ckpt"}


def test_time_is_this_attempts(toy: ModuleType) -> None:
    whole = run(toy, "whole")
    for step in (4, 8):  # a fifth step would take a second too
        resumed = {"ckpt_path": "last"} if step == 8 else {}
        ticks = count()
        stop = StopAtTime("4s", clock=lambda ticks=ticks: float(next(ticks)))
        with pytest.raises(LongseqError, match=f"4s are over: stopped after step {step}") as error:
            run(toy, "cut", callbacks=[stop], **resumed)
        assert error.value.status == 75
    again = run(toy, "cut", ckpt_path="last")
    for name, value in load_checkpoint(whole.last)["state_dict"].items():
        assert torch.equal(value, load_checkpoint(again.last)["state_dict"][name])


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("45m", 2700),
        ("3.5h", 12600),
        ("1d", 86400),
        ("1:00:01", 3601),
        ("02:00:00:00", 172800),
    ],
)
def test_times(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "10", "x", "-5s", "nans", "infh", "1:2", "1:2:3:4:5"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(ConfigError, match="max_time"):
        seconds_of(text)


def test_a_requeued_job_types_the_same_command(toy: ModuleType) -> None:
    command = ["toy", "fit", "--ckpt_path=auto", "--name=job", "--trainer.max_steps=6"]
    assert main([*command, "--max_time=0.000001s"]) == 75
    first = load_checkpoint("outputs/toy/job/version_0/checkpoints/last.ckpt")
    assert first["global_step"] == 1
    assert main([*command, "--max_time=1h"]) == 0
    last = load_checkpoint("outputs/toy/job/version_0/checkpoints/last.ckpt")
    assert last["global_step"] == 6
    assert [one.name for one in Path("outputs/toy/job").iterdir()] == ["version_0"]
    config = Path("outputs/toy/job/version_0/config.yaml").read_text()
    assert "max_steps: 6" in config


def test_a_link_to_nothing_is_named(tmp_path: Path) -> None:
    """``mkdir`` says of it that the file exists."""
    (tmp_path / "out").symlink_to(tmp_path / "gone")
    for folder in (tmp_path / "out", tmp_path / "out" / "fit"):
        with pytest.raises(DataError, match=r"out: cannot be written: is a link to .*gone, which"):
            claim_version(folder)
    (tmp_path / "gone").mkdir()
    assert claim_version(tmp_path / "out" / "fit") == 0


def test_a_refusal_on_many_ranks_asks_no_other_rank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every rank ends by the same signal: a rank that then asks another one waits, or ends with
    another status than the signal's."""
    trainer = Trainer(default_root_dir=tmp_path, logger=CSVLogger(tmp_path, "a"), accelerator="cpu")

    def gone(*args: object, **kwargs: object) -> None:
        raise RuntimeError("Connection closed by peer")

    monkeypatch.setattr(trainer.strategy, "broadcast", gone)
    folder = Path(trainer.loggers[0].log_dir or "")
    folder.mkdir(parents=True)
    with pytest.raises(LongseqError, match=r"^stopped$"), nothing_left(trainer):
        raise LongseqError("stopped")
    assert not folder.exists()


def test_a_log_on_a_full_disk_is_one_line(
    toy: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Loggers write by themselves, and name no file."""

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(CSVLogger, "save", full)
    argv = ["toy", "fit", "--trainer.max_steps=2", "--trainer.log_every_n_steps=1", "--name=a"]
    assert main(argv) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("error: ") and "/a/version_0: cannot be written: no space is" in told


def test_overfitting_has_the_same_batches_in_every_epoch(toy: ModuleType) -> None:
    """Resumed in the middle of an epoch, too."""
    for steps, more in ((5, {}), (7, {"ckpt_path": "last"})):
        torch.manual_seed(0)
        task = toy.ToyTask()
        few: dict[str, Any] = {"overfit_batches": 2, "val_check_interval": 2, **more}
        fit(task, toy.ToyData(), "few", steps, progress="lines", **few)
        assert task.trained == ([1, 0] if more else [0, 1, 0, 1, 0])
