"""The root mean square norm and the addition before it against their definition: values,
derivatives, layouts, transforms."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from longseq.core.errors import ArgumentError
from longseq.core.ops.backends import Backend
from longseq.core.ops.rms_norm import add_rms_norm, rms_norm
from longseq.core.ops.rms_norm.arguments import Arguments
from longseq.core.ops.rms_norm.cpu import reason


def inputs(
    dtype: torch.dtype = torch.float64, width: int = 12, rows: tuple[int, ...] = (2, 5)
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((*rows, width), (*rows, width), (width,))
    return [
        torch.randn(s, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for s in shapes
    ]


def definition(x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    return add_rms_norm(x, residual, weight, 1e-3, backend="reference")


def written_out(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 1e-14)])
@pytest.mark.parametrize("width", [1, 7, 12, 16, 33, 100])
@pytest.mark.parametrize("rows", [(1,), (2, 5), (70,)])
def test_equals_its_definition(
    rows: tuple[int, ...], width: int, dtype: torch.dtype, tolerance: float
) -> None:
    values = inputs(dtype, width, rows)
    weights = torch.linspace(-1, 2, width, dtype=dtype)

    def run(function: Callable[..., tuple[Tensor, Tensor]]) -> list[Tensor]:
        out, total = function(*values)
        loss = (out * weights).sum() + (total.square() * weights).sum()
        return [out, total, *torch.autograd.grad(loss, values)]

    found = run(lambda *v: add_rms_norm(*v, 1e-3, backend="cpu"))
    torch.testing.assert_close(found, run(definition), rtol=10 * tolerance, atol=10 * tolerance)
    x, residual, weight = (v.detach() for v in values)
    assert torch.equal(found[1], x + residual)
    alone = rms_norm(x, weight, 1e-3, backend="cpu")
    torch.testing.assert_close(
        alone, written_out(x, weight, 1e-3), rtol=10 * tolerance, atol=10 * tolerance
    )


def test_first_and_second_derivatives() -> None:
    assert torch.autograd.gradcheck(add_rms_norm, inputs())
    assert torch.autograd.gradgradcheck(add_rms_norm, inputs())
    x, _, weight = inputs()
    assert torch.autograd.gradcheck(rms_norm, (x, weight))
    assert torch.autograd.gradgradcheck(rms_norm, (x, weight))


@pytest.mark.parametrize("used", ["normalised", "sum"])
def test_gradients_where_one_result_is_used(used: str) -> None:
    values = inputs()
    take = 0 if used == "normalised" else 1

    def gradients(function: Callable[..., tuple[Tensor, Tensor]]) -> tuple[Tensor | None, ...]:
        loss = function(*values)[take].square().sum()
        return torch.autograd.grad(loss, values, allow_unused=True)

    found = gradients(lambda *v: add_rms_norm(*v, 1e-3))
    for one, wanted in zip(found, gradients(definition)):
        assert (one is None) == (wanted is None)
        if one is not None:
            torch.testing.assert_close(one, wanted)


def test_strided_inputs_transforms_and_compilation() -> None:
    _, residual, weight = inputs()
    wide = torch.randn(2, 5, 24, dtype=torch.float64)
    x = wide[..., 12:]
    expected = definition(x, residual, weight)
    torch.testing.assert_close(add_rms_norm(x, residual, weight, 1e-3), expected)
    turned = torch.randn(2, 12, 5, dtype=torch.float64).transpose(1, 2)
    torch.testing.assert_close(
        rms_norm(turned, weight.detach(), 1e-3), written_out(turned, weight.detach(), 1e-3)
    )
    both = torch.func.vmap(lambda x: add_rms_norm(x, residual, weight, 1e-3))(torch.stack([x, -x]))
    torch.testing.assert_close(both[0][1], definition(-x, residual, weight)[0])
    torch.testing.assert_close(both[1][1], residual - x)
    alone = torch.func.vmap(lambda x: rms_norm(x, weight, 1e-3))(torch.stack([x, -x]))
    torch.testing.assert_close(alone[1], written_out(-x, weight, 1e-3))
    gradient = torch.func.grad(lambda w: add_rms_norm(x, residual, w, 1e-3)[0].sum())(weight)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected[0].sum(), weight)[0])
    _, tangent = torch.func.jvp(lambda x: rms_norm(x, weight, 1e-3), (x,), (x,))
    _, wanted = torch.func.jvp(lambda x: written_out(x, weight, 1e-3), (x,), (x,))
    torch.testing.assert_close(tangent, wanted)
    compiled = torch.compile(add_rms_norm, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, residual, weight, 1e-3), expected)


def test_lower_precision_keeps_a_wide_residual_stream() -> None:
    x, residual, weight = (v.detach() for v in inputs(torch.float32))
    out, total = add_rms_norm(x.bfloat16(), residual, weight)
    assert out.dtype == total.dtype == torch.float32
    torch.testing.assert_close(
        out, written_out(x.bfloat16() + residual, weight, 1e-5), rtol=1e-5, atol=1e-5
    )
    out, total = add_rms_norm(x.bfloat16(), residual, weight.bfloat16())
    assert (out.dtype, total.dtype) == (torch.bfloat16, torch.float32)
    exact = written_out(total.double(), weight.bfloat16().double(), 1e-5)
    assert ((out - exact).abs() <= 2**-8 * exact.abs() + 1e-6).all()


@pytest.mark.parametrize("size", [1e9, 1e13, 1e19, 1e25, 1e30, 1e38])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_values_whose_squares_overflow(backend: Backend, size: float) -> None:
    x, _, weight = (v.detach() for v in inputs(torch.float32))
    x[0, :3] *= size / x.abs().max()  # other rows beside them
    weights = torch.linspace(-1, 2, 120).view(2, 5, 12)

    def run(dtype: torch.dtype, backend: Backend) -> list[Tensor]:
        values = [v.to(dtype).requires_grad_() for v in (x, weight)]
        out = rms_norm(*values, backend=backend)
        dx, dweight = torch.autograd.grad((out * weights.to(dtype)).sum(), values)
        dx[0, :3] *= size  # of usual size again
        return [out.detach().double(), dx.double(), dweight.double()]

    found, wanted = run(torch.float32, backend), run(torch.float64, "reference")
    assert wanted[1][0, :3].abs().max() > 0.01
    torch.testing.assert_close(found, wanted, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_row_that_is_not_finite_is_not_finite_afterwards(bad: float) -> None:
    x, residual, weight = (v.detach() for v in inputs(torch.float32))
    whole, _ = add_rms_norm(x, residual, weight)
    x[0, 1, 3] = bad
    out, _ = add_rms_norm(x, residual, weight)
    assert out[0, 1].isnan().any()
    others = torch.ones(2, 5, dtype=torch.bool)
    others[0, 1] = False
    assert torch.equal(out[others], whole[others])


def test_no_rows_and_no_dimensions_before() -> None:
    weight = torch.ones(4)
    out, total = add_rms_norm(torch.ones(0, 3, 4), torch.ones(0, 3, 4), weight)
    assert out.shape == total.shape == (0, 3, 4)
    x = torch.tensor([3.0, 4.0, 0.0, 0.0])
    torch.testing.assert_close(rms_norm(x, weight, 0.0), x / 2.5)


def test_what_the_kernels_do_not_take() -> None:
    x, residual, weight = (v.detach() for v in inputs(torch.float32))
    assert reason(Arguments(x, residual, weight, 1e-5)) is None
    assert "one dtype" in str(reason(Arguments(x, residual.double(), weight, 1e-5)))
    with pytest.raises(ArgumentError, match="add_rms_norm: residual must have shape"):
        add_rms_norm(x, residual[:1], weight)
    with pytest.raises(ArgumentError, match="rms_norm: weight must have shape"):
        rms_norm(x, weight[:3])
