"""Optimiser groups, schedule, length warm-up, hyper-parameters, random stream and loader."""

from __future__ import annotations

import json
import random
import runpy
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from longseq.core.errors import ConfigError
from longseq.core.training.callbacks import draw_loss_curve
from longseq.core.training.length_warmup import LengthWarmup
from longseq.core.training.loader import StepLoader, step_dataloader
from longseq.core.training.optim import parameter_groups
from longseq.core.training.recipe import Recipe
from longseq.core.training.rng import RngStream, get_rng_state, set_rng_state
from longseq.core.training.schedules import cosine_with_warmup


class _Mix(nn.Module):
    ssm_parameters = ("log_a", "inner.dt", "absent_skip")

    def __init__(self) -> None:
        super().__init__()
        self.log_a = nn.Parameter(torch.zeros(4, 3))
        self.inner = nn.Module()
        self.inner.dt = nn.Parameter(torch.zeros(4, 2))
        self.register_parameter("absent_skip", None)
        self.proj = nn.Linear(4, 4)


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.mix = _Mix()
        self.norm = nn.RMSNorm(4)
        self.head = nn.Linear(4, 5)
        self.head.weight = self.embed.weight
        self.frozen = nn.Parameter(torch.zeros(2, 2), requires_grad=False)
        self.positions = nn.Parameter(torch.zeros(2, 2))

    no_decay_parameters = ("positions",)


def test_every_parameter_is_in_exactly_one_group() -> None:
    net = _Net()
    groups = {group["name"]: group for group in parameter_groups(net, 1e-2, 0.1, 1e-3)}
    names = {id(p): name for name, p in net.named_parameters()}
    where = {names[id(p)]: group for group, content in groups.items() for p in content["params"]}
    assert where == {
        "embed.weight": "no_decay",
        "mix.log_a": "ssm",
        "mix.inner.dt": "ssm",
        "mix.proj.weight": "decay",
        "mix.proj.bias": "no_decay",
        "norm.weight": "no_decay",
        "head.bias": "no_decay",
        "positions": "no_decay",
    }
    assert sum(len(group["params"]) for group in groups.values()) == len(where)
    assert [groups[n]["weight_decay"] for n in ("decay", "no_decay", "ssm")] == [0.1, 0.0, 0.0]
    assert [groups[n]["lr"] for n in ("decay", "no_decay", "ssm")] == [1e-2, 1e-2, 1e-3]
    assert parameter_groups(net, 1e-2, 0.1)[-1]["lr"] == 1e-2


def test_a_wrong_ssm_parameter_is_an_error() -> None:
    mix = _Mix()
    mix.ssm_parameters = ("log_b",)
    with pytest.raises(ConfigError, match="log_b"):
        parameter_groups(mix, 1e-2, 0.1)
    with pytest.raises(ConfigError, match="no trainable"):
        parameter_groups(nn.ReLU(), 1e-2, 0.1)


def test_cosine_with_warmup_values() -> None:
    values = [cosine_with_warmup(step, 4, 12, 0.1) for step in range(15)]
    assert values[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert values[8] == pytest.approx(0.55)  # half way down
    assert values[12:] == pytest.approx([0.1, 0.1, 0.1])
    assert all(a >= b for a, b in pairwise(values[4:]))
    assert cosine_with_warmup(0, 0, 10) == 1.0
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    entry = Recipe(warmup_steps=4).make_schedule(optimizer, 12)
    assert entry["interval"] == "step"
    assert optimizer.param_groups[0]["lr"] == 0.5
    with pytest.raises(ConfigError):
        Recipe(warmup_steps=-1).make_schedule(optimizer, 12)
    with pytest.raises(ConfigError):
        Recipe(min_lr_ratio=2.0).make_schedule(optimizer, 12)


def test_length_warmup_keeps_the_tokens_of_a_batch() -> None:
    warmup = LengthWarmup(length=1024, batch_size=2, start_length=128, steps=300)
    found = [warmup.schedule(step) for step in (0, 99, 100, 199, 200, 299, 300, 10**6)]
    assert found == [
        (16, 128),
        (16, 128),
        (8, 256),
        (8, 256),
        (4, 512),
        (4, 512),
        (2, 1024),
        (2, 1024),
    ]
    assert LengthWarmup(64, 3).schedule(5) == (3, 64)
    assert LengthWarmup(96, 2, stages=[[0, 50], [10, 96]]).schedule(9) == (3, 50)
    assert LengthWarmup(1000, 1, start_length=300, steps=10).stages == [
        (0, 300),
        (5, 600),
        (10, 1000),
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        {"start_length": 8},
        {"steps": 8},
        {"start_length": 128, "steps": 4},
        {"stages": [[1, 8]]},
        {"stages": [[0, 8], [0, 16]]},
        {"stages": []},
        {"stages": [[0, 0]]},
        {"stages": [[0, 8]], "steps": 3, "start_length": 4},
    ],
)
def test_length_warmup_rejects(arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        LengthWarmup(64, 2, **arguments)


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
