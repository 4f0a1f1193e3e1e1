"""The short convolution that sees one side of a sequence: the past or the future, without
states."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from longseq.core import _cpu
from longseq.core.errors import ArgumentError
from longseq.core.ops.causal_conv1d import causal_conv1d_reference, one_sided_conv1d


def expected(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None) -> Tensor:
    """The mirrored sequence's convolution, mirrored again."""
    return causal_conv1d_reference(x.flip(1), weight, bias, None, None, activation).flip(1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("length", "taps", "channels"), [(1, 4, 5), (2, 3, 16), (19, 4, 37), (40, 1, 16), (9, 7, 3)]
)
@pytest.mark.parametrize("layout", ["dense", "transposed", "sliced"])
def test_the_future_is_the_past_of_the_mirrored_sequence(
    length: int, taps: int, channels: int, layout: str
) -> None:
    g = torch.Generator().manual_seed(length)
    x = torch.randn(2, length, channels, generator=g, dtype=torch.float64)
    if layout == "transposed":
        x = x.transpose(1, 2).contiguous().transpose(1, 2)
    if layout == "sliced":
        x = torch.cat([x, x], -1)[..., :channels]
    weight = torch.randn(channels, taps, generator=g, dtype=torch.float64)
    bias = torch.randn(channels, generator=g, dtype=torch.float64)
    dy = torch.randn(2, length, channels, generator=g, dtype=torch.float64)
    before = _cpu.isa()
    for isa in _cpu.available_isas():
        _cpu.select_isa(isa)
        for b, activation in ((bias, "silu"), (None, None)):
            for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
                leaves = [t.to(dtype).requires_grad_() for t in (x, weight, b) if t is not None]
                y = one_sided_conv1d(*leaves, activation=activation, reverse=True)  # type: ignore[arg-type]
                grads = torch.autograd.grad(y, leaves, dy.to(dtype))
                wide = [t.detach().double().requires_grad_() for t in leaves]
                want = expected(*(*wide, None)[:3], activation)
                wanted = torch.autograd.grad(want, wide, dy)
                for found, one in zip((y, *grads), (want, *wanted)):
                    torch.testing.assert_close(
                        found.double(), one, rtol=0, atol=tolerance * one.abs().max().item()
                    )
    _cpu.select_isa(before)


def test_half_precision_and_the_reference_backend() -> None:
    x, weight = torch.randn(1, 9, 18).bfloat16(), torch.randn(18, 4)
    want = expected(x, weight, None, "silu")
    assert torch.equal(one_sided_conv1d(x, weight, None, "silu", True, "reference"), want)
    found = one_sided_conv1d(x, weight, None, "silu", True)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, want, rtol=2**-7, atol=1e-5)
    ahead = one_sided_conv1d(x, weight, None, "silu")
    torch.testing.assert_close(
        ahead, expected(x.flip(1), weight, None, "silu").flip(1), rtol=2**-7, atol=1e-5
    )


def test_vmap_and_autocast_see_it() -> None:
    x, weight = torch.randn(1, 9, 4), torch.randn(4, 4)
    want = one_sided_conv1d(x, weight, reverse=True)
    several = torch.func.vmap(lambda t: one_sided_conv1d(t, weight, reverse=True))(
        torch.stack([x, -x])
    )
    torch.testing.assert_close(several, torch.stack([want, -want]))
    with torch.autocast("cpu", torch.bfloat16):
        assert one_sided_conv1d(x, weight, reverse=True).dtype == torch.bfloat16
    slope = torch.func.grad(lambda t: one_sided_conv1d(t, weight, reverse=True).sum())(x)
    torch.testing.assert_close(slope[:, 0], weight[:, 3].expand(1, 4))  # seen by itself alone


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(ArgumentError, match=r"^causal_conv1d: weight must"):
        one_sided_conv1d(torch.zeros(1, 9, 4), torch.zeros(5, 4), reverse=True)
