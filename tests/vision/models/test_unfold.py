"""Convolutions as one product: torch's results, gradients, derivatives of them, transforms."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from longseq.vision.models.unfold import unfoldable, unfolded
from longseq.vision.models.vmamba import Stage

CONVS = [
    nn.Conv2d(6, 10, 3, 2, 1),
    nn.Conv2d(6, 10, (3, 2), (2, 1), 1),
    nn.Conv2d(6, 10, 2, 2),
    nn.Conv2d(6, 10, 1, 1, bias=False),
    nn.Conv2d(6, 4, 5, (1, 3), (2, 0)),
]


@pytest.mark.parametrize("memory", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("size", [(7, 7), (6, 5), (5, 8)])
@pytest.mark.parametrize("conv", CONVS)
def test_a_convolution_as_one_product(conv, size, memory) -> None:
    x = torch.randn(2, *size, 6, dtype=torch.float64, requires_grad=True)
    conv = conv.double().to(memory_format=memory)
    leaves = [x, *conv.parameters()]
    found, wanted = unfolded(conv, x), conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    torch.testing.assert_close(found, wanted)
    for pair in zip(*(torch.autograd.grad(y.square().sum(), leaves) for y in (found, wanted))):
        torch.testing.assert_close(*pair)


def test_derivatives_of_derivatives_and_transforms() -> None:
    conv = nn.Conv2d(2, 3, 3, 2, 1).double().requires_grad_(False)
    x = torch.randn(2, 5, 4, 2, dtype=torch.float64, requires_grad=True)

    def run(x):
        return unfolded(conv, x).sin()

    assert torch.autograd.gradcheck(run, x, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(run, x)
    rows = torch.stack([x, 2 * x]).detach()
    torch.testing.assert_close(torch.vmap(run)(rows), torch.stack([run(one) for one in rows]))
    y, many = run(x), torch.randn(3, 2, 3, 2, 3, dtype=torch.float64)
    (found,) = torch.autograd.grad(y, x, many, is_grads_batched=True, retain_graph=True)
    for one, dy in zip(found, many):
        torch.testing.assert_close(one, torch.autograd.grad(y, x, dy, retain_graph=True)[0])


def test_what_is_more_than_a_plain_convolution_is_told() -> None:
    assert all(unfoldable(conv) for conv in CONVS)
    for other in (
        nn.Conv2d(4, 4, 3, groups=2),
        nn.Conv2d(4, 4, 3, dilation=2),
        nn.Conv2d(4, 4, 3, padding="same"),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        nn.Identity(),
    ):
        assert not unfoldable(other)
    hooked = nn.Conv2d(4, 4, 3)
    hooked.register_forward_hook(lambda *_: None)
    assert not unfoldable(hooked)


def test_a_trace_of_few_positions_is_saved(tmp_path: Path) -> None:
    stage, x = Stage((), 4, 8).eval(), torch.randn(1, 4, 4, 4)
    traced = torch.jit.trace(stage, x)
    torch.jit.save(traced, tmp_path / "stage.pt")
    loaded, more = torch.jit.load(tmp_path / "stage.pt"), torch.randn(2, 6, 5, 4)
    torch.testing.assert_close(loaded(more), stage(more))
