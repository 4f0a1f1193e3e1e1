"""The gated norm in blocks against its definition: values, derivatives, layouts, transforms."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from longseq.core.ops.gated_norm import cpu, gated_rms_norm


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
