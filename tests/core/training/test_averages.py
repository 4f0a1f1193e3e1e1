"""Lightning's averages of weights: the last checkpoint goes on from what was trained, also that of
a finished run."""

from __future__ import annotations

import os
import runpy
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging

from longseq.core import domain as domains
from longseq.core.errors import ConfigError, LongseqError
from longseq.core.training import seed_everything
from longseq.core.training.run import Run, fit

HELPER = Path(__file__).parent / "fake_domain.py"


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.chdir(tmp_path)
    module: ModuleType = runpy.run_path(str(HELPER))["install"]()
    yield module
    domains.unregister_domain("toy")


def _trained(
    toy: ModuleType,
    steps: int,
    averaged: bool = True,
    beside: tuple[Callback, ...] = (),
    **more: Any,
) -> Run:
    seed_everything(0)
    callbacks = [*([EMAWeightAveraging(decay=0.9)] if averaged else []), *beside]
    out = more.pop("out", f"run{steps}{averaged}")
    asked = {"val_check_interval": 3, "check_val_every_n_epoch": None, "callbacks": callbacks}
    return fit(toy.ToyTask(), toy.ToyData(), out, steps, progress="lines", **asked, **more)


def _content(run: Run) -> dict[str, Any]:
    assert run.last is not None
    return torch.load(run.last, weights_only=True)  # type: ignore[no-any-return]


@pytest.mark.parametrize("steps", [5, 7])  # at an epoch's end, and within one
def test_a_finished_run_goes_on_from_what_was_trained(toy: ModuleType, steps: int) -> None:
    ended, plain = _trained(toy, steps), _content(_trained(toy, steps, averaged=False))
    content = _content(ended)
    for name, value in plain["state_dict"].items():
        assert torch.equal(content["current_model_state"][name], value), name
    moved = [not torch.equal(content["state_dict"][n], v) for n, v in plain["state_dict"].items()]
    assert any(moved)  # what is tested and exported is the average
    longer = _content(_trained(toy, steps + 4, ckpt_path=ended.last))
    whole = _content(_trained(toy, steps + 4))
    for key in ("current_model_state", "state_dict"):
        for name, value in whole[key].items():
            torch.testing.assert_close(longer[key][name], value, rtol=0, atol=0)


class _InValidation(Callback):
    """Sends SIGTERM in the validation after step 3, and keeps a copy of what is there before its
    end: a scheduler may kill the run now."""

    def on_validation_batch_start(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == 3 and args[2] == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        elif trainer.global_step == 3 and not Path("killed").exists():
            shutil.copytree("cut", "killed")


def test_a_signal_in_a_validation_keeps_weights_and_averages_apart(toy: ModuleType) -> None:
    """A validation runs with the averages in the place of the weights."""
    whole = _content(_trained(toy, 7))
    with pytest.raises(LongseqError, match="SIGTERM: stopped after step 4"):
        _trained(toy, 7, beside=(_InValidation(),), out="cut")
    for root in ("killed", "cut"):
        last = f"{root}/fit/version_0/checkpoints/last.ckpt"
        again = _content(_trained(toy, 7, out=root, ckpt_path=last))
        for key in ("current_model_state", "state_dict"):
            torch.testing.assert_close(again[key], whole[key], rtol=0, atol=0)


def test_a_run_with_averages_does_not_go_on_without_them(
    toy: ModuleType, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its checkpoint has the averages where others have the weights."""
    ended = _trained(toy, 5)
    assert ended.last is not None
    file = Path(ended.last).parents[1] / "config.yaml"
    before = file.read_text()
    with pytest.raises(ConfigError, match=r"its run goes on from others.*EMAWeightAveraging"):
        _trained(toy, 9, averaged=False, out="run5True", ckpt_path=ended.last)
    assert file.read_text() == before  # what is refused changes nothing
    assert _trained(toy, 9, averaged=False, init_from=ended.last).last is not None
    stop = EarlyStopping("val/loss", patience=9)
    ended = _trained(toy, 5, averaged=False, beside=(stop,), out="stop")
    capfd.readouterr()
    _trained(toy, 7, averaged=False, beside=(stop,), out="stop", ckpt_path=ended.last)
    assert "note" not in capfd.readouterr().err
    _trained(toy, 9, averaged=False, out="stop", ckpt_path=ended.last)
    assert "note: the checkpoint's run had the callback EarlyStopping" in capfd.readouterr().err
