"""Linear scan: the kernels against the float64 recurrence, and what it broadcasts, carries and
refuses."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from longseq.core.errors import ArgumentError
from longseq.core.ops.linear_scan import linear_scan, linear_scan_reference

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


def make(
    length: int, channels: tuple[int, ...], complex_: bool, initial: bool, batch: int = 2
) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(length)

    def normal(*shape: int) -> Tensor:
        real = torch.randn(*shape, generator=g)
        return torch.complex(real, torch.randn(*shape, generator=g)) if complex_ else real

    angle = torch.rand(batch, length, *channels, generator=g) * 6.3
    size = torch.exp(-torch.exp(torch.randn(batch, length, *channels, generator=g) - 2))
    a = torch.polar(size, angle) if complex_ else size * torch.where(angle > 3, 1.0, -1.0)
    tensors = {"a": a, "b": normal(batch, length, *channels)}
    if initial:
        tensors["initial_state"] = normal(batch, *channels)
    return tensors


def reference(a: Tensor, b: Tensor, initial_state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    h = linear_scan_reference(a, b, initial_state)
    return h, h[:, -1]


def results(
    function: Callable[..., tuple[Tensor, Tensor]], tensors: dict[str, Tensor]
) -> dict[str, Tensor]:
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in tensors.items()}
    outputs = function(**leaves)
    g = torch.Generator().manual_seed(0)
    weights = [torch.randn(h.shape, generator=g).to(h.dtype) for h in outputs]
    grads = torch.autograd.grad(outputs, list(leaves.values()), weights)
    return {"h": outputs[0].detach(), "last": outputs[1].detach(), **dict(zip(leaves, grads))}


def widen(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        k: t.to(torch.complex128 if t.is_complex() else torch.float64) for k, t in tensors.items()
    }


def worst(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    return max(
        ((actual[k] - v).abs().max() / v.abs().max().clamp(min=1e-30)).item()
        for k, v in expected.items()
    )


@pytest.mark.parametrize("complex_", [False, True], ids=["real", "complex"])
@pytest.mark.parametrize(
    ("length", "channels"),
    [(1, (1,)), (2, (33,)), (3, (5, 3)), (7, (64,)), (64, (17,)), (1000, (5,)), (4097, (3,))],
)
def test_every_kernel_against_the_recurrence_in_float64(
    isa: str, length: int, channels: tuple[int, ...], complex_: bool
) -> None:
    tensors = make(length, channels, complex_, initial=length % 2 == 1)
    expected = results(reference, widen(tensors))
    assert worst(results(linear_scan, tensors), expected) <= TOLERANCE[torch.float32]
    assert worst(results(linear_scan, widen(tensors)), expected) <= TOLERANCE[torch.float64]


def test_strides(isa: str) -> None:
    plain = make(50, (9,), False, True)
    expected = results(linear_scan, plain)
    turned = {k: t.transpose(0, -1).contiguous().transpose(0, -1) for k, t in plain.items()}
    wide = torch.full((2, 50, 20), torch.nan)
    wide[..., 3:12] = plain["b"]
    sliced = {**plain, "b": wide[..., 3:12]}
    every_other = torch.full((2, 100, 9), torch.nan)
    every_other[:, ::2] = plain["a"]
    stepped = {**plain, "a": every_other[:, ::2]}
    for tensors in (turned, sliced, stepped):
        actual = results(linear_scan, tensors)
        assert all(torch.equal(actual[key], value) for key, value in expected.items())


@pytest.mark.parametrize("shape", [(), (9,), (1, 1, 9), (50, 1), (2, 1, 9), (1, 50, 1)])
def test_decays_broadcast(shape: tuple[int, ...]) -> None:
    tensors = make(50, (9,), False, True)
    tensors["a"] = torch.rand(shape, generator=torch.Generator().manual_seed(1))
    full = lambda a, b, initial_state: reference(a.expand_as(b), b, initial_state)  # noqa: E731
    assert worst(results(linear_scan, tensors), results(full, widen(tensors))) <= 1e-5


def test_mixed_dtypes() -> None:
    tensors = make(50, (9,), False, True)
    complex_ = make(50, (9,), True, True)
    for mixed in (
        {**tensors, "a": tensors["a"].double()},
        {**tensors, "initial_state": tensors["initial_state"].double()},
        {**complex_, "a": tensors["a"]},
        {**tensors, "a": complex_["a"]},
        {**tensors, "initial_state": complex_["initial_state"]},
        {**complex_, "b": complex_["b"].to(torch.complex128)},
    ):
        actual, expected = results(linear_scan, mixed), results(reference, widen(mixed))
        assert worst(actual, expected) <= 1e-5
        assert all(actual[key].dtype == tensor.dtype for key, tensor in mixed.items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_keep_a_float32_state(dtype: torch.dtype) -> None:
    tensors = {k: t.to(dtype) for k, t in make(100, (9,), False, True).items()}
    actual, expected = results(linear_scan, tensors), results(reference, widen(tensors))
    assert actual["h"].dtype == actual["last"].dtype == torch.float32
    for name, value in expected.items():
        rounding = torch.finfo(actual[name].dtype).eps / 2
        assert (
            (actual[name] - value).abs() <= rounding * value.abs() + 1e-5 * value.abs().max()
        ).all(), name


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", ["a", "b", "initial_state"])
def test_bad_values_reach_what_depends_on_them_and_nothing_else(
    isa: str, name: str, bad: float
) -> None:
    tensors = make(40, (18,), False, True)
    tensors[name][(1, 7) if name == "initial_state" else (1, 20, 7)] = bad
    actual, expected = results(linear_scan, tensors), results(reference, tensors)
    for key, value in expected.items():
        assert (actual[key].isfinite() == value.isfinite()).all(), key


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 90), st.floats(0, 1), st.integers(1, 20), st.booleans())
def test_a_sequence_may_be_cut_anywhere(length: int, at: float, width: int, complex_: bool) -> None:
    tensors = make(length, (width,), complex_, initial=True)
    h, last = linear_scan(**tensors)
    cut, state, parts = round(at * length), tensors["initial_state"], []
    for part in (slice(0, cut), slice(cut, length)):
        if part.start < part.stop:
            piece, state = linear_scan(tensors["a"][:, part], tensors["b"][:, part], state)
            parts.append(piece)
    assert torch.equal(torch.cat(parts, 1), h) and torch.equal(state, last)


WRONG = {
    "a": [
        torch.zeros(3),
        torch.zeros(2, 40, 5, dtype=torch.int32),
        0.5,
        torch.zeros(5, device="meta"),
    ],
    "b": [torch.zeros(2), torch.zeros(2, 0, 5), torch.zeros(2, 40, 5, dtype=torch.bool), None],
    "initial_state": [
        torch.zeros(5),
        torch.zeros(2, 40, 5),
        [0.0],
        torch.zeros(2, 5, device="meta"),
    ],
}


@pytest.mark.parametrize(
    ("name", "which"), [(n, i) for n, values in WRONG.items() for i in range(len(values))]
)
def test_a_wrong_argument_is_named(name: str, which: int) -> None:
    with pytest.raises(ArgumentError, match=rf"^linear_scan: {name} must .*got "):
        linear_scan(**{**make(40, (5,), False, True), name: WRONG[name][which]})
