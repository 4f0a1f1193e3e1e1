"""Lightning's averages of weights: the last checkpoint goes on from what was trained, also that of
a finished run."""

from __future__ import annotations

import runpy
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging

from longseq.core import domain as domains
from longseq.core.training import seed_everything
from longseq.core.training.run import Run, fit

HELPER = Path(__file__).parent / "fake_domain.py"


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.chdir(tmp_path)
    module: ModuleType = runpy.run_path(str(HELPER))["install"]()
    yield module
    domains.unregister_domain("toy")


def _trained(toy: ModuleType, steps: int, averaged: bool = True, **more: Any) -> Run:
    seed_everything(0)
    callbacks = [EMAWeightAveraging(decay=0.9)] if averaged else []
    out = f"run{steps}{averaged}"
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
