"""Stochastic depth that puts only kept samples through a branch: what all samples would give."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from longseq.vision.models import layers as module
from longseq.vision.models.layers import DropPath, add_branch, with_branch
from longseq.vision.models.registry import create_model


def parts() -> nn.Sequential:
    torch.manual_seed(0)
    made = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 9), nn.GELU(), nn.Linear(9, 6))
    return made.double()


class Watched(nn.Module):
    """The linear map that notes how many samples it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.map, self.seen = nn.Linear(6, 6), list[int]()

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(len(x))
        return self.map(x)


def run(batch: int, seed: int, function: Any) -> tuple[Tensor, ...]:
    layers, drop = parts(), DropPath(0.5)
    x = torch.randn(batch, 3, 4, 6, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(seed)
    y = function(x, layers, drop)
    grads = torch.autograd.grad(y.sin().sum(), [x, *layers.parameters()])
    return x.detach(), y.detach(), *grads


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_results_and_gradients_are_those_of_all_samples(batch: int) -> None:
    kept = set()
    for seed in range({1: 12, 2: 12, 5: 40}[batch]):
        torch.manual_seed(100 + seed)
        found = run(batch, seed, lambda x, layers, drop: with_branch(x, tuple(layers), drop))
        torch.manual_seed(100 + seed)
        wanted = run(batch, seed, lambda x, layers, drop: add_branch(x, layers(x), drop))
        for one, other in zip(found, wanted):
            torch.testing.assert_close(one, other)
        kept.add(int((found[0] != found[1]).flatten(1).any(1).sum()))
    assert len(kept) > min(batch, 2)  # none, all, and of several some


def test_only_kept_samples_are_computed() -> None:
    layer, drop, x = Watched(), DropPath(0.5), torch.randn(4, 6)
    for _ in range(30):
        y = with_branch(x, (layer,), drop)
        moved = int((y != x).any(1).sum())
        assert (layer.seen.pop() if moved else 0) == moved
        assert not layer.seen
    with_branch(x, (layer,), drop.eval())
    assert layer.seen == [4]


def test_whoever_asks_for_the_whole_batch_gets_it() -> None:
    drop, x = DropPath(0.9), torch.randn(4, 6)
    for change in ("hook", "norm"):
        layer = Watched()
        if change == "hook":
            layer.map.register_forward_hook(lambda *_: None)
        rest = (nn.BatchNorm1d(6),) if change == "norm" else ()
        for _ in range(5):
            with_branch(x, (layer, *rest), drop)
        assert layer.seen == [4] * 5


def test_a_branch_that_nobody_takes_has_gradients_of_zero() -> None:
    layer, x = nn.Linear(6, 6), torch.randn(1, 6, requires_grad=True)
    layer.bias.requires_grad_(False)
    y = with_branch(x, (layer,), DropPath(1 - 1e-12))
    y.sum().backward()
    assert torch.equal(y, x)
    assert torch.equal(x.grad, torch.ones(1, 6))  # type: ignore[arg-type]
    assert layer.weight.grad is not None
    assert not layer.weight.grad.any()
    assert layer.bias.grad is None
    (again,) = torch.autograd.grad(
        with_branch(x, (layer,), DropPath(1 - 1e-12)).sum(), layer.weight, create_graph=True
    )
    (found,) = torch.autograd.grad(again.square().sum(), layer.weight)
    assert not found.any()


def test_lower_precision_and_transforms() -> None:
    layers, drop, x = parts().float(), DropPath(0.5), torch.randn(6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(4):
            assert with_branch(x, tuple(layers), drop).dtype == torch.float32
    run = torch.func.vmap(lambda x: with_branch(x, (layers,), drop), randomness="different")
    assert run(x[:, None]).shape == (6, 1, 6)
    compiled = torch.compile(with_branch, backend="aot_eager")
    assert compiled(x, (layers,), drop).shape == (6, 6)


@pytest.mark.parametrize("name", ["vmamba_pico", "vmamba_nano"])
def test_a_model_trains_as_it_did(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = create_model(name, num_classes=3, img_size=32, drop_path=0.5).double()
    other, x = copy.deepcopy(model), torch.randn(3, 3, 32, 32, dtype=torch.float64)
    torch.manual_seed(1)
    found = model(x)
    found.sin().sum().backward()
    monkeypatch.setattr(module, "_by_sample", lambda _: False)
    torch.manual_seed(1)
    wanted = other(x)
    wanted.sin().sum().backward()
    torch.testing.assert_close(found, wanted)
    for (key, one), two in zip(model.named_parameters(), other.parameters()):
        torch.testing.assert_close(one.grad, two.grad, rtol=1e-6, atol=1e-9, msg=key)
