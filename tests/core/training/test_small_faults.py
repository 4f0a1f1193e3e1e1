"""Small faults of the training that a sample of mutants found unnoticed (docs/reliability.md)."""

from __future__ import annotations

import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from longseq.core.errors import ConfigError, DataError
from longseq.core.training.callbacks import StepLog
from longseq.core.training.cpu_budget import CpuBudget
from longseq.core.training.guards import first_not_finite
from longseq.core.training.length_buckets import LengthBuckets
from longseq.core.training.loader import data_ranks
from longseq.core.training.loading import check_domain
from longseq.core.training.muon import MuonAdamW
from longseq.core.training.task import BaseTask


def _trainer(step: int, total: float) -> Any:
    return SimpleNamespace(
        is_global_zero=True,
        estimated_stepping_batches=total,
        lightning_module=SimpleNamespace(),
        callback_metrics={"train/loss": torch.tensor(0.5)},
        global_step=step,
    )


def test_progress_lines_say_how_far_and_not_too_often(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("longseq.core.training.callbacks.time.monotonic", lambda: now[0])
    monkeypatch.setattr("longseq.core.training.callbacks.rate_name", lambda _: "train/x_per_s")
    log = StepLog(10.0)
    for now[0], step, total in ((100.0, 1, 12), (105.0, 2, 12), (111.0, 3, 12)):
        log._line(_trainer(step, total))
    log._line(_trainer(4, float("inf")), force=True)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"step {one}  train/loss 0.5" for one in ("1/12", "3/12", "4")]


def test_a_batch_may_hold_what_is_no_tensor() -> None:
    class Task(nn.Module):
        def compute(self, batch: Any) -> dict[str, torch.Tensor]:
            return {"loss": batch["x"].sum()}

    batch = {"name": ["a", "b"], "n": 3, "x": torch.tensor([[1.0], [float("nan")]])}
    task: Any = Task()
    assert first_not_finite(task, batch) == "the input, row 1 of the batch"


def test_as_many_shares_as_lengths() -> None:
    for shares in ([1.0], [1.0] * 3):
        with pytest.raises(ConfigError, match="2 shares"):
            LengthBuckets([40, 40], 32, 16, 64, shares)


def test_a_budget_begins_with_no_step() -> None:
    budget = CpuBudget(1.0)
    assert (budget.steps, budget.used) == (0, 0.0)


def test_a_class_of_no_registered_domain_is_named_after_its_package(tmp_path: Path) -> None:
    made = type("Task", (), {"__module__": "longseq.elsewhere.task"})
    with pytest.raises(DataError, match="is a checkpoint of elsewhere, not of genomics"):
        check_domain(made, "genomics", tmp_path / "a.ckpt")
    check_domain(made, "elsewhere", tmp_path / "a.ckpt")
    check_domain(type("Task", (), {"__module__": "mine"}), "genomics", tmp_path / "a.ckpt")


def test_a_process_without_ranks_is_the_only_one() -> None:
    assert data_ranks(None) == (0, 1)
    ranks = {"rank": 1, "num_replicas": 2}
    trainer: Any = SimpleNamespace(strategy=SimpleNamespace(distributed_sampler_kwargs=ranks))
    assert data_ranks(trainer) == (1, 2)
    assert data_ranks(SimpleNamespace(strategy=SimpleNamespace())) == (0, 1)  # type: ignore[arg-type]


def test_the_recipe_is_shown_behind_own_arguments() -> None:
    class Task(BaseTask):
        def __init__(self, width: int = 1, depth: int = 1, **recipe: Any) -> None: ...

    names = list(inspect.signature(Task.__init__).parameters)
    assert names[:3] == ["self", "width", "depth"] and "lr" in names and "recipe" not in names


def test_muon_looks_ahead_unless_told() -> None:
    torch.manual_seed(0)
    start, slopes = torch.randn(4, 3), [torch.randn(4, 3) for _ in range(2)]

    def after(**options: Any) -> torch.Tensor:
        weight = nn.Parameter(start.clone())
        group = {"params": [weight], "name": "decay", "weight_decay": 0.0}
        optimizer = MuonAdamW([group], muon_lr=0.1, **options)
        for slope in slopes:
            weight.grad = slope.clone()
            optimizer.step()
        return weight.detach()

    assert torch.equal(after(), after(nesterov=True))
    assert not torch.allclose(after(), after(nesterov=False))
