"""A CPU budget ends a training, and its learning rates follow the time that is used up."""

from __future__ import annotations

import runpy
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from longseq.core import domain as domains
from longseq.core.errors import ConfigError
from longseq.core.tables import read_rows
from longseq.core.training.cpu_budget import CpuBudget, budget_values
from longseq.core.training.recipe import Recipe, find_object
from longseq.core.training.run import fit

HELPER = Path(__file__).parent / "fake_domain.py"


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.chdir(tmp_path)
    module: ModuleType = runpy.run_path(str(HELPER))["install"]()
    yield module
    domains.unregister_domain("toy")


class Clock:
    """A second for every look."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


class Rates(Callback):
    """Keeps the learning rate of every step."""

    def __init__(self) -> None:
        self.found: list[float] = []

    def on_before_optimizer_step(self, trainer: Trainer, *args: Any) -> None:
        self.found.append(trainer.optimizers[0].param_groups[0]["lr"])


def test_a_budget_ends_the_run_and_the_schedule(toy: ModuleType) -> None:
    torch.manual_seed(0)
    budget, rates = CpuBudget(20 / 60, warmup=0.2, clock=Clock()), Rates()
    task = toy.ToyTask()
    task.recipe = Recipe(lr=0.5, schedule="linear", min_lr_ratio=0.0)
    run = fit(
        task,
        toy.ToyData(),
        "out",
        10_000,
        progress="lines",
        limit_val_batches=0,
        callbacks=[budget, rates],
    )
    # Two looks a step: the time at the start of step n is 1 + 2 n seconds of 20.
    assert len(rates.found) == 10 and budget.steps == 10 and budget.used == 20
    falling = [0.5 * (1 - ((1 + 2 * n) / 20 - 0.2) / 0.8) for n in range(2, 10)]
    assert rates.found[2:] == pytest.approx(falling)
    assert rates.found[:2] == pytest.approx([0.5 * 501 / 2000, 0.5 * 1501 / 2000])
    assert run.metrics["train/cpu_seconds"] == 20 and run.metrics["train/steps"] == 10


class Validated(Callback):
    """Keeps the step of every validation."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def on_validation_start(self, trainer: Trainer, *args: Any) -> None:
        if not trainer.sanity_checking:
            self.steps.append(trainer.global_step)


def test_validations_come_at_equal_shares_of_the_budget(toy: ModuleType) -> None:
    torch.manual_seed(0)
    budget, seen = CpuBudget(20 / 60, clock=Clock(), validations=4), Validated()
    asked = {"check_val_every_n_epoch": None, "num_sanity_val_steps": 2, "val_check_interval": 1}
    callbacks = [seen, budget]
    run = fit(
        toy.ToyTask(), toy.ToyData(), "out", 99, progress="lines", callbacks=callbacks, **asked
    )
    # A step takes two seconds, and what is looked at before a validation one more.
    rows = [row for row in read_rows(run.folder / "metrics.csv") if row["val/loss"]]
    assert [int(row["step"]) + 1 for row in rows] == seen.steps == [3, 5, 7, 9]
    assert [float(row["val/cpu_seconds"]) for row in rows] == [7.0, 12.0, 17.0, 22.0]
    assert run.metrics["train/cpu_seconds"] == 21
    with pytest.raises(ConfigError, match="nothing to validate on"):
        own = [CpuBudget(1.0, validations=4)]
        fit(toy.ToyTask(), toy.ToyData(), "b", 9, limit_val_batches=0, callbacks=own)
    with pytest.raises(ConfigError, match="validations"):
        CpuBudget(1.0, validations=0)


def test_what_is_used_is_kept(toy: ModuleType) -> None:
    budget = CpuBudget(1.0)
    budget.load_state_dict({"used": 30.0})
    assert budget.state_dict() == {"used": 30.0}


def test_wrong_budgets_are_refused(toy: ModuleType) -> None:
    for minutes, warmup in ((0, 0.1), (-1, 0.1), (float("inf"), 0.1), (1, 1.0)):
        with pytest.raises(ConfigError, match="a budget needs minutes"):
            CpuBudget(minutes, warmup)
    task = toy.ToyTask()
    task.recipe = Recipe(schedule="torch.optim.lr_scheduler.ConstantLR")
    with pytest.raises(ConfigError, match="needs a schedule by name"):
        fit(task, toy.ToyData(), "out", 9, progress="lines", callbacks=[CpuBudget(1.0)])


def test_the_values_name_the_class() -> None:
    (own,) = budget_values(2.0)["callbacks"]
    made = find_object(own["class_path"], "callback")(**own["init_args"])
    assert isinstance(made, CpuBudget) and (made.minutes, made.validations) == (2.0, None)
    values = budget_values(2.0, 12)
    (own,) = values["callbacks"]
    assert own["init_args"] == {"minutes": 2.0, "validations": 12}
    assert "limit_val_batches" not in values and values["check_val_every_n_epoch"] is None
