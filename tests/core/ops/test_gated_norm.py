"""The gated norm in blocks against its definition: values, derivatives, layouts, transforms."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from longseq.core.ops.backends import Backend
from longseq.core.ops.gated_norm import cpu, gated_layer_norm, gated_rms_norm


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "SMALL", 40)  # three rows of twelve values


def composed(
    y: Tensor, z: Tensor, weight: Tensor, groups: int, norm_first: bool, eps: float
) -> Tensor:
    return gated_rms_norm(y, z, weight, groups, norm_first, eps, backend="reference")


def inputs(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 5, 12), (2, 5, 12), (12,))
    return [
        torch.randn(s, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for s in shapes
    ]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 1e-14)])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("norm_first", [False, True])
def test_equals_its_definition(
    norm_first: bool, groups: int, dtype: torch.dtype, tolerance: float
) -> None:
    values = inputs(dtype)
    weights = torch.linspace(-1, 2, 120, dtype=dtype).view(2, 5, 12)
    actual, expected = (f(*values, groups, norm_first, 1e-3) for f in (gated_rms_norm, composed))
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)
    found, wanted = (torch.autograd.grad((x * weights).sum(), values) for x in (actual, expected))
    torch.testing.assert_close(found, wanted, rtol=10 * tolerance, atol=10 * tolerance)


@pytest.mark.parametrize("norm_first", [False, True])
def test_first_and_second_derivatives(norm_first: bool) -> None:
    def run(*values: Tensor) -> Tensor:
        return gated_rms_norm(*values, 2, norm_first, 1e-3)

    assert torch.autograd.gradcheck(run, inputs())
    assert torch.autograd.gradgradcheck(run, inputs())


def test_strided_inputs_transforms_and_compilation() -> None:
    _, z, weight = inputs()
    wide = torch.randn(2, 5, 24, dtype=torch.float64)
    y = wide[..., 12:]
    expected = composed(y, z, weight, 1, True, 1e-5)
    torch.testing.assert_close(gated_rms_norm(y, z, weight), expected)
    rows = torch.stack([y, -y])
    found = torch.func.vmap(lambda y: gated_rms_norm(y, z, weight))(rows)
    torch.testing.assert_close(
        found, torch.stack([expected, composed(-y, z, weight, 1, True, 1e-5)])
    )
    gradient = torch.func.grad(lambda w: gated_rms_norm(y, z, w).sum())(weight)
    torch.testing.assert_close(
        gradient, torch.autograd.grad(expected.sum(), weight, retain_graph=True)[0]
    )
    compiled = torch.compile(gated_rms_norm, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(y, z, weight), expected)


def test_lower_precision_is_computed_in_float32() -> None:
    y, z, weight = inputs()
    out = gated_rms_norm(y.bfloat16(), z.bfloat16(), weight.bfloat16())
    exact = composed(
        y.bfloat16().double(), z.bfloat16().double(), weight.bfloat16().double(), 1, True, 1e-5
    )
    assert out.dtype == torch.bfloat16
    assert ((out - exact).abs() <= 2**-8 * exact.abs() + 1e-6).all()


@pytest.mark.parametrize("size", [1e9, 1e13, 1e15, 1e19, 1e25, 1e30])
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_values_whose_squares_overflow(backend: Backend, norm_first: bool, size: float) -> None:
    y, z, weight = (v.detach() for v in inputs(torch.float32))
    y[0, :3] *= size  # other rows beside them
    weights = torch.linspace(-1, 2, 120).view(2, 5, 12)

    def run(dtype: torch.dtype, backend: Backend) -> list[Tensor]:
        values = [v.to(dtype).requires_grad_() for v in (y, z, weight)]
        out = gated_rms_norm(*values, 2, norm_first, backend=backend)
        dy, dz, dweight = torch.autograd.grad((out * weights.to(dtype)).sum(), values)
        dy[0, :3] *= size  # of usual size again
        return [out.detach().double(), dy.double(), dz.double(), dweight.double()]

    found, wanted = run(torch.float32, backend), run(torch.float64, "reference")
    assert wanted[1][0, :3].abs().max() > 0.01
    torch.testing.assert_close(found, wanted, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_a_centred_norm_of_great_values(backend: Backend) -> None:
    y, z, weight = inputs(torch.float32)
    y = (y.detach() * 1e30).requires_grad_()
    u, skip = torch.ones_like(z), torch.ones_like(weight)
    out = gated_layer_norm(y, z, weight, u, skip, 2, backend=backend)
    exact = gated_layer_norm(*(v.double() for v in (y, z, weight, u, skip)), 2, backend="reference")
    torch.testing.assert_close(out.double(), exact, rtol=1e-5, atol=1e-5)
    found, wanted = (torch.autograd.grad(v.square().sum(), y)[0] for v in (out, exact))
    torch.testing.assert_close(found * 1e30, wanted * 1e30, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_row_that_is_not_finite_is_not_finite_afterwards(backend: Backend, bad: float) -> None:
    y, z, weight = (v.detach() for v in inputs(torch.float32))
    whole = gated_rms_norm(y, z, weight, backend=backend)
    y = y.clone()
    y[0, 1, 3] = bad
    out = gated_rms_norm(y, z, weight, backend=backend)
    assert out[0, 1].isnan().all()
    others = torch.ones(2, 5, dtype=torch.bool)
    others[0, 1] = False
    assert torch.equal(out[others], whole[others])
