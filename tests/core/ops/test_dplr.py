"""The diagonal-plus-rank-one recurrence: chunked against sequential, and the delta rule as a case
of it."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from longseq.core.errors import ArgumentError, BackendError
from longseq.core.ops.delta_rule import delta_rule
from longseq.core.ops.dplr import dplr, dplr_reference

# Relative to the largest value: about a hundred roundings.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
BATCH, HEADS, KEY, VALUE = 2, 3, 5, 4


def inputs(length: int, strength: float = 1.0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(length)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    rows = (BATCH, length, HEADS, KEY)
    found = normalize(normal(*rows), dim=-1)
    return {
        "q": normal(*rows),
        "k": normal(*rows),
        "v": normal(BATCH, length, HEADS, VALUE),
        "a": found * normal(*rows).sigmoid(),
        "b": -found,
        "log_decay": -strength * normal(*rows).exp(),
        "initial_state": normal(BATCH, HEADS, KEY, VALUE),
    }


def run(
    function: Callable[..., tuple[Tensor, Tensor]],
    tensors: dict[str, Tensor],
    dtype: torch.dtype,
    resets: Tensor | None,
) -> dict[str, Tensor]:
    leaves = {key: value.to(dtype).requires_grad_() for key, value in tensors.items()}
    y, state = function(**leaves, resets=resets)
    weights = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view_as(y).cos().to(dtype)
    gradients = torch.autograd.grad((y * weights).sum() + state.sin().sum(), list(leaves.values()))
    return {"y": y.detach(), "state": state.detach(), **dict(zip(leaves, gradients))}


def assert_close(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    for key, value in expected.items():
        error = (actual[key].double() - value.double()).abs().max().item()
        assert error <= tolerance * value.abs().max().item(), f"{key}: {error:.2e}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("length", [1, 2, 7, 64, 65, 100])
def test_chunked_equals_sequential(length: int, dtype: torch.dtype) -> None:
    tensors = inputs(length)
    resets = torch.rand(BATCH, length, generator=torch.Generator().manual_seed(3)) < 0.1
    expected = run(dplr_reference, tensors, torch.float64, resets)
    assert_close(run(dplr, tensors, dtype, resets), expected, TOLERANCE[dtype])


@pytest.mark.parametrize("chunk_size", [1, 3, 8, 256])
def test_chunk_size_changes_nothing(chunk_size: int) -> None:
    tensors = inputs(41)
    expected, state = dplr(**tensors)
    y, last = dplr(**tensors, chunk_size=chunk_size)
    assert_close({"y": y, "state": last}, {"y": expected, "state": state}, 1e-13)


def test_strong_decays_keep_float32_precision() -> None:
    """Cumulative log-decays of thousands inside a chunk, with slow spans between them."""
    tensors = inputs(128, strength=60.0)
    tensors["log_decay"][:, torch.arange(128) % 16 >= 4] *= 1e-3
    expected = run(dplr_reference, tensors, torch.float64, None)
    actual = run(dplr, tensors, torch.float32, None)
    assert all(value.isfinite().all() for value in actual.values())
    assert_close(actual, expected, 1e-5)


def test_a_channel_that_forgets_all_is_still_written_to() -> None:
    tensors = inputs(20)
    tensors["log_decay"][:, [0, 7, 8]] = -math.inf
    expected = run(dplr_reference, tensors, torch.float64, None)
    assert_close(run(dplr, tensors, torch.float64, None), expected, 1e-12)
    assert expected["initial_state"].abs().max() > 0


def test_a_reset_forgets_all() -> None:
    tensors = inputs(20)
    resets = torch.zeros(BATCH, 20, dtype=torch.bool)
    resets[:, 8] = True
    y, _ = dplr(**tensors, resets=resets)
    fresh, _ = dplr_reference(**{k: v[:, 8:] for k, v in tensors.items() if k != "initial_state"})
    torch.testing.assert_close(y[:, 8:], fresh, rtol=1e-12, atol=1e-12)


def test_the_delta_rule_is_a_case_of_it() -> None:
    tensors = inputs(50)
    tensors["k"] = normalize(tensors["k"], dim=-1)
    beta = torch.linspace(0, 2, BATCH * 50 * HEADS, dtype=torch.float64).view(BATCH, 50, HEADS, 1)
    a, b = -beta * tensors["k"], tensors["log_decay"].exp() * tensors["k"]
    actual = dplr(**tensors | {"a": a, "b": b, "v": beta * tensors["v"]})
    rest = {key: value for key, value in tensors.items() if key not in "ab"}
    torch.testing.assert_close(
        actual, delta_rule(**rest, beta=beta.squeeze(-1)), rtol=1e-11, atol=1e-11
    )


def test_without_gradients_a_long_call_runs_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longseq.core.ops.chunking.BLOCK", 16)
    tensors = inputs(50)
    resets = torch.rand(BATCH, 50, generator=torch.Generator().manual_seed(3)) < 0.1
    expected = dplr_reference(**tensors, resets=resets)
    with torch.no_grad():
        actual = dplr(**tensors, resets=resets)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def test_low_precision_inputs_keep_a_float32_state() -> None:
    tensors = {key: value.bfloat16() for key, value in inputs(33).items()}
    with torch.autocast("cpu", torch.bfloat16):
        y, state = dplr(**tensors)
    assert (y.dtype, state.dtype) == (torch.bfloat16, torch.float32)
    expected, _ = dplr_reference(**{key: value.double() for key, value in tensors.items()})
    assert (
        y - expected
    ).abs().max() <= 2**-8 * expected.abs().max()  # the rounding of the output alone


def test_second_derivatives_transforms_and_compilation() -> None:
    tensors = {key: value[:1] for key, value in inputs(7).items()}
    names, values = list(tensors), [value.requires_grad_() for value in tensors.values()]

    def run_it(*values: Tensor) -> Tensor:
        y, state = dplr(**dict(zip(names, values)), chunk_size=4)
        return y.sin().sum() + state.square().sum()

    assert torch.autograd.gradcheck(run_it, values) and torch.autograd.gradgradcheck(run_it, values)
    wanted = torch.autograd.grad(run_it(*values), values)
    rows = [torch.stack([value, 2 * value]) for value in values]
    found = torch.func.vmap(torch.func.grad(run_it, tuple(range(len(values)))))(*rows)
    compiled = torch.compile(run_it, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(torch.autograd.grad(compiled(*values), values), wanted)
    torch.testing.assert_close(tuple(x[0] for x in found), wanted)


def test_an_empty_batch_and_what_is_refused() -> None:
    tensors = inputs(70)
    y, state = dplr(**{key: value[:0] for key, value in tensors.items()})
    assert y.shape == (0, 70, HEADS, VALUE) and state.shape == (0, HEADS, KEY, VALUE)
    for name in ("k", "a", "b", "log_decay", "initial_state"):
        with pytest.raises(ArgumentError, match=f"^dplr: {name} must"):
            dplr(**tensors | {name: tensors[name][..., :2]})
    with pytest.raises(ArgumentError, match=r"^dplr: q must"):
        dplr(**tensors | {"q": tensors["q"][:, :0]})
    with pytest.raises(BackendError, match="dplr: backend 'triton' cannot be used"):
        dplr(**tensors, backend="triton")
