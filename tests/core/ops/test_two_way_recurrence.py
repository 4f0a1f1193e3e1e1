"""two_way_recurrence against its definition: values, gradients, sizes, precisions, transforms."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from longseq.core.errors import ArgumentError
from longseq.core.ops.two_way_recurrence import (
    two_way_recurrence,
    two_way_recurrence_reference,
)
from longseq.core.ops.two_way_recurrence.composed import composed

# Sigmoid, products and sums: a few roundings each, of values below 4 in these draws.
BOUNDS = {torch.float64: 1e-14, torch.float32: 2e-6, torch.bfloat16: 2.0**-7, torch.float16: 2e-3}


def make(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    draw = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))
    return draw.to(dtype).requires_grad_()


def compare(mixed: Tensor, bound: float, run=two_way_recurrence) -> None:
    wide = mixed.detach().double().requires_grad_()
    found, wanted = run(mixed), two_way_recurrence_reference(wide)
    assert found.dtype == mixed.dtype
    assert found.shape == (*mixed.shape[:2], mixed.shape[2] // 3)
    torch.testing.assert_close(found.double(), wanted, rtol=bound, atol=bound)
    weights = torch.linspace(0, 9, found.numel()).sin().view_as(found).to(mixed.dtype)
    (dx,) = torch.autograd.grad(found, mixed, weights)
    (slope,) = torch.autograd.grad(wanted, wide, weights.double())
    torch.testing.assert_close(dx.double(), slope, rtol=bound, atol=4 * bound)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("shape", [(1, 1, 3), (2, 2, 9), (3, 7, 48), (2, 33, 51), (1, 130, 105)])
@pytest.mark.parametrize("dtype", BOUNDS)
def test_it_is_the_definition(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    compare(make(*shape, dtype=dtype), BOUNDS[dtype])
    compare(make(*shape, dtype=dtype), BOUNDS[dtype], composed)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.integers(1, 70), st.integers(1, 40))
def test_any_sizes(batch: int, length: int, width: int) -> None:
    compare(make(batch, length, 3 * width), 1e-13)


def test_rows_and_channels_that_lie_elsewhere() -> None:
    whole = make(3, 20, 24).detach()
    for mixed in (whole[:, ::2, 3:15], whole.transpose(0, 1), whole[..., ::2], whole.flip(2)):
        compare(mixed.requires_grad_(), 1e-13)
    x = make(2, 5, 6)
    y = two_way_recurrence(x)
    (dx,) = torch.autograd.grad(y.sum(), x, retain_graph=True)  # a gradient of one value, expanded
    (wanted,) = torch.autograd.grad(y, x, torch.ones_like(y))
    torch.testing.assert_close(dx, wanted)


def test_gates_at_their_ends_and_values_that_are_no_numbers() -> None:
    x = torch.zeros(1, 4, 3)
    x[0, :, 0] = torch.tensor([1.0, 2.0, 3.0, 4.0])
    x[..., 1], x[..., 2] = 200.0, -200.0  # all is kept, nothing is kept
    assert two_way_recurrence(x)[0, :, 0].tolist() == [1.0, 2.0, 3.0, 4.0]
    for bad in (float("nan"), float("inf")):
        x[0, 2, 0] = bad
        assert not two_way_recurrence(x)[0, 2, 0].isfinite()
    x[..., 1] = float("nan")
    assert two_way_recurrence(x).isnan().all()


def test_no_rows() -> None:
    x = torch.zeros(0, 4, 6, requires_grad=True)
    two_way_recurrence(x).sum().backward()
    assert x.grad is not None
    assert x.grad.shape == (0, 4, 6)


def test_gradients_of_gradients_transforms_and_compilation() -> None:
    x = make(2, 5, 6)
    assert torch.autograd.gradcheck(two_way_recurrence, x, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(two_way_recurrence, x)
    rows = torch.stack([x, -x])
    wanted = torch.stack([two_way_recurrence(row) for row in rows])
    torch.testing.assert_close(torch.func.vmap(two_way_recurrence)(rows), wanted)
    y = torch.compile(two_way_recurrence, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(y, two_way_recurrence(x))
    traced = torch.jit.trace(two_way_recurrence, x.detach())
    torch.testing.assert_close(traced(-x), two_way_recurrence(-x))
    many = torch.randn(3, 2, 5, 2, dtype=torch.float64)
    y = two_way_recurrence(x)
    (found,) = torch.autograd.grad(y, x, many, is_grads_batched=True, retain_graph=True)
    for one, dy in zip(found, many):
        torch.testing.assert_close(one, torch.autograd.grad(y, x, dy, retain_graph=True)[0])


def test_autocast_and_frozen_projections() -> None:
    x = make(2, 5, 6, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        compare(x, BOUNDS[torch.bfloat16])
    assert not two_way_recurrence(x.detach()).requires_grad


@pytest.mark.parametrize("shape", [(4, 6), (1, 0, 6), (1, 4, 0), (1, 4, 7), (1, 1, 4, 6)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ArgumentError, match=r"^two_way_recurrence: mixed must be"):
        two_way_recurrence(torch.zeros(shape))
