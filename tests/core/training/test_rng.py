"""The random generators of a run, its loader, its loss curve and its hyper-parameters."""

from __future__ import annotations

import json
import random
import runpy
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from longseq.core.errors import ConfigError
from longseq.core.training.callbacks import draw_loss_curve
from longseq.core.training.loader import EpochBatches, StepLoader, step_dataloader
from longseq.core.training.rng import RngStream, get_rng_state, set_rng_state, untouched_seed


def _draw() -> tuple[float, float, float]:
    return float(torch.rand(())), float(np.random.random()), random.random()  # noqa: NPY002


def test_rng_state_round_trip(tmp_path: Path) -> None:
    state = get_rng_state()
    before = _draw()
    torch.save(state, tmp_path / "rng.pt")
    set_rng_state(torch.load(tmp_path / "rng.pt", weights_only=True))
    assert _draw() == before


def test_rng_stream_ignores_what_is_drawn_outside() -> None:
    def run(noise: bool) -> list[tuple[float, float, float]]:
        torch.manual_seed(1)
        np.random.seed(1)  # noqa: NPY002
        random.seed(1)
        stream, drawn = RngStream(), []
        for step in range(4):
            stream.enter()
            drawn.append(_draw())
            stream.leave()
            if noise:
                _draw()
            if noise and step == 2:  # a checkpoint, and another process
                saved, stream = stream.state_dict(), RngStream()
                torch.manual_seed(99)
                stream.load_state_dict(saved)
        return drawn

    assert run(noise=False) == run(noise=True)


class _Steps:
    def __getitem__(self, step: int) -> torch.Tensor:
        return torch.tensor([step])


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_without_a_trainer(workers: int) -> None:
    before = torch.get_rng_state()
    loader = step_dataloader(_Steps(), 7, 5, num_workers=workers)
    assert [int(batch) for batch in loader] == [7, 8, 9]
    assert [int(batch) for batch in loader] == [10, 11, 12, 13, 14]
    assert loader.state_dict() == {"position": 15}
    assert len(loader) == 5
    assert torch.equal(before, torch.get_rng_state()), "the loader drew from the global generator"
    with pytest.raises(ConfigError):
        StepLoader(_Steps(), 0)


def test_loss_curve(tmp_path: Path) -> None:
    table = tmp_path / "metrics.csv"
    table.write_text("step,train/loss,val/loss\n0,1.0,\n1,0.5,\n1,,0.7\n")
    draw_loss_curve(table, tmp_path / "loss_curve.png")
    assert (tmp_path / "loss_curve.png").read_bytes().startswith(b"\x89PNG")
    table.write_text("step,lr\n0,1.0\n")
    draw_loss_curve(table, tmp_path / "none.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["loss_curve.png", "metrics.csv"]


@pytest.fixture
def toy() -> ModuleType:
    module: ModuleType = runpy.run_path(str(Path(__file__).with_name("fake_domain.py")))[
        "install"
    ]()
    return module


def test_hyper_parameters_are_those_of_the_most_derived_class(toy: ModuleType) -> None:
    task = toy.ToyTask(5, lr=0.5)
    assert dict(task.hparams) == {
        "width": 5,
        "dropout": 0.3,
        "lr": 0.5,
        "warmup_steps": 2,
        "_class_path": "longseq.toy.ToyTask",
    }
    json.dumps(dict(toy.ToyData(seed=3).hparams))
    with pytest.raises(ConfigError, match="'lr' must be"):
        toy.ToyTask(lr=torch.ones(1))


def test_the_seed_of_a_task_is_known_until_something_is_drawn(
    toy: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        assert untouched_seed() is None  # numpy and Python were not seeded
        monkeypatch.setenv("PL_GLOBAL_SEED", "3")
        assert untouched_seed() == 3 and toy.ToyTask(5).seed == 3
        torch.rand(1)
        assert untouched_seed() is None and toy.ToyTask(5).seed is None


def test_ranks_take_other_rows_of_the_same_steps() -> None:
    rows = np.arange(10)
    alone = EpochBatches(rows, 4, 3, lambda some, epoch: (sorted(some.tolist()), epoch))
    pair = [EpochBatches(rows, 2, 3, lambda some, epoch: some.tolist(), (r, 2)) for r in (0, 1)]
    assert alone.per_epoch == pair[0].per_epoch == 2
    for step in range(4):
        found, epoch = alone[step]
        assert epoch == step // 2 and found == sorted(pair[0][step] + pair[1][step])
    assert EpochBatches(rows[:1], 4, 0, lambda some, epoch: some.tolist())[5] == [0]
