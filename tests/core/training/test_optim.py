"""Optimiser groups, schedule, length warm-up, hyper-parameters, random stream and loader."""

from __future__ import annotations

import math
from copy import deepcopy
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from longseq.core.errors import ConfigError
from longseq.core.training.length_warmup import LengthWarmup
from longseq.core.training.muon import MuonAdamW
from longseq.core.training.optim import parameter_groups
from longseq.core.training.recipe import Recipe
from longseq.core.training.schedules import (
    constant_with_warmup,
    cosine_with_warmup,
    inverse_sqrt_with_warmup,
    linear_with_warmup,
    wsd,
)


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
    ("arguments", "says"),
    [
        ({"start_length": 8}, "needs both start_length and steps"),
        ({"steps": 8}, "needs both start_length and steps"),
        (
            {"start_length": 128, "steps": 4},
            r"start_length \(128\).* must not exceed length \(64\)",
        ),
        ({"stages": [[1, 8]]}, r"start at step 0 and ascend, got steps \[1\]"),
        ({"stages": [[0, 8], [0, 16]]}, r"got steps \[0, 0\]"),
        ({"stages": []}, r"got steps \[\]"),
        ({"stages": [[0, 0]]}, "length of a stage"),
        ({"stages": [[0, 129]]}, "a stage of length 129 exceeds the 128 tokens of a batch"),
        ({"stages": [[0, 8]], "start_length": 4}, "not both"),
        ({"stages": [[0, 8]], "steps": 3}, "not both"),
    ],
)
def test_length_warmup_rejects(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        LengthWarmup(64, 2, **arguments)


def test_the_longest_stage_that_a_batch_has_room_for() -> None:
    assert LengthWarmup(64, 2, stages=[[0, 128]]).schedule(0) == (1, 128)


def test_schedules_have_the_values_of_their_formulas() -> None:
    assert [linear_with_warmup(step, 2, 6) for step in range(8)] == pytest.approx(
        [0.5, 1, 1, 0.75, 0.5, 0.25, 0, 0]
    )
    assert linear_with_warmup(4, 2, 6, 0.5) == pytest.approx(0.75)
    assert [constant_with_warmup(step, 2, 6) for step in range(4)] == [0.5, 1, 1, 1]
    found = [inverse_sqrt_with_warmup(step, 4, 0) for step in (0, 3, 4, 15, 399)]
    assert found == pytest.approx([0.25, 1, math.sqrt(0.8), 0.5, 0.1])
    assert inverse_sqrt_with_warmup(399, 4, 0, 0.2) == 0.2
    assert inverse_sqrt_with_warmup(3, 0, 0) == pytest.approx(0.5)
    assert [wsd(step, 0, 10) for step in (0, 7, 8, 9, 10, 12)] == pytest.approx(
        [1, 1, 1, 0.5, 0, 0]
    )
    assert wsd(9, 2, 10, 0.5, 0.2) == pytest.approx(0.75)
    assert wsd(0, 2, 10) == 0.5


class _Turned(nn.Module):
    """A layer whose filters do not lie as (O, I, k, k), one of them a state-space parameter."""

    ssm_parameters = ("b", "rate")
    filter_axes = {"b": ((0, 2), (1,)), "c": ((3,), (2, 0, 1))}

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rate = nn.Parameter(torch.ones(3))
        self.plain = nn.Linear(4, 5)
        self.b = nn.Parameter(torch.randn(3, 4, 2))
        self.c = nn.Parameter(torch.randn(2, 3, 4, 5))


def test_groups_tell_the_axes_of_filters_that_lie_otherwise() -> None:
    layer = _Turned()
    groups = {group["name"]: group for group in parameter_groups(layer, 1e-2, 0.1, 1e-3)}
    for name, parameter in (("ssm", layer.b), ("decay", layer.c)):
        ((place, axes),) = groups[name]["filter_axes"].items()
        assert groups[name]["params"][place] is parameter
        assert axes == _Turned.filter_axes["b" if name == "ssm" else "c"]
    assert "filter_axes" not in groups["no_decay"]


def test_muon_takes_a_filter_that_lies_otherwise_as_the_matrix_that_it_is() -> None:
    layer = _Turned()
    twins = [
        nn.Parameter(layer.b.detach().permute(0, 2, 1).flatten(0, 1).clone()),
        nn.Parameter(layer.c.detach().permute(3, 2, 0, 1).flatten(1).clone()),
    ]
    ours = MuonAdamW(parameter_groups(layer, 1e-2, 0.1, 1e-3), lr=1e-2)
    theirs = MuonAdamW([{"params": twins, "name": "decay", "weight_decay": 0.1}], lr=1e-2)
    again = _Turned()
    resumed = MuonAdamW(parameter_groups(again, 1e-2, 0.1, 1e-3), lr=1e-2)
    for step in range(4):
        if step == 2:
            again.load_state_dict(layer.state_dict())
            resumed.load_state_dict(deepcopy(ours.state_dict()))
        for module, optimizer in ((layer, ours), (again, resumed)):
            torch.manual_seed(step)
            for parameter in module.parameters():
                parameter.grad = torch.randn_like(parameter)
            optimizer.step()
        twins[0].grad = layer.b.grad.permute(0, 2, 1).flatten(0, 1)
        twins[1].grad = layer.c.grad.permute(3, 2, 0, 1).flatten(1)
        theirs.step()
    assert torch.allclose(twins[0], layer.b.permute(0, 2, 1).flatten(0, 1), atol=1e-6)
    assert torch.allclose(twins[1], layer.c.permute(3, 2, 0, 1).flatten(1), atol=1e-6)
    assert all(torch.equal(*pair) for pair in zip(layer.parameters(), again.parameters()))
    taken = {id(p): group["name"] for group in ours.param_groups for p in group["params"]}
    assert taken[id(layer.b)] == "muon_ssm" and taken[id(layer.c)] == "muon"
    assert taken[id(layer.rate)] == "ssm" and taken[id(layer.plain.weight)] == "muon"
