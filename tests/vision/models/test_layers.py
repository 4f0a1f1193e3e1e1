"""What image models share: convolutions channels last, and the MLP in two passes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longseq.vision.models.layers import DropPath, add_branch, depthwise
from longseq.vision.models.pyramid import ExactMLP
from longseq.vision.models.vmamba import Stage


class Doubled(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(6, 6, 3, padding=1, groups=6),
        nn.Conv2d(6, 6, (1, 5), padding=(0, 2), groups=6, bias=False),
        nn.Conv2d(6, 6, 3, padding=1, groups=6, padding_mode="reflect"),
        nn.Conv2d(6, 6, 3, padding=2, dilation=2, groups=6),
        nn.Conv2d(6, 6, 3, padding=1, stride=2, groups=6),
        nn.Conv2d(6, 6, 3, groups=6),
        nn.Conv2d(6, 6, 2, padding=1, groups=6),
        nn.Conv2d(6, 6, 3, padding="same", groups=6),
        nn.Conv2d(6, 6, 3, padding=1, groups=3),
        nn.Conv2d(6, 12, 3, padding=1, groups=6),
        Doubled(6, 6, 3, padding=1, groups=6),
        nn.Sequential(nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.Identity()),
    ],
)
def test_the_depthwise_convolution_is_what_the_module_gives(conv: nn.Module) -> None:
    x = torch.randn(2, 5, 7, 6, dtype=torch.float64, requires_grad=True)
    conv = conv.double()
    leaves = [x, *conv.parameters()]
    for silu in (False, True):
        found = depthwise(conv, x, silu)
        wanted = conv(x.permute(0, 3, 1, 2))
        wanted = (F.silu(wanted) if silu else wanted).permute(0, 2, 3, 1)
        torch.testing.assert_close(found, wanted)
        for pair in zip(*(torch.autograd.grad(y.square().sum(), leaves) for y in (found, wanted))):
            torch.testing.assert_close(*pair)


@pytest.mark.parametrize("size", [(1, 1), (4, 5), (9, 9), (20, 30)])
def test_the_next_stage_gets_the_same_from_maps_of_any_size(size: tuple[int, int]) -> None:
    stage, x = Stage([], 12, 96).double(), torch.randn(2, *size, 12, dtype=torch.float64)
    here, below = stage(x)
    assert torch.equal(here, x)
    wanted = stage.downsample(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    torch.testing.assert_close(below, wanted)
    seen: list[str] = []
    stage.downsample[1].register_forward_hook(lambda *_: seen.append("conv"))  # type: ignore[operator]
    torch.testing.assert_close(stage(x)[1], wanted)
    assert seen == ["conv"]
    last = Stage([], 12, None)(x.float())
    assert torch.equal(last[0], x.float()) and torch.equal(last[1], x.float())


@pytest.mark.parametrize(
    "other",
    [
        {"dilation": 2, "padding": 2},
        {"groups": 2, "padding": 1},
        {"padding": 1, "padding_mode": "reflect"},
        {"padding": 0},
    ],
)
def test_another_convolution_in_front_of_the_next_stage(other: dict[str, Any]) -> None:
    stage, x = Stage([], 12, 96).double(), torch.randn(2, 5, 4, 12, dtype=torch.float64)
    assert isinstance(stage.downsample, nn.Sequential)
    stage.downsample[1] = nn.Conv2d(12, 96, 3, 2, **other).double()
    wanted = stage.downsample(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    torch.testing.assert_close(stage(x)[1], wanted)
    stage.downsample[0] = nn.BatchNorm2d(12).double().eval()
    stage.downsample[0].running_mean += 1
    wanted = stage.downsample(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    torch.testing.assert_close(stage(x)[1], wanted)


def test_hooks_of_identities_around_a_stage_are_heard() -> None:
    seen: list[int] = []
    for stage in (Stage([], 12, 96), Stage([], 12, None)):
        layer = stage.downsample
        first = layer[0] if isinstance(layer, nn.Sequential) else layer
        first.register_forward_hook(lambda *_: seen.append(1))
        stage(torch.randn(2, 4, 5, 12))
    assert len(seen) == 2


def test_hooks_of_the_convolution_and_the_maps_are_heard() -> None:
    conv, mlp = nn.Conv2d(6, 6, 3, padding=1, groups=6), ExactMLP(6, 8)
    seen: list[str] = []
    conv.register_forward_hook(lambda *_: seen.append("conv"))
    mlp.fc1.register_forward_hook(lambda *_: seen.append("fc1"))
    x = torch.randn(1, 3, 4, 6)
    depthwise(conv, x)
    mlp(x)
    assert seen == ["conv", "fc1"]


@pytest.mark.parametrize("grad", [False, True])
def test_the_mlp_is_two_maps_with_the_exact_gelu_between(grad: bool) -> None:
    mlp, x = ExactMLP(6, 8).double(), torch.randn(3, 4, 6, dtype=torch.float64)
    before = x.clone()
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(mlp(x), mlp.fc2(F.gelu(mlp.fc1(x))))
    assert torch.equal(x, before)
    with torch.autocast("cpu", torch.bfloat16), torch.set_grad_enabled(grad):
        narrow = mlp.float()
        torch.testing.assert_close(narrow(x.float()), narrow.fc2(F.gelu(narrow.fc1(x.float()))))


def test_torch_fx_traces_the_mlp_and_a_branch() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mlp, self.drop_path = ExactMLP(6, 12), DropPath(0.5)

        def forward(self, x: Tensor) -> Tensor:
            return add_branch(x, self.mlp(x), self.drop_path)

    block, x = Block().eval(), torch.randn(2, 5, 6)
    torch.testing.assert_close(torch.fx.symbolic_trace(block)(x), block(x), rtol=1e-5, atol=1e-6)
