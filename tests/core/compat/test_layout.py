"""Arguments as (B, D, L) memory: read as they lie, equal bit for bit to the core's own layout."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from longseq.core.compat.causal_conv1d import causal_conv1d_fn, causal_conv1d_update
from longseq.core.compat.mamba_ssm import selective_scan_fn
from longseq.core.ops import cpu_calls
from longseq.core.ops.causal_conv1d import causal_conv1d, causal_conv1d_shift
from longseq.core.ops.selective_scan import selective_scan

# batch, channels, length, states, groups, dtype: full vectors and rests of channels and of
# positions.
SHAPES = [
    (2, 37, 77, 16, 1, torch.float32),
    (1, 64, 2100, 4, 2, torch.float32),
    (1, 50, 200, 5, 1, torch.float64),
    (2, 64, 333, 16, 1, torch.bfloat16),
    (2, 16, 65, 16, 1, torch.float16),
    (1, 3, 1, 2, 1, torch.float32),
    (1, 1, 9, 2, 1, torch.float32),
]


def arguments(shape: tuple[int, int, int, int, int, torch.dtype]) -> dict[str, Tensor]:
    """Arguments of the published function, time dense."""
    batch, width, length, states, groups, dtype = shape
    rows = {name: torch.randn(batch, width, length, dtype=dtype) for name in ("u", "delta", "z")}
    maps = {name: torch.randn(batch, groups, states, length, dtype=dtype) for name in ("B", "C")}
    vectors = {name: torch.randn(width) for name in ("D", "delta_bias")}
    return {**rows, **maps, **vectors, "A": -torch.rand(width, states)}


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s[:5]} {str(s[5])[6:]}")
def test_time_dense_is_what_channels_dense_gives(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    theirs = {name: t.requires_grad_() for name, t in arguments(shape).items()}  # type: ignore[arg-type]

    def turned(t: Tensor) -> Tensor:
        order = {3: (0, 2, 1), 4: (0, 3, 1, 2)}.get(t.dim())
        return t if order is None else t.permute(order).contiguous()

    ours = {name: turned(t.detach()).requires_grad_() for name, t in theirs.items()}
    y, last = selective_scan_fn(**theirs, delta_softplus=True, return_last_state=True)
    expected, final = selective_scan(**ours, delta_softplus=True)
    assert (
        torch.equal(y, expected.transpose(1, 2)) and torch.equal(last, final) and y.is_contiguous()
    )
    dy = torch.randn_like(y)
    actual = torch.autograd.grad(y, list(theirs.values()), dy)
    wanted = torch.autograd.grad(expected, list(ours.values()), dy.transpose(1, 2).contiguous())
    for name, a, w in zip(theirs, actual, wanted):
        assert torch.equal(turned(a), w), name
        if name in ("u", "delta", "z"):
            # A leaf's gradient in the leaf's layout: nothing is copied.
            assert a.is_contiguous(), name


def test_no_copy_is_made_of_what_can_be_read() -> None:
    x = torch.randn(2, 6, 10)
    assert cpu_calls.strided(x.transpose(1, 2)).data_ptr() == x.data_ptr()
    assert cpu_calls.across(x.transpose(1, 2))[1:] == (0, 60, 1, 10)
    assert cpu_calls.across(x)[1:] == (0, 60, 10, 1)
    maps = torch.randn(2, 3, 4, 10).permute(0, 3, 1, 2)
    assert cpu_calls.strided(maps).data_ptr() == maps.data_ptr() and cpu_calls.across(maps)[4] == 10
    expanded = torch.randn(2, 1, 4, 10).permute(0, 3, 1, 2).expand(-1, -1, 3, -1)
    assert cpu_calls.strided(
        expanded
    ).is_contiguous()  # one map for all groups has no stride that fits
    # The stride of a dimension of size 1 says nothing: two groups of one state, as a transposed map
    # has them.
    single = torch.randn(2, 10, 1, 3).transpose(2, 3)
    assert single.stride(-1) == 3 and cpu_calls.across(single)[4] == 1
    odd = torch.randn(2, 6, 20)[..., ::2].transpose(1, 2)
    assert cpu_calls.strided(odd).is_contiguous()


# batch, channels, length, taps, initial state, resets, dtype: rests of vectors and ends of spans.
CONVOLUTIONS = [
    (2, 5, 23, 4, True, False, torch.float64),
    (1, 37, 2100, 4, True, True, torch.float64),
    (2, 3, 1025, 2, False, True, torch.float64),
    (1, 7, 1030, 9, True, True, torch.float64),
    (2, 3, 15, 32, True, False, torch.float64),
    (1, 4, 1, 4, True, False, torch.float64),
    (2, 20, 1500, 4, True, False, torch.float32),
    (2, 20, 100, 4, True, True, torch.bfloat16),
]


@pytest.mark.parametrize("case", CONVOLUTIONS, ids=lambda c: f"{c[:6]} {str(c[6])[6:]}")
@pytest.mark.parametrize("activation", [None, "silu"])
def test_convolution_of_time_dense_is_that_of_channels_dense(
    case: tuple[int, int, int, int, bool, bool, torch.dtype], activation: Any
) -> None:
    batch, width, length, taps, started, broken, dtype = case
    torch.manual_seed(1)
    x = torch.randn(batch, width, length, dtype=dtype).transpose(1, 2).requires_grad_()
    turned = x.detach().contiguous().requires_grad_()
    wide = torch.promote_types(dtype, torch.float32)
    weight, bias = (torch.randn(*s, dtype=wide) for s in ((width, taps), (width,)))
    past = torch.randn(batch, taps - 1, width, dtype=dtype) if started else None
    resets = torch.rand(batch, length) < 0.1 if broken else None
    others = [t.requires_grad_() for t in (weight, bias, past) if t is not None]
    y, final = causal_conv1d(x, weight, bias, past, resets, activation)
    expected, last = causal_conv1d(turned, weight, bias, past, resets, activation)
    assert torch.equal(y, expected) and torch.equal(final, last)
    assert length == 1 or y.stride(1) == 1  # in the input's layout
    dy = torch.randn_like(y)
    actual = torch.autograd.grad(y, [x, *others], dy)
    wanted = torch.autograd.grad(expected, [turned, *others], dy)
    assert torch.equal(actual[0], wanted[0])
    tolerance = 1e-12 if wide == torch.float64 else 1e-5  # sums over time, in another order
    for a, w in zip(actual[1:], wanted[1:]):
        assert (a - w).abs().max() <= tolerance * w.abs().max()


def test_convolution_of_half_a_tensor_is_read_as_it_lies() -> None:
    x, z = torch.randn(2, 12, 40).chunk(2, 1)
    weight = torch.randn(6, 4)
    assert cpu_calls.strided(x.transpose(1, 2)).data_ptr() == x.data_ptr()
    assert torch.equal(causal_conv1d_fn(x, weight), causal_conv1d_fn(x.contiguous(), weight))
    assert torch.equal(causal_conv1d_fn(z, weight), causal_conv1d_fn(z.contiguous(), weight))
    # An expanded or odd gradient takes x's layout first.
    leaf = x.clone().requires_grad_()
    causal_conv1d_fn(leaf, weight).sum().backward()
    again = x.clone().requires_grad_()
    y = causal_conv1d_fn(again, weight)
    y.backward(torch.ones(2, 40, 6).transpose(1, 2))
    assert torch.equal(leaf.grad, again.grad)


@pytest.mark.parametrize("dense", ["time", "channels"])
@pytest.mark.parametrize("length", [1, 3, 70])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_buffer_moves_on_as_it_lies(dense: str, length: int, dtype: torch.dtype) -> None:
    torch.manual_seed(2)
    batch, width, size, taps = 2, 21, 5, 4

    def laid(*shape: int) -> Tensor:
        t = torch.randn(shape[0], shape[2], shape[1], dtype=dtype)
        return t.transpose(1, 2) if dense == "time" else t.transpose(1, 2).contiguous()

    x, buffer, weight = (
        laid(batch, length, width),
        laid(batch, size, width),
        torch.randn(width, taps),
    )
    weight = weight.to(torch.promote_types(dtype, torch.float32))
    bias = weight[:, 0].clone()
    before = buffer.clone()
    y = causal_conv1d_shift(x, weight, bias, buffer, "silu")
    expected, _ = causal_conv1d(x, weight, bias, before[:, size - taps + 1 :], activation="silu")
    assert torch.equal(buffer, torch.cat([before, x], 1)[:, length:])
    tolerance = {torch.float32: 1e-6, torch.float64: 1e-14, torch.bfloat16: 2**-8}[dtype]
    assert (y - expected).abs().max() <= tolerance * expected.abs().max()
    held = before.clone().requires_grad_(False)
    weight = weight.requires_grad_()  # autograd sees the call, so it takes the other way
    causal_conv1d_shift(x, weight, bias, held, "silu").sum().backward()
    assert torch.equal(held, buffer) and weight.grad is not None


def test_an_update_keeps_its_state_where_it_is() -> None:
    state = torch.randn(2, 4, 6).transpose(1, 2)  # channels dense, as a Mamba-2 layer allocates it
    other, x, weight = state.contiguous(), torch.randn(2, 6), torch.randn(6, 4)
    held = state.data_ptr()
    assert torch.equal(
        causal_conv1d_update(x, state, weight), causal_conv1d_update(x, other, weight)
    )
    assert state.data_ptr() == held and torch.equal(state, other) and torch.equal(state[..., -1], x)
