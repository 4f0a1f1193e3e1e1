"""Periodic edges: equal to F.pad's, whatever lies how, with all derivatives."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from longseq.core.errors import ArgumentError
from longseq.weather.video.periodic import PeriodicConv2d, wrap

LAST = torch.channels_last


def field(*shape: int) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize(
    ("shape", "reach"), [((2, 3, 4, 5), 1), ((2, 3, 4, 5), 4), ((1, 2, 1, 6), 1)]
)
@pytest.mark.parametrize("memory", [torch.contiguous_format, LAST])
def test_as_circular_padding_and_its_gradient(shape, reach, memory) -> None:
    x = field(*shape).contiguous(memory_format=memory).requires_grad_()
    expected = F.pad(x, (reach,) * 4, mode="circular")
    found = wrap(x, reach)
    assert torch.equal(found, expected) and found.is_contiguous(memory_format=memory)
    weight = field(*expected.shape).contiguous(memory_format=memory)
    (want,) = torch.autograd.grad(expected, x, weight)
    (have,) = torch.autograd.grad(found, x, weight)
    torch.testing.assert_close(have, want, atol=1e-14, rtol=0)
    assert have.is_contiguous(memory_format=memory)
    assert wrap(x, 0) is x


def test_further_derivatives_and_vmap() -> None:
    x = field(2, 2, 3, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: wrap(x, 2), x, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lambda x: wrap(x, 2).square(), x)
    many = field(3, 2, 2, 3, 4)
    each = torch.stack([wrap(one, 1) for one in many])
    assert torch.equal(torch.func.vmap(lambda x: wrap(x, 1))(many), each)
    own = torch.func.vmap(torch.func.grad(lambda x: wrap(x, 1).pow(3).sum()))(many)
    want = torch.stack([torch.func.grad(lambda x: wrap(x, 1).pow(3).sum())(one) for one in many])
    torch.testing.assert_close(own, want)


def test_a_convolution_on_the_plane() -> None:
    torch.manual_seed(1)
    mine, torchs = (
        PeriodicConv2d(2, 3, 5),
        torch.nn.Conv2d(2, 3, 5, padding=2, padding_mode="circular"),
    )
    torchs.load_state_dict(mine.state_dict())
    x = torch.randn(2, 2, 6, 7)
    torch.testing.assert_close(mine(x), torchs(x))
    with pytest.raises(ArgumentError, match="8 points around 6 × 7"):
        wrap(x, 8)
