"""The sLSTM recurrence: every kernel and the torch walk against the equations under autograd."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from longseq.core import _cpu
from longseq.core.ops.slstm import SLSTMState, cpu, slstm, slstm_reference, torch_op
from longseq.core.ops.slstm import walk as steps_in_torch
from longseq.core.ops.slstm.arguments import Arguments, Kept

# The kernels, the walk and the equations add the same numbers in another order, and the recurrence
# multiplies roundings by factors of at most one: some tens of roundings, relative to the largest
# value.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}


@pytest.fixture
def walk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The operators of a device without kernels, on the CPU."""

    def forward(*args: Tensor | None) -> tuple[Tensor, ...]:
        return (*steps_in_torch.forward(Arguments(*args[:4])), torch.empty(0))  # type: ignore[arg-type]

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *args):  # type: ignore[no-untyped-def]
            outputs = forward(*args)
            torch_op._setup(ctx, outputs, Arguments(*args[:4]), torch_op._Saving(True))
            return outputs

        @staticmethod
        def backward(ctx, *grads):  # type: ignore[no-untyped-def]
            return torch_op._backward(ctx, *grads)

    monkeypatch.setattr(torch_op, "forward", Function.apply)
    monkeypatch.setattr(
        torch_op, "backward", lambda *args: steps_in_torch.backward(*args[:2], Kept(*args[2:]))
    )


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


def compare(
    dtype: torch.dtype, batch: int, length: int, heads: int, width: int, state: bool, reset: bool
) -> None:
    """Compares values and all gradients of ``slstm`` with those of the equations."""
    gates, recurrent, first = problem(batch, length, heads, width, dtype, state)
    resets = (
        torch.rand(batch, length, generator=torch.Generator().manual_seed(5)) < 0.2
        if reset
        else None
    )
    leaves = [gates, recurrent, *(first or ())]
    results = []
    for function in (slstm, slstm_reference):
        y, last = function(gates, recurrent, first, resets)
        generator = torch.Generator().manual_seed(3)
        loss = sum(
            (part * torch.randn(part.shape, generator=generator, dtype=dtype)).sum()
            for part in (y, *last)
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


# Lengths around the steps between saved cells; widths below, at and above a vector and four
# vectors.
SIZES = [(2, 1, 1, 3), (3, 17, 2, 4), (1, 64, 4, 1), (5, 33, 2, 19), (4, 16, 1, 64), (2, 5, 3, 70)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("batch", "length", "heads", "width"), SIZES)
@pytest.mark.parametrize(
    ("state", "reset"), [(False, False), (True, False), (False, True), (True, True)]
)
def test_every_kernel_equals_equations(
    isa: str,
    dtype: torch.dtype,
    batch: int,
    length: int,
    heads: int,
    width: int,
    state: bool,
    reset: bool,
) -> None:
    compare(dtype, batch, length, heads, width, state, reset)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("batch", "length", "heads", "width"), SIZES[:4])
@pytest.mark.parametrize(("state", "reset"), [(True, True), (False, False)])
def test_walk_equals_equations(
    walk: None,
    dtype: torch.dtype,
    batch: int,
    length: int,
    heads: int,
    width: int,
    state: bool,
    reset: bool,
) -> None:
    compare(dtype, batch, length, heads, width, state, reset)


def run_all(gates: Tensor, recurrent: Tensor, first: SLSTMState, resets: Tensor) -> list[Tensor]:
    leaves = [t.detach().requires_grad_() for t in (gates, recurrent, *first)]
    y, last = slstm(leaves[0], leaves[1], SLSTMState(*leaves[2:]), resets)
    loss = y.cos().sum() + sum(part.sin().sum() for part in last)
    return [y.detach(), *last, *torch.autograd.grad(loss, leaves)]


def test_bits_do_not_depend_on_threads_or_neighbours(isa: str) -> None:
    gates, recurrent, first = problem(7, 40, 2, 50, torch.float32, state=True)
    assert first is not None
    resets = torch.rand(7, 40, generator=torch.Generator().manual_seed(5)) < 0.1
    before = torch.get_num_threads()
    try:
        runs = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            runs.append(run_all(gates, recurrent, first, resets))
        one = slice(3, 4)
        alone = run_all(
            gates[one], recurrent, SLSTMState(*(part[one] for part in first)), resets[one]
        )
    finally:
        torch.set_num_threads(before)
    for i, value in enumerate(runs[0]):
        if i == 6:  # the gradient of the recurrent weights is one sum over rows, by the BLAS
            continue
        assert all(torch.equal(value, other[i]) for other in runs[1:]), i
        assert torch.equal(value[one], alone[i]), i


def test_nothing_passes_a_reset(isa: str) -> None:
    gates, recurrent, first = problem(2, 40, 2, 5, torch.float32, state=True)
    assert first is not None
    gates = gates.detach()
    gates[0, 12, 2, 1, 3] = torch.nan
    resets = torch.zeros(2, 40, dtype=torch.bool)
    resets[0, [10, 30]] = True
    y, last, *rest = run_all(gates, recurrent, first, resets)
    assert y[0, :12].isfinite().all() and y[0, 30:].isfinite().all() and y[1].isfinite().all()
    assert y[0, 12, 1].isnan().any() and last.isfinite().all()
    grad = rest[3]
    assert (
        grad[0, :10].isfinite().all() and grad[0, 30:].isfinite().all() and grad[1].isfinite().all()
    )


def test_infinite_and_nan_gates_equal_equations(isa: str) -> None:
    gates, recurrent, _ = problem(1, 20, 2, 5, torch.float32, state=False)
    for gate in range(4):
        for bad in (torch.inf, -torch.inf, torch.nan):
            wrong = gates.detach().clone()
            wrong[0, 7, gate, 0, 2] = bad
            for actual, expected in zip(
                (slstm(wrong, recurrent)[0], *slstm(wrong, recurrent)[1]),
                (slstm_reference(wrong, recurrent)[0], *slstm_reference(wrong, recurrent)[1]),
            ):
                torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4, equal_nan=True)


@pytest.mark.parametrize(
    ("dtype", "heads", "width", "n"),
    [
        (torch.float32, 4, 4, 4),
        (torch.float32, 6, 5, 3),
        (torch.float32, 5, 4, 1),
        (torch.float32, 4, 9, 1),
        (torch.float64, 4, 4, 2),
        (torch.float64, 8, 1, 8),
    ],
)
def test_narrow_heads_side_by_side_fill_a_vector(
    dtype: torch.dtype, heads: int, width: int, n: int
) -> None:
    assert cpu._merged(dtype, heads, width) == n
    compare(dtype, 3, 18, heads, width, state=True, reset=True)


def test_a_nan_stays_in_its_head() -> None:
    gates, recurrent, first = problem(2, 20, 4, 4, torch.float32, state=True)
    assert first is not None
    weight = torch.ones(2, 20, 4, 4)
    weight[1, 9, 2, 3] = torch.nan
    for given, scale in ((gates.detach().clone(), None), (gates, weight)):
        if scale is None:
            given[0, 7, 1, 1, 2] = torch.nan
        given.requires_grad_()
        y, _ = slstm(given, recurrent, first)
        (grad,) = torch.autograd.grad((y if scale is None else y * scale).sum(), [given])
        bad, rest = ((0, 1), [0, 2, 3]) if scale is None else ((1, 2), [0, 1, 3])
        for found in (y,) if scale is None else (grad.amax(2),):
            assert found[bad[0], :, bad[1]].isnan().any()
            assert found[bad[0]][:, rest].isfinite().all()
            assert found[1 - bad[0]].isfinite().all()


def test_gradcheck_and_operator_rules() -> None:
    gates, recurrent, first = problem(2, 5, 2, 3, torch.float64, state=True)
    resets = torch.zeros(2, 5, dtype=torch.bool)
    resets[0, 3] = True
    assert first is not None

    def run(gates: Tensor, recurrent: Tensor, *parts: Tensor) -> tuple[Tensor, ...]:
        y, last = slstm(gates, recurrent, SLSTMState(*parts), resets)
        return (y, *last)

    assert torch.autograd.gradcheck(run, (gates, recurrent, *first))
    steps = torch.randn(2, 3, 4, 2, 3, requires_grad=True)
    weights = torch.randn(2, 12, 3, requires_grad=True)
    start = torch.stack(
        [torch.randn(2, 2, 3), torch.randn(2, 2, 3), torch.rand(2, 2, 3) + 1, torch.zeros(2, 2, 3)]
    )
    inputs = (steps, weights, start.requires_grad_(), resets[:, :3], True)
    torch.library.opcheck(torch.ops.longseq.slstm_forward, inputs)
    with torch.no_grad():
        hs, last, *saved = torch.ops.longseq.slstm_forward(*inputs)
        torch.library.opcheck(torch.ops.longseq.slstm_forward, (*inputs[:4], False))
        backward_inputs = (torch.ones_like(hs), last, weights, start, resets[:, :3], hs, *saved)
        torch.library.opcheck(torch.ops.longseq.slstm_backward, backward_inputs)
    y = torch.ops.longseq.slstm_forward(steps, weights, start, None, False)[0]
    with pytest.raises(RuntimeError, match="save=False"):
        y.sum().backward()


@pytest.mark.parametrize(("batch", "heads", "width"), [(0, 2, 3), (2, 2, 0), (2, 0, 3)])
def test_empty(batch: int, heads: int, width: int) -> None:
    gates, recurrent, _ = problem(batch, 5, heads, max(width, 1), torch.float32, state=False)
    gates, recurrent = gates[..., :width], recurrent[:, : 4 * width, :width]
    y, _ = slstm(gates, recurrent)
    assert y.shape == (batch, 5, heads, width)
    assert all((g == 0).all() for g in torch.autograd.grad(y.sum(), [gates, recurrent]))


def test_python_and_kernels_agree_on_the_steps_between_saved_cells() -> None:
    assert cpu.MARK == _cpu.MARK


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
