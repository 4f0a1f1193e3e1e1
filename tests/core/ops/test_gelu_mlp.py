"""gelu_mlp against torch's operations: values, gradients, what is kept, transforms; and the matrix
turned round that a weight's gradient takes."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from longseq.core.errors import ArgumentError
from longseq.core.ops import cpu_calls
from longseq.core.ops.backends import native
from longseq.core.ops.gelu_mlp import cpu, gelu_mlp, gelu_mlp_reference
from longseq.core.ops.gelu_mlp.arguments import Arguments
from longseq.core.ops.linear import weight_gradient


def make(
    *shape: int, ins: int = 6, hidden: int = 18, outs: int = 5, dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    g = torch.Generator().manual_seed(sum(shape) + ins + hidden + outs)
    sizes = ((*shape, ins), (hidden, ins), (hidden,), (outs, hidden), (outs,))
    draws = (torch.randn(*size, generator=g, dtype=torch.float64) for size in sizes)
    return [t.to(dtype).requires_grad_() for t in draws]


def gradients(y: Tensor, values: list[Tensor]) -> tuple[Tensor, ...]:
    weights = torch.linspace(0, 9, y.numel(), dtype=torch.float64).sin().view_as(y)
    return torch.autograd.grad((y * weights).sum(), values, retain_graph=True)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("shape", [(), (1,), (3, 7), (2, 3, 43)])
def test_equals_torch(shape: tuple[int, ...]) -> None:
    values = make(*shape)
    assert cpu.reason(Arguments(*values)) is None
    found, wanted = gelu_mlp(*values), gelu_mlp_reference(*values)
    torch.testing.assert_close(found, wanted, rtol=1e-13, atol=1e-13)
    for a, e in zip(gradients(found, values), gradients(wanted, values)):
        torch.testing.assert_close(a, e, rtol=1e-12, atol=1e-12 * max(1.0, e.abs().max().item()))
    for a, e in zip(gradients(found, values), gradients(wanted, values)):  # nothing was used up
        torch.testing.assert_close(a, e, rtol=1e-12, atol=1e-12 * max(1.0, e.abs().max().item()))


def test_float32_of_sizes_that_go_to_any_library() -> None:
    values = make(2, 200, ins=96, hidden=384, outs=96, dtype=torch.float32)
    wide = [t.detach().double().requires_grad_() for t in values]
    found, wanted = gelu_mlp(*values), gelu_mlp_reference(*wide)
    for a, e in zip(
        (found, *gradients(found, values)), (wanted, *gradients(wanted, wide)), strict=True
    ):
        assert a.dtype == torch.float32
        # Two sums of at most n = 400 products, √n roundings each of the sum of their sizes, which
        # is 0.8 n where the largest result is 4 √n.
        assert (a.double() - e).abs().max() <= 2 * 400**0.5 * 2.0**-24 * 4 * e.abs().max()


@pytest.mark.parametrize("learnt", list(itertools.product([True, False], repeat=5))[:-1])
def test_any_part_may_be_frozen(learnt: tuple[bool, ...]) -> None:
    values = [t.detach().requires_grad_(wants) for t, wants in zip(make(4), learnt)]
    wanted_of = [t for t in values if t.requires_grad]
    found, wanted = gelu_mlp(*values), gelu_mlp_reference(*values)
    for a, e in zip(gradients(found, wanted_of), gradients(wanted, wanted_of)):
        torch.testing.assert_close(a, e, rtol=1e-12, atol=1e-12)


def test_the_hidden_values_are_kept_once() -> None:
    values, sizes = make(50), []
    pack = lambda t: (sizes.append(t.numel()), t)[1]  # noqa: E731
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = gelu_mlp(*values)
    assert sizes.count(50 * 18) == 1
    assert all(torch.isfinite(one).all() for one in gradients(y, values))


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_nothing(shape: tuple[int, ...]) -> None:
    values = make(*shape)
    y = gelu_mlp(*values)
    assert y.shape == (*shape, 5)
    assert gradients(y, values)[1].abs().max() == 0


def test_without_gradients_and_with_numbers_that_are_none() -> None:
    values = [t.detach() for t in make(9)]
    x = values[0].clone()
    torch.testing.assert_close(gelu_mlp(*values), gelu_mlp_reference(*values))
    assert torch.equal(values[0], x)
    x[4, 2] = torch.nan
    y = gelu_mlp(x, *values[1:])
    assert y[4].isnan().all() and y[[0, 8]].isfinite().all()


def test_derivatives_transforms_and_a_compiler() -> None:
    values = make(3)
    assert torch.autograd.gradcheck(gelu_mlp, values)
    assert torch.autograd.gradgradcheck(gelu_mlp, values)
    rows, rest = torch.randn(3, 4, 6, dtype=torch.float64), [t.detach() for t in values[1:]]
    mapped = torch.func.vmap(lambda x: gelu_mlp(x, *rest))(rows)
    torch.testing.assert_close(mapped, torch.stack([gelu_mlp(x, *rest) for x in rows]))
    tangent = torch.func.jvp(lambda x: gelu_mlp(x, *rest), (rows,), (torch.ones_like(rows),))[1]
    wanted = torch.func.jvp(
        lambda x: gelu_mlp_reference(x, *rest), (rows,), (torch.ones_like(rows),)
    )[1]
    torch.testing.assert_close(tangent, wanted)
    y = torch.compile(gelu_mlp, fullgraph=True, backend="aot_eager")(*values)
    torch.testing.assert_close(y, gelu_mlp(*values))
    with torch.autocast("cpu", torch.bfloat16):
        low = gelu_mlp(*[t.detach().float() for t in values])
    assert low.dtype == torch.bfloat16


def test_several_gradients_at_once() -> None:
    values, many = make(3, 4), torch.randn(5, 3, 4, 5, dtype=torch.float64)
    found, wanted = (
        torch.autograd.grad(function(*values), values, many, is_grads_batched=True)
        for function in (gelu_mlp, gelu_mlp_reference)
    )
    for a, e in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-12, atol=1e-12)


def test_what_torch_lets_be_changed_in_place() -> None:
    values = make(3, 4)
    y, wanted = gelu_mlp(*values), gelu_mlp_reference(*values)
    with torch.no_grad():
        values[4].add_(1)  # no gradient depends on it
    y += 1
    y.relu_()
    for a, e in zip(gradients(y, values), gradients((wanted + 1).relu(), values), strict=True):
        torch.testing.assert_close(a, e, rtol=1e-12, atol=1e-12)


def test_shapes_that_do_not_fit() -> None:
    x, weight1, bias1, weight2, bias2 = make(3)
    for bad in (
        (x[:, :4], weight1, bias1, weight2, bias2),
        (x, weight1, bias1[:3], weight2, bias2),
        (x, weight1, bias1, weight2[:, :3], bias2),
        (x, weight1, bias1, weight2, bias2[:3]),
        (x[0, 0], weight1, bias1, weight2, bias2),
    ):
        with pytest.raises(ArgumentError, match=r"gelu_mlp: x must be"):
            gelu_mlp(*bad)


@pytest.mark.usefixtures("isa")
@settings(max_examples=30, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.booleans())
def test_a_matrix_turned_round(rows: int, columns: int, double: bool) -> None:
    x = torch.randn(rows, columns, dtype=torch.float64 if double else torch.float32)
    y = x.new_full((columns, rows), torch.nan)
    native().turned(rows, columns, cpu_calls.code(x.dtype), 2, x.data_ptr(), y.data_ptr())
    assert torch.equal(y, x.T)


@pytest.mark.parametrize(
    ("rows", "ins", "outs"), [(40, 33, 200), (40, 200, 33), (2000, 64, 128), (2000, 128, 64)]
)
def test_a_weights_gradient(rows: int, ins: int, outs: int) -> None:
    dy, x = torch.randn(rows, outs), torch.randn(2, rows // 2, ins)
    found, wide = weight_gradient(dy, x), dy.double().T @ x.flatten(0, 1).double()
    top = dy.double().abs().T @ x.flatten(0, 1).double().abs()
    assert found.shape == (outs, ins) and found.is_contiguous()
    assert ((found.double() - wide).abs() <= rows**0.5 * 2.0**-24 * top).all()
