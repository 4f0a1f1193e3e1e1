"""The diagonal-plus-rank-one recurrence: the CPU kernel and torch's operations against the
sequential form, and the delta rule as a case of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from longseq.core.errors import ArgumentError, BackendError
from longseq.core.ops.delta_rule import delta_rule
from longseq.core.ops.dplr import chunked, dplr, dplr_reference
from longseq.core.ops.dplr.arguments import Arguments, checked

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


def composed(
    q: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, log_decay: Tensor, **rest: Any
) -> tuple[Tensor, Tensor]:
    """The chunked form in torch's operations, which serves other devices."""
    return chunked.run(checked(Arguments(q, k, v, a, b, log_decay, **rest)))


FORMS = pytest.mark.parametrize("form", [dplr, composed], ids=["kernel", "torch"])
Form = Callable[..., tuple[Tensor, Tensor]]


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


@FORMS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("length", [1, 2, 7, 16, 17, 64, 77, 130])
def test_chunked_equals_sequential(length: int, dtype: torch.dtype, form: Form) -> None:
    tensors = inputs(length)
    resets = torch.rand(BATCH, length, generator=torch.Generator().manual_seed(3)) < 0.1
    expected = run(dplr_reference, tensors, torch.float64, resets)
    assert_close(run(form, tensors, dtype, resets), expected, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("key, value", [(1, 1), (16, 33), (24, 17), (64, 64)])
def test_any_width_of_keys_and_values(key: int, value: int, dtype: torch.dtype) -> None:
    """Tiles are filled up to 16 channels, which must neither be read nor written beyond a head."""
    generator = torch.Generator().manual_seed(key)
    rows = [
        torch.randn(1, 37, 2, n, dtype=torch.float64, generator=generator)
        for n in (key, key, value, key, key, key)
    ]
    found = normalize(rows[4], dim=-1)
    tensors = dict(zip(("q", "k", "v", "a", "b", "log_decay"), rows))
    tensors |= {"a": found * rows[3].sigmoid(), "b": -found, "log_decay": -rows[5].exp()}
    expected = run(dplr_reference, tensors, torch.float64, None)
    assert_close(run(dplr, tensors, dtype, None), expected, TOLERANCE[dtype])


def test_rows_that_lie_apart_in_memory() -> None:
    """A split of one projection, its rows longer than its heads."""
    tensors = inputs(33)
    wide = torch.cat([tensors[name] for name in ("q", "k", "a", "b")], -1)
    q, k, a, b = wide.flatten(2).unflatten(2, (HEADS, -1)).split(KEY, -1)
    apart = torch.cat([tensors["v"], tensors["v"]], 2)[:, :, :HEADS]
    expected = dplr_reference(**tensors)
    actual = dplr(**tensors | {"q": q, "k": k, "a": a, "b": b, "v": apart})
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def test_the_kernel_is_what_a_cpu_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def in_operations(call: Arguments) -> tuple[Tensor, Tensor]:
        raise AssertionError("torch's operations were run")

    monkeypatch.setattr(chunked, "run", in_operations)
    run(dplr, inputs(20), torch.float32, None)


def test_only_one_of_the_results_is_learnt_from() -> None:
    tensors = inputs(40)
    for which in (0, 1):
        leaves = {key: value.clone().requires_grad_() for key, value in tensors.items()}
        found = torch.autograd.grad(dplr(**leaves)[which].sin().sum(), list(leaves.values()))
        wanted = torch.autograd.grad(
            dplr_reference(**leaves)[which].sin().sum(), list(leaves.values()), allow_unused=True
        )
        for name, one, other in zip(leaves, found, wanted):
            other = torch.zeros_like(one) if other is None else other
            torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12, msg=name)


@pytest.mark.parametrize("chunk_size", [1, 3, 8, 256])
def test_chunk_size_changes_nothing(chunk_size: int) -> None:
    tensors = inputs(41)
    expected, state = dplr(**tensors)
    y, last = composed(**tensors, chunk_size=chunk_size)
    assert_close({"y": y, "state": last}, {"y": expected, "state": state}, 1e-13)


@FORMS
def test_strong_decays_keep_float32_precision(form: Form) -> None:
    """Cumulative log-decays of thousands inside a chunk, with slow spans between them."""
    tensors = inputs(128, strength=60.0)
    tensors["log_decay"][:, torch.arange(128) % 16 >= 4] *= 1e-3
    expected = run(dplr_reference, tensors, torch.float64, None)
    actual = run(form, tensors, torch.float32, None)
    assert all(value.isfinite().all() for value in actual.values())
    assert_close(actual, expected, 1e-5)


@FORMS
def test_a_channel_that_forgets_all_is_still_written_to(form: Form) -> None:
    tensors = inputs(20)
    tensors["log_decay"][:, [0, 7, 8]] = -math.inf
    expected = run(dplr_reference, tensors, torch.float64, None)
    assert_close(run(form, tensors, torch.float64, None), expected, 1e-12)
    assert expected["initial_state"].abs().max() > 0


@FORMS
def test_a_reset_forgets_all(form: Form) -> None:
    tensors = inputs(20)
    resets = torch.zeros(BATCH, 20, dtype=torch.bool)
    resets[:, 8] = True
    y, _ = form(**tensors, resets=resets)
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
        actual = composed(**tensors, resets=resets)
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
    with pytest.raises(ArgumentError, match="chunk_size must be at least 1"):
        dplr(**tensors, chunk_size=0)
    for name in ("k", "a", "b", "log_decay", "initial_state"):
        with pytest.raises(ArgumentError, match=f"^dplr: {name} must"):
            dplr(**tensors | {name: tensors[name][..., :2]})
    with pytest.raises(ArgumentError, match=r"^dplr: q must"):
        dplr(**tensors | {"q": tensors["q"][:, :0]})
    with pytest.raises(BackendError, match="dplr: backend 'triton' cannot be used"):
        dplr(**tensors, backend="triton")
