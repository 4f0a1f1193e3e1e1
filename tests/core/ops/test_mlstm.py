"""mLSTM: chunked against sequential, the unstabilised equations, extreme gates, resets."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from longseq.core.errors import ArgumentError
from longseq.core.ops.mlstm import MLSTMState, mlstm, mlstm_reference

# Relative to the largest value: about a hundred roundings, in float64 a thousand after the
# division.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
BATCH, HEADS, KEY, VALUE = 2, 3, 5, 4


def inputs(length: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(length)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    return {
        "q": normal(BATCH, length, HEADS, KEY),
        "k": normal(BATCH, length, HEADS, KEY),
        "v": normal(BATCH, length, HEADS, VALUE),
        # Small input gates keep |n·q| below the floor exp(-m) as a rule: a division by a difference
        # that happens to vanish would amplify any rounding.
        "i": normal(BATCH, length, HEADS) - 3,
        "f": normal(BATCH, length, HEADS) + 2,
        "c": 0.3 * normal(BATCH, HEADS, KEY, VALUE),
        "n": 0.3 * normal(BATCH, HEADS, KEY),
        "m": normal(BATCH, HEADS) - 2,
    }


def call(
    function: Callable[..., tuple[Tensor, MLSTMState]],
    tensors: dict[str, Tensor],
    **options: object,
) -> dict[str, Tensor]:
    gates = [tensors[key] for key in ("q", "k", "v", "i", "f")]
    state = tuple(tensors[key] for key in ("c", "n", "m")) if "c" in tensors else None
    y, (c, n, m) = function(*gates, initial_state=state, **options)
    return {"y": y, "last c": c, "last n": n, "last m": m}


def run(
    function: Callable[..., tuple[Tensor, MLSTMState]],
    tensors: dict[str, Tensor],
    dtype: torch.dtype,
    **options: object,
) -> dict[str, Tensor]:
    leaves = {key: value.to(dtype).requires_grad_() for key, value in tensors.items()}
    results = call(function, leaves, **options)
    loss = torch.zeros((), dtype=dtype)
    for value in results.values():
        weights = torch.linspace(-1, 1, value.numel(), dtype=torch.float64).view_as(value).cos()
        loss = loss + (value * weights.to(dtype)).sum()
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    return {
        **{key: value.detach() for key, value in results.items()},
        **dict(zip(leaves, gradients)),
    }


def assert_close(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    for key, value in expected.items():
        error = (actual[key].double() - value.double()).abs().max().item()
        assert error <= tolerance * value.abs().max().item(), f"{key}: {error:.2e}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("length", [1, 2, 7, 64, 65, 100])
def test_chunked_equals_sequential(length: int, dtype: torch.dtype) -> None:
    resets = torch.rand(BATCH, length, generator=torch.Generator().manual_seed(3)) < 0.1
    expected = run(mlstm_reference, inputs(length), torch.float64, resets=resets)
    assert_close(run(mlstm, inputs(length), dtype, resets=resets), expected, TOLERANCE[dtype])


@pytest.mark.parametrize("chunk_size", [1, 3, 8, 256])
def test_chunk_size_changes_nothing(chunk_size: int) -> None:
    expected = call(mlstm, inputs(41))
    assert_close(call(mlstm, inputs(41), chunk_size=chunk_size), expected, 1e-12)


def test_without_gradients_a_long_call_runs_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longseq.core.ops.chunking.BLOCK", 16)
    for missing in ((), ("c", "n", "m")):
        tensors = {key: value for key, value in inputs(50).items() if key not in missing}
        with torch.no_grad():
            actual = call(mlstm, tensors)
        assert_close(actual, call(mlstm_reference, tensors), 1e-12)


@pytest.mark.parametrize("function", [mlstm, mlstm_reference])
def test_the_equations_without_a_stabiliser(
    function: Callable[..., tuple[Tensor, MLSTMState]],
) -> None:
    tensors = inputs(12)
    actual = call(function, tensors, eps=0.0)
    scale = tensors["m"].exp()
    c, n = tensors["c"] * scale[..., None, None], tensors["n"] * scale[..., None]
    for t in range(12):
        forget, write = torch.sigmoid(tensors["f"][:, t]), torch.exp(tensors["i"][:, t])
        key, value, query = (
            tensors["k"][:, t] / math.sqrt(KEY),
            tensors["v"][:, t],
            tensors["q"][:, t],
        )
        c = (
            forget[..., None, None] * c
            + write[..., None, None] * key[..., None] * value[..., None, :]
        )
        n = forget[..., None] * n + write[..., None] * key
        floor = (n * query).sum(-1, keepdim=True).abs().clamp_min(1.0)
        expected = torch.einsum("bhkv,bhk->bhv", c, query) / floor
        torch.testing.assert_close(actual["y"][:, t], expected, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(actual["last c"] * actual["last m"].exp()[..., None, None], c)


def test_a_reset_is_a_fresh_start() -> None:
    tensors = inputs(20)
    resets = torch.zeros(BATCH, 20, dtype=torch.bool)
    resets[:, [0, 7, 8]] = True
    actual = run(mlstm, tensors, torch.float64, resets=resets)
    for key in ("c", "n", "m"):
        assert actual[key].abs().max() == 0, "a gradient passed a reset"
    fresh = call(
        mlstm_reference, {k: v[:, 8:] for k, v in tensors.items() if k not in ("c", "n", "m")}
    )
    torch.testing.assert_close(actual["y"][:, 8:], fresh["y"], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(actual["last m"], fresh["last m"], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("gate", ["i", "f"])
@pytest.mark.parametrize("level", [-200.0, 200.0])
def test_extreme_gates_stay_finite_in_float32(gate: str, level: float) -> None:
    tensors = inputs(70)
    tensors[gate] = tensors[gate] + level
    for missing in ((), ("c", "n", "m")):
        given = {key: value for key, value in tensors.items() if key not in missing}
        actual = run(mlstm, given, torch.float32)
        assert all(value.isfinite().all() for value in actual.values())


def test_positions_with_a_closed_input_gate_are_skipped() -> None:
    """An input gate of -inf writes nothing, even where nothing was written before."""
    tensors = {k: v for k, v in inputs(10).items() if k not in ("c", "n", "m")}
    tensors["i"][:, :4] = -math.inf
    tensors["f"][:, :4] = 40.0
    actual = run(mlstm, tensors, torch.float64)
    assert all(value.isfinite().all() for value in actual.values())
    assert actual["y"][:, :4].abs().max() == 0
    rest = call(mlstm, {key: value[:, 4:] for key, value in tensors.items()})
    torch.testing.assert_close(actual["y"][:, 4:], rest["y"], rtol=1e-12, atol=1e-12)


def test_low_precision_inputs_keep_a_float32_state() -> None:
    tensors = {key: value.bfloat16() for key, value in inputs(33).items()}
    with torch.autocast("cpu", torch.bfloat16):
        results = call(mlstm, tensors)
    assert results.pop("y").dtype == torch.bfloat16
    assert all(value.dtype == torch.float32 for value in results.values())


def test_gradcheck() -> None:
    tensors = {key: value[:1].requires_grad_() for key, value in inputs(6).items()}
    names = list(tensors)
    assert torch.autograd.gradcheck(
        lambda *values: tuple(call(mlstm, dict(zip(names, values)), chunk_size=4).values()),
        list(tensors.values()),
    )


@pytest.mark.parametrize("name", ["k", "i", "f", "c", "n", "m"])
def test_wrong_shapes_are_named(name: str) -> None:
    tensors = inputs(4)
    with pytest.raises(ArgumentError, match=f"(?i)^mlstm: {name} .*must have shape"):
        call(mlstm, tensors | {name: tensors[name][..., :-1]})
