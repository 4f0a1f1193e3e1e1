"""The sLSTM recurrence: the batched walk with its own backward against the equations under autograd."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from longseq.core.ops.slstm import SLSTMState, slstm, slstm_reference

# The walk and the equations add the same numbers in another order, and the recurrence multiplies roundings
# by factors of at most one: some tens of roundings, relative to the largest value.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}


def problem(
    batch: int, length: int, heads: int, width: int, dtype: torch.dtype, state: bool, seed: int = 0
) -> tuple[Tensor, Tensor, SLSTMState | None]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    gates = 2 * draw(batch, length, 4, heads, width)
    recurrent = draw(heads, 4 * width, width) / width**0.5
    if not state:
        return gates.requires_grad_(), recurrent.requires_grad_(), None
    h, c, m = (draw(batch, heads, width) for _ in range(3))
    n = 1 + draw(batch, heads, width).abs()
    return (
        gates.requires_grad_(),
        recurrent.requires_grad_(),
        SLSTMState(*(part.requires_grad_() for part in (h, c, n, m))),
    )


def close(actual: Tensor, expected: Tensor, what: str) -> None:
    bound = TOLERANCE[expected.dtype] * max(1.0, expected.abs().max().item())
    error = (actual - expected).abs().max().item()
    assert error <= bound, f"{what}: {error:.2e} > {bound:.2e}"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("batch", "length", "heads", "width"), [(2, 1, 1, 3), (3, 17, 2, 4), (1, 64, 4, 1)])
@pytest.mark.parametrize("state", [False, True])
@pytest.mark.parametrize("reset", [False, True])
def test_walk_equals_equations(
    dtype: torch.dtype, batch: int, length: int, heads: int, width: int, state: bool, reset: bool
) -> None:
    gates, recurrent, first = problem(batch, length, heads, width, dtype, state)
    resets = torch.rand(batch, length, generator=torch.Generator().manual_seed(5)) < 0.2 if reset else None
    leaves = [gates, recurrent, *(first or ())]
    results = []
    for function in (slstm, slstm_reference):
        y, last = function(gates, recurrent, first, resets)
        generator = torch.Generator().manual_seed(3)
        loss = sum(
            (part * torch.randn(part.shape, generator=generator, dtype=dtype)).sum() for part in (y, *last)
        )
        gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
        results.append(((y, *last), gradients))
    (values, gradients), (values_ref, gradients_ref) = results
    for name, actual, expected in zip("yhcnm", values, values_ref):
        close(actual, expected, name)
    for name, actual_gradient, expected_gradient in zip(
        ("gates", "recurrent", "h", "c", "n", "m"), gradients, gradients_ref
    ):
        close(actual_gradient, expected_gradient, f"gradient of {name}")


def test_gradcheck_and_operator_rules() -> None:
    gates, recurrent, first = problem(2, 5, 2, 3, torch.float64, state=True)
    resets = torch.zeros(2, 5, dtype=torch.bool)
    resets[0, 3] = True
    assert first is not None

    def run(gates: Tensor, recurrent: Tensor, *parts: Tensor) -> tuple[Tensor, ...]:
        y, last = slstm(gates, recurrent, SLSTMState(*parts), resets)
        return (y, *last)

    assert torch.autograd.gradcheck(run, (gates, recurrent, *first))
    steps = torch.randn(3, 2, 2, 12, requires_grad=True)
    weights = torch.randn(2, 12, 3, requires_grad=True)
    start = torch.stack(
        [torch.randn(2, 2, 3), torch.randn(2, 2, 3), torch.rand(2, 2, 3) + 1, torch.zeros(2, 2, 3)]
    )
    torch.library.opcheck(torch.ops.longseq.slstm_forward, (steps, weights, start.requires_grad_(), None))


def test_extreme_gates_stay_finite() -> None:
    gates, recurrent, _ = problem(2, 300, 2, 4, torch.float32, state=False)
    y, last = slstm(60 * gates, recurrent)
    assert all(torch.isfinite(part).all() for part in (y, *last))
    assert (last.n >= 1).all()
    gradients = torch.autograd.grad(y.sum() + last.c.sum(), [gates, recurrent])
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


def test_state_is_float32_under_autocast() -> None:
    gates, recurrent, _ = problem(2, 4, 2, 4, torch.float32, state=False)
    with torch.autocast("cpu", torch.bfloat16):
        y, last = slstm(gates.to(torch.bfloat16), recurrent)
    assert y.dtype == torch.bfloat16
    assert all(part.dtype == torch.float32 for part in last)


def test_compiles_whole() -> None:
    gates, recurrent, first = problem(2, 5, 2, 3, torch.float32, state=True)

    def run(gates: Tensor, recurrent: Tensor, first: SLSTMState) -> Tensor:
        return slstm(gates, recurrent, first)[0] * 2

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    assert first is not None
    close(compiled(gates, recurrent, first), run(gates, recurrent, first), "output")
    (gradient,) = torch.autograd.grad(compiled(gates, recurrent, first).sum(), [gates])
    (expected,) = torch.autograd.grad(run(gates, recurrent, first).sum(), [gates])
    close(gradient, expected, "gradient")
