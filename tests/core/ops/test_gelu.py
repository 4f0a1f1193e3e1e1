"""biased_gelu against torch's: values, gradients, sizes, tails, transforms."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from longseq.core.errors import ArgumentError
from longseq.core.ops.gelu import biased_gelu, biased_gelu_reference


def make(*shape: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    g = torch.Generator().manual_seed(sum(shape))
    draws = (torch.randn(*s, generator=g, dtype=torch.float64) for s in (shape, shape[-1:]))
    return [t.to(dtype).requires_grad_() for t in draws]


def compare(values: list[Tensor], bound: float) -> None:
    found, wanted = biased_gelu(*values), biased_gelu_reference(*values)
    assert found.dtype == wanted.dtype
    torch.testing.assert_close(found, wanted, rtol=bound, atol=bound)
    weights = torch.linspace(0, 9, found.numel(), dtype=found.dtype).sin().view_as(found)
    for a, e in zip(*(torch.autograd.grad((y * weights).sum(), values) for y in (found, wanted))):
        torch.testing.assert_close(a, e, rtol=bound, atol=bound * max(1.0, e.abs().max().item()))


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.float64, 1e-13)])
@pytest.mark.parametrize("shape", [(1,), (1, 2), (3, 7, 6), (129, 34), (2, 300, 70)])
def test_equals_torch(shape: tuple[int, ...], dtype: torch.dtype, bound: float) -> None:
    compare(make(*shape, dtype=dtype), bound)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 300), st.integers(1, 40))
def test_any_sizes(rows: int, width: int) -> None:
    compare(make(rows, width), 1e-13)


@pytest.mark.usefixtures("isa")
def test_float32_is_within_some_roundings_of_float64_everywhere() -> None:
    x = torch.linspace(-40, 40, 160_001).requires_grad_()
    wide = x.detach().double().requires_grad_()
    y, wanted = biased_gelu(x, torch.zeros(len(x))), torch.nn.functional.gelu(wide)
    # 8 roundings of a result of the size of x, and less where Φ is small.
    scale = 2.0**-24 * torch.maximum(wide.detach().abs(), torch.tensor(1e-3))
    assert ((y.double() - wanted).abs() <= 8 * scale).all()
    (dx,) = torch.autograd.grad(y.sum(), x)
    (slope,) = torch.autograd.grad(wanted.sum(), wide)
    assert (dx.double() - slope).abs().max() <= 8 * 2.0**-24


def test_tails_infinities_and_nan() -> None:
    x = torch.tensor([math.inf, math.nan, 1e30, -1e30, -1e4, 0.0])
    y = biased_gelu(x, torch.zeros(6))
    assert y[0] == math.inf
    assert y[1].isnan()
    assert torch.equal(y[2:], torch.tensor([1e30, -0.0, -0.0, 0.0]))


def test_no_rows_half_precision_and_other_strides() -> None:
    assert biased_gelu(torch.zeros(0, 6), torch.zeros(6)).shape == (0, 6)
    compare(make(5, 6, dtype=torch.bfloat16), 1e-6)  # torch's own
    x, bias = make(6, 5)
    compare(
        [x.detach().T.requires_grad_(), torch.zeros(6, dtype=bias.dtype).requires_grad_()], 1e-13
    )


def test_gradients_of_the_gradients_transforms_and_compilation() -> None:
    x, bias = make(4, 6)
    assert torch.autograd.gradcheck(biased_gelu, (x, bias), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(biased_gelu, (x, bias))
    rows = torch.stack([x, -x])
    wanted = torch.stack([biased_gelu(row, bias) for row in rows])
    torch.testing.assert_close(torch.func.vmap(biased_gelu, (0, None))(rows, bias), wanted)
    y = torch.compile(biased_gelu, fullgraph=True, backend="aot_eager")(x, bias)
    torch.testing.assert_close(y, biased_gelu(x, bias))


def test_names_the_argument_that_does_not_fit() -> None:
    with pytest.raises(ArgumentError, match=r"x must be \(\.\.\., W\) and bias \(W,\)"):
        biased_gelu(torch.zeros(2, 4), torch.zeros(2))
