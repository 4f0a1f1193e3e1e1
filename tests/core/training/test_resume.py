"""A run killed with signal 9 and resumed ends with bit-equal weights and sees every batch once."""

from __future__ import annotations

import multiprocessing
import runpy
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

TOY = str(Path(__file__).with_name("toy.py"))


@pytest.fixture(scope="module")
def context() -> Any:
    """Processes forked from a clean one that has torch imported and no threads running."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lightning.pytorch", "longseq.core.training.callbacks"])
    return context


def _run(context: Any, **arguments: Any) -> int:
    """Runs ``toy.fit`` in a process of its own and returns its exit code."""
    process = context.Process(target=runpy.run_path, args=(TOY, {"ARGS": arguments}, "__kill__"))
    process.start()
    process.join()
    assert process.exitcode is not None
    return int(process.exitcode)


# 5 batches per epoch: kills in the middle of an epoch, right at its end, and just after a
# checkpoint.
CASES = [
    pytest.param({"kill_at": 8, "workers": 0}, id="mid-epoch"),
    pytest.param({"kill_at": 8, "workers": 2}, id="mid-epoch-2-workers"),
    pytest.param({"kill_at": 11, "workers": 0, "every": 5}, id="checkpoint-at-epoch-end"),
    pytest.param({"kill_at": 13, "workers": 0, "every": 1, "steps": 14}, id="every-step"),
    pytest.param(
        {"kill_at": 13, "workers": 2, "accumulate": 2, "every": 2, "steps": 9}, id="accumulate"
    ),
    pytest.param({"kill_at": 8, "workers": 0, "max_epochs": 3}, id="by-epochs"),
    pytest.param(
        {"kill_at": 11, "workers": 0, "max_epochs": 3, "every": 5}, id="by-epochs-at-epoch-end"
    ),
]


@pytest.mark.parametrize("case", CASES)
def test_kill_and_resume_is_bit_equal(case: dict[str, Any], context: Any, tmp_path: Path) -> None:
    case = dict(case)
    kill_at = case.pop("kill_at")
    whole, resumed = tmp_path / "whole.pt", tmp_path / "resumed.pt"
    assert _run(context, folder=str(tmp_path / "a"), out=str(whole), **case) == 0
    killed = _run(context, folder=str(tmp_path / "b"), kill_at=kill_at, **case)
    assert killed == -signal.SIGKILL
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["last.ckpt"]
    assert _run(context, folder=str(tmp_path / "b"), resume=True, out=str(resumed), **case) == 0
    one, two = torch.load(whole), torch.load(resumed)
    for name, value in one["weights"].items():
        assert torch.equal(value, two["weights"][name]), name
    for key, state in one["optimizer"].items():
        assert torch.equal(state["exp_avg_sq"], two["optimizer"][key]["exp_avg_sq"])
    assert one["trained"] == list(range(len(one["trained"])))
    assert two["trained"] == one["trained"][-len(two["trained"]) :]
    assert len(two["trained"]) < len(one["trained"])
    assert one["epoch"] == two["epoch"]
