"""Signals end a training with its last step kept; numbers that are not finite end it before they
reach the weights."""

from __future__ import annotations

import os
import runpy
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from longseq.core import domain as domains
from longseq.core.checkpoints.safe import load_checkpoint, save_weights
from longseq.core.errors import DataError, LongseqError
from longseq.core.shell.cli import main
from longseq.core.training.guards import StopOnNotFinite, StopOnSignal, first_not_finite
from longseq.core.training.run import fit

HELPER = Path(__file__).parent / "fake_domain.py"


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.chdir(tmp_path)
    module: ModuleType = runpy.run_path(str(HELPER))["install"]()
    yield module
    domains.unregister_domain("toy")


class Signal(Callback):
    """Sends this process a signal in the middle of a step."""

    def __init__(self, signum: int, step: int) -> None:
        self.signum, self.step = signum, step

    def on_before_optimizer_step(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), self.signum)


def run(toy: ModuleType, out: str, **options: Any) -> Any:
    torch.manual_seed(3)
    return fit(toy.ToyTask(), toy.ToyData(), out, 9, progress="lines", **options)


def weights(path: str | Path) -> dict[str, Any]:
    found: dict[str, Any] = load_checkpoint(path)["state_dict"]
    return found


@pytest.mark.parametrize(
    ("signum", "status"),
    [
        (signal.SIGTERM, 143),
        (signal.SIGINT, 130),
        (signal.SIGHUP, 129),
        (signal.SIGUSR1, 138),
        (signal.SIGUSR2, 140),
        (signal.SIGXCPU, 152),
    ],
)
def test_a_signal_keeps_the_step(toy: ModuleType, signum: int, status: int) -> None:
    before = signal.getsignal(signum)
    whole = run(toy, "whole")
    with pytest.raises(LongseqError, match=r"stopped after step 5; go on with --ckpt_path") as stop:
        run(toy, "cut", callbacks=[Signal(signum, 4)])
    assert stop.value.status == status
    assert signal.getsignal(signum) == before
    last = Path("cut/fit/version_0/checkpoints/last.ckpt")
    assert load_checkpoint(last)["global_step"] == 5
    again = run(toy, "cut", ckpt_path=last)
    for name, value in weights(whole.last).items():
        assert torch.equal(value, weights(again.last)[name]), name


def test_a_slurm_job_is_stopped_and_resumed_by_nobody_else(
    toy: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Lightning would write hpc_ckpt_1.ckpt on SIGUSR1, call scontrol, train on, and take up what
    lies there in the next run of any name."""
    for name, value in {"ID": "7", "NAME": "job", "NTASKS": "1", "PROCID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{'JOB_' if name in ('ID', 'NAME') else ''}{name}", value)
    monkeypatch.setenv("SLURM_LOCALID", "0")
    monkeypatch.setenv("SLURM_NODEID", "0")
    with pytest.raises(LongseqError, match="SIGUSR1: stopped after step 5") as stop:
        run(toy, "out", callbacks=[Signal(signal.SIGUSR1, 4)])
    assert stop.value.status == 138
    assert not list(Path("out").rglob("hpc_ckpt*"))
    last = Path("out/fit/version_0/checkpoints/last.ckpt")
    Path("out/hpc_ckpt_1.ckpt").write_bytes(last.read_bytes())
    fresh = run(toy, "out", name="other")
    whole = run(toy, "elsewhere")
    assert "hpc_ckpt" not in capsys.readouterr().err
    for name, value in weights(whole.last).items():
        assert torch.equal(value, weights(fresh.last)[name]), name
    assert main(["toy", "fit", "--trainer.max_steps=2", "--trainer.default_root_dir=out"]) == 0
    assert load_checkpoint("out/fit/version_1/checkpoints/last.ckpt")["global_step"] == 2


def test_what_is_ignored_stays_ignored(toy: ModuleType) -> None:
    """``nohup`` ignores SIGHUP, a shell's job in the background SIGINT."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert run(toy, "out", callbacks=[Signal(signal.SIGHUP, 4)]).last is not None
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_ctrl_c_is_heard_after_a_training_that_it_ended(toy: ModuleType) -> None:
    class Impatient(Callback):
        def on_train_batch_start(self, *args: Any) -> None:
            raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit):  # Lightning's, which has Ctrl-C ignored from then on
        run(toy, "out", callbacks=[Impatient()])
    assert signal.getsignal(signal.SIGINT) is before is not signal.SIG_IGN


def test_a_handler_of_the_users_stays(toy: ModuleType) -> None:
    got: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: got.append(number))
    try:
        run(toy, "out", callbacks=[Signal(signal.SIGUSR1, 4)])
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert got == [signal.SIGUSR1]


class Twice(Signal):
    """Sends it twice in one step: a scheduler and a launcher, or an impatient user."""

    def on_before_optimizer_step(self, trainer: Trainer, *args: Any) -> None:
        super().on_before_optimizer_step(trainer, *args)
        super().on_before_optimizer_step(trainer, *args)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGXCPU])
def test_a_second_signal_changes_nothing(toy: ModuleType, signum: int) -> None:
    with pytest.raises(LongseqError, match="stopped after step 5"):
        run(toy, "out", callbacks=[Twice(signum, 4)])


def test_a_second_ctrl_c_acts_at_once(toy: ModuleType, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):  # Lightning's
        run(toy, "out", callbacks=[Twice(signal.SIGINT, 4)], checkpoint_every=2)
    text = capfd.readouterr().err
    assert "SIGINT again: stopping at once; " in text and "last.ckpt holds step 4" in text
    signal.signal(signal.SIGINT, signal.default_int_handler)
    assert load_checkpoint("out/fit/version_0/checkpoints/last.ckpt")["global_step"] == 4


class InValidation(Callback):
    """Sends SIGTERM in the validation after a step, and looks whether the step is kept while it
    still runs."""

    def __init__(self, step: int) -> None:
        self.step, self.kept = step, -1

    def on_validation_batch_start(self, trainer: Trainer, *args: Any) -> None:
        last = Path("cut/fit/version_0/checkpoints/last.ckpt")
        if trainer.global_step == self.step and not trainer.sanity_checking:
            if args[2] == 0:
                os.kill(os.getpid(), signal.SIGTERM)
            elif last.exists():
                self.kept = int(load_checkpoint(last)["global_step"])
                shutil.copytree("cut", "killed", dirs_exist_ok=True)


def test_a_signal_in_a_long_validation_keeps_the_step_at_once(toy: ModuleType) -> None:
    """A validation may be longer than the time that a scheduler leaves."""
    whole = run(toy, "whole", val_check_interval=4)
    there = InValidation(4)
    with pytest.raises(LongseqError, match="SIGTERM: stopped after step 5"):
        run(toy, "cut", callbacks=[there], val_check_interval=4)
    assert there.kept == 4
    for root in ("cut", "killed"):  # the validation had its time, or was killed
        again = run(
            toy,
            root,
            ckpt_path=f"{root}/fit/version_0/checkpoints/last.ckpt",
            val_check_interval=4,
        )
        for name, value in weights(whole.last).items():
            assert torch.equal(value, weights(again.last)[name]), (root, name)


class AtTheEnd(Callback):
    """Sends this process SIGTERM after the last step."""

    def on_train_epoch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == 9:
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_after_the_last_step_is_not_lost(toy: ModuleType) -> None:
    """What comes after the training (a demo's next part) would go on as if nobody had asked."""
    whole = run(toy, "whole")
    with pytest.raises(LongseqError, match=r"SIGTERM: stopped after step 9; go on with") as stop:
        run(toy, "cut", callbacks=[AtTheEnd()])
    assert stop.value.status == 143
    last = Path("cut/fit/version_0/checkpoints/last.ckpt")
    again = run(toy, "cut", ckpt_path=last)
    for name, value in weights(whole.last).items():
        assert torch.equal(value, weights(again.last)[name]), name
    rows = [(one.folder / "metrics.csv").read_text().splitlines() for one in (whole, again)]
    assert [row.split(",")[:2] for row in rows[0]] == [row.split(",")[:2] for row in rows[1]]


def test_the_command_line_tells_the_scheduler(
    toy: ModuleType, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    start = StopOnSignal.on_train_start

    def at_once(self: Any, *args: Any) -> None:
        start(self, *args)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(StopOnSignal, "on_train_start", at_once)
    assert (
        main(["toy", "fit", "--trainer.max_steps=6", "--trainer.accumulate_grad_batches=2"]) == 143
    )
    text = capfd.readouterr().err
    assert "SIGTERM: stopping at the end of this step" in text
    assert "error: SIGTERM: stopped after step 1; go on with --ckpt_path" in text


class Poison(Callback):
    """Puts a NaN into one row of one step's batch, or into one gradient."""

    def __init__(self, step: int, gradient: bool = False) -> None:
        self.step, self.gradient = step, gradient

    def on_train_batch_start(self, trainer: Trainer, task: Any, batch: Any, index: int) -> None:
        if trainer.global_step == self.step and not self.gradient:
            batch["input_ids"][1, 2] = float("nan")

    def on_after_backward(self, trainer: Trainer, task: Any) -> None:
        if trainer.global_step == self.step and self.gradient:
            task.head.weight.grad[0, 0] = float("inf")


@pytest.mark.parametrize(
    ("gradient", "where"),
    [(False, "the input, row 1 of the batch"), (True, "the gradient of head.weight")],
)
def test_numbers_that_are_not_finite_reach_no_weight(
    toy: ModuleType, gradient: bool, where: str
) -> None:
    with pytest.raises(
        LongseqError, match=f"step 5: not a finite number, first in {where}"
    ) as stop:
        run(toy, "out", callbacks=[Poison(4, gradient)], checkpoint_every=2)
    assert stop.value.status == 2 and "last.ckpt" in str(stop.value)
    content = load_checkpoint("out/fit/version_0/checkpoints/last.ckpt")
    assert content["global_step"] == 4
    assert all(bool(value.isfinite().all()) for value in content["state_dict"].values())


@pytest.mark.parametrize("last", [False, True])
def test_what_was_not_looked_at_yet_is_before_it_is_kept(
    toy: ModuleType, monkeypatch: pytest.MonkeyPatch, last: bool
) -> None:
    """On a GPU gradients are looked at every few steps; a checkpoint may be due in between."""

    class Later(StopOnNotFinite):
        def on_before_optimizer_step(self, trainer: Any, task: Any, optimizer: Any) -> None:
            there = SimpleNamespace(device=SimpleNamespace(type="cuda"), parameters=task.parameters)
            super().on_before_optimizer_step(trainer, there, optimizer)  # type: ignore[arg-type]

    monkeypatch.setattr("longseq.core.training.callbacks.StopOnNotFinite", Later)
    poison = Poison(8 if last else 4, gradient=True)
    with pytest.raises(LongseqError, match="not a finite number"):
        run(toy, "out", callbacks=[poison], checkpoint_every=4, limit_val_batches=0)
    content = load_checkpoint("out/fit/version_0/checkpoints/last.ckpt")
    assert content["global_step"] == poison.step
    assert all(bool(value.isfinite().all()) for value in content["state_dict"].values())


def test_a_rate_that_is_far_too_high_ends_with_status_2(
    toy: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["toy", "fit", "--trainer.max_steps=9", "--model.lr=1e30"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: step ") and "lower model.lr or look at the data" in error


def test_a_validation_loss_that_is_none_ends_a_training(
    toy: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compute(self: Any, batch: Any, inner: Any = toy.ToyTask.compute) -> Any:
        out = inner(self, batch)
        return out if self.training else {**out, "loss": out["loss"] * float("nan")}

    monkeypatch.setattr(toy.ToyTask, "compute", compute)
    with pytest.raises(LongseqError, match="before training: the validation loss is nan"):
        run(toy, "out")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [(lambda loss: loss.repeat(3), r"of shape \(3,\)"), (lambda loss: float(loss), r"is \d")],
)
def test_a_loss_that_is_not_one_number_is_named(
    toy: ModuleType, monkeypatch: pytest.MonkeyPatch, spoil: Any, said: str
) -> None:
    def compute(self: Any, batch: Any, inner: Any = toy.ToyTask.compute) -> Any:
        out = inner(self, batch)
        return {**out, "loss": spoil(out["loss"])}

    monkeypatch.setattr(toy.ToyTask, "compute", compute)
    with pytest.raises(LongseqError, match=f"ToyTask.compute's loss must be one number.*{said}"):
        run(toy, "out")


def test_the_first_layer_is_named(toy: ModuleType) -> None:
    task = toy.ToyTask()
    batch = {"input_ids": torch.ones(2, 3, 3), "step": torch.zeros(2)}
    assert first_not_finite(task, batch) == ""
    with torch.no_grad():
        task.head.bias[1] = float("nan")
    assert first_not_finite(task, batch) == "head, row 0 of the batch"
    assert StopOnNotFinite().every > 1  # a GPU is not waited for at every step


def test_weights_that_are_no_numbers_are_refused(toy: ModuleType) -> None:
    task = toy.ToyTask()
    with torch.no_grad():
        task.head.bias[1] = float("nan")
    save_weights("broken.safetensors", task, {})
    assert main(["toy", "fit", "--init_from", "broken.safetensors"]) == 2
    from longseq.core.checkpoints.safe import load_weights

    with pytest.raises(DataError, match=r"weights that are not numbers: head.bias \(the training"):
        load_weights("broken.safetensors", toy.ToyTask())
