"""Inputs so large that squares overflow in float32: mixers that norm stay near float64, forward and
backward."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from longseq.core.mixers import create_mixer
from longseq.core.ops.precision import bounded

SMALL = {"d_state": 8, "headdim": 8}
GATED = {"allow_neg_eigval": True, "use_gate": True}


@pytest.mark.parametrize(
    ("name", "options", "size"),
    # Not kda, nor delta_net without a gate: where what was written is taken away whole, their norm
    # makes the rounding of values of this size as large as an output.
    [
        ("mamba2", SMALL, 1e4),
        ("mamba2", SMALL, 1e6),
        ("log_linear_mamba2", SMALL, 1e4),
        ("gated_delta_net", {}, 1e15),
        ("gated_delta_product", {}, 1e15),
        ("delta_net", GATED, 1e15),
        ("gla", {}, 1e8),
        ("hgrn2", {}, 1e15),
        ("retention", {}, 1e8),
        ("transnormer", {}, 1e8),
        ("mlstm", {}, 1e8),
        ("titans", {}, 1e15),
        ("longvq", {}, 1e8),
    ],
)
def test_large_inputs_agree_with_float64(name: str, options: dict[str, Any], size: float) -> None:
    torch.manual_seed(0)
    mixer = create_mixer(name, 16, **options)
    x = (torch.randn(2, 70, 16) * size).requires_grad_()
    y = mixer(x)[0]
    # Scaled, so that the gradient of x is of usual size.
    found = torch.autograd.grad(y.sum(), x)[0]
    exact = x.detach().double().requires_grad_()
    wanted_y = mixer.double()(exact)[0]
    wanted = torch.autograd.grad(wanted_y.sum(), exact)[0]
    for one, other in ((y, wanted_y), (found, wanted)):
        assert one.isfinite().all()
        error = (one.double() - other).detach().abs().amax() / other.detach().abs().amax()
        assert error < 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_bounded_leaves_usual_rows_alone(dtype: torch.dtype) -> None:
    x = torch.randn(4, 8).to(dtype)
    assert bounded(x) is x
    great = x.clone()
    great[1] *= 2.0**400 if dtype == torch.float64 else 2.0**90
    out = bounded(great)
    assert torch.equal(out[[0, 2, 3]], x[[0, 2, 3]])
    assert out[1].square().sum().isfinite()
    torch.testing.assert_close(out[1] / out[1].abs().max(), x[1] / x[1].abs().max())
    mapped = torch.func.vmap(bounded)(great)
    assert torch.equal(mapped, out)


def test_bounded_of_nothing_and_of_what_is_not_finite() -> None:
    assert bounded(torch.zeros(0, 4)).shape == (0, 4)
    assert bounded(torch.zeros(3, 0)).shape == (3, 0)
    assert bounded(torch.tensor([[1.0, torch.inf], [torch.nan, 1.0]])).isnan().any(-1).all()
