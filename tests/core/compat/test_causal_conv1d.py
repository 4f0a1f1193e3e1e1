"""The signatures of causal-conv1d: against sums written out, and against the published references.

The live tests run where LONGSEQ_UPSTREAM_CAUSAL_CONV1D names a checkout of Dao-AILab/causal-conv1d.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import silu

from longseq.core.compat.causal_conv1d import causal_conv1d_fn, causal_conv1d_update
from longseq.core.compat.causal_conv1d.causal_conv1d_interface import causal_conv1d_ref
from longseq.core.errors import ArgumentError

CHECKOUT = os.environ.get("LONGSEQ_UPSTREAM_CAUSAL_CONV1D")
BATCH, WIDTH, LENGTH, TAPS = 2, 5, 23, 4


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(
        *shape, generator=torch.Generator().manual_seed(seed + sum(shape)), dtype=torch.float64
    )


def inputs(length: int = LENGTH, taps: int = TAPS) -> dict[str, Tensor]:
    return {"x": normal(BATCH, WIDTH, length), "weight": normal(WIDTH, taps), "bias": normal(WIDTH)}


def oracle(
    x: Tensor, weight: Tensor, bias: Tensor, past: Tensor, seq_idx: Tensor | None, act: bool
) -> Tensor:
    """Every output from its own sum, as the published kernel reads."""
    taps, seen = weight.shape[1], torch.cat([past, x], 2)
    columns = []
    for t in range(x.shape[2]):
        total = bias.expand(BATCH, -1)
        for w in range(taps):
            source = t - taps + 1 + w
            part = weight[:, w] * seen[:, :, t + w]
            if seq_idx is not None:
                same = seq_idx[:, max(source, 0)] == seq_idx[:, t]
                part = torch.where(same[:, None], part, torch.zeros_like(part))
            total = total + part
        total = silu(total) if act else total
        if seq_idx is not None:
            total = torch.where(seq_idx[:, t, None] < 0, torch.zeros_like(total), total)
        columns.append(total)
    return torch.stack(columns, 2)


def same(actual: Tensor, expected: Tensor, tolerance: float = 1e-12) -> float:
    error = ((actual - expected).abs().max() / expected.abs().max().clamp(min=1e-30)).item()
    assert actual.shape == expected.shape and error <= tolerance, error
    return error


def gradients(y: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    return list(
        torch.autograd.grad(y, leaves, normal(*y.shape, seed=8).to(y.dtype), retain_graph=True)
    )


@pytest.mark.parametrize("activation", [None, "silu", "swish"])
@pytest.mark.parametrize(("length", "taps"), [(LENGTH, TAPS), (1, 4), (2, 4), (40, 2), (9, 1)])
def test_convolution_with_states(length: int, taps: int, activation: Any) -> None:
    given = inputs(length, taps)
    past = normal(BATCH, WIDTH, taps - 1)
    leaves = [t.requires_grad_() for t in (*given.values(), past)]
    expected = oracle(*given.values(), past, None, activation is not None)
    buffer = torch.zeros(BATCH, WIDTH, taps - 1, dtype=torch.float64)
    y, final = causal_conv1d_fn(
        **given,
        initial_states=past,
        return_final_states=True,
        final_states_out=buffer,
        activation=activation,
    )
    wanted = torch.cat([past, given["x"]], 2)[..., length:]
    assert final is buffer and torch.equal(final, wanted)
    same(y, expected)
    for actual, wanted_grad in zip(gradients(y, leaves), gradients(expected, leaves)):
        same(actual, wanted_grad) if wanted_grad.numel() else None
    if taps > 1:
        (again, last) = causal_conv1d_fn(**given, initial_states=past, return_final_states=True)
        (flow,) = torch.autograd.grad(last.sum() + again.sum() * 0, [given["x"]])
        assert flow.sum() == BATCH * WIDTH * min(length, taps - 1)
    zeros = torch.zeros_like(past)
    plain = causal_conv1d_fn(**given, activation=activation)
    same(plain, oracle(*given.values(), zeros, None, activation is not None))
    assert plain.is_contiguous()


INDICES = {
    "packed": [[0] * 5 + [1] * 2 + [2] + [3] * 15, [4] * 23],
    "padded": [[0] * 9 + [-1] * 14, [-1] * 3 + [7] * 20],
    "returning": [[0, 0, 1, 0, 0, 1, 1, 0] + [2, 3] * 7 + [2], [-1, 5, -1, 5, 5] + [-1] * 18],
}


@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("kind", INDICES)
@pytest.mark.parametrize("begun", [False, True])
def test_sequences_in_one_row(kind: str, activation: Any, begun: bool) -> None:
    """The states before are those of the sequence of position 0."""
    given = inputs()
    seq_idx = torch.tensor(INDICES[kind], dtype=torch.int32)
    leaves = [t.requires_grad_() for t in given.values()]
    past = torch.zeros(BATCH, WIDTH, TAPS - 1, dtype=torch.float64)
    if begun:
        past = normal(BATCH, WIDTH, TAPS - 1)
        leaves.append(past.requires_grad_())
    expected = oracle(*leaves[:3], past, seq_idx, activation is not None)
    states = {"initial_states": past} if begun else {}
    for function in (causal_conv1d_fn, causal_conv1d_ref):
        y = function(**given, **states, seq_idx=seq_idx, activation=activation)
        assert isinstance(y, Tensor)
        same(y, expected)
        for actual, wanted in zip(gradients(y, leaves), gradients(expected, leaves)):
            same(actual, wanted)
    nothing = causal_conv1d_fn(given["x"][..., :0], given["weight"], None, seq_idx[:, :0], past)
    assert isinstance(nothing, Tensor) and nothing.shape == (BATCH, WIDTH, 0)


@pytest.mark.parametrize("size", [TAPS - 1, TAPS, 9])
@pytest.mark.parametrize("length", [None, 1, 2, 5, 12])
@pytest.mark.parametrize("circular", [False, True])
def test_update(size: int, length: int | None, circular: bool) -> None:
    given = inputs(length or 1)
    if length is None:
        given["x"] = given["x"].squeeze(-1)
    history = normal(BATCH, WIDTH, size, seed=3)
    seen = torch.tensor([4, 11], dtype=torch.int32)
    state, count = history.clone(), length or 1
    if circular:  # entry i of the history was written at position seen - size + i
        for row in range(BATCH):
            state[row] = history[row].roll(int(seen[row]) % size, -1)
    expected = oracle(
        given["x"].view(BATCH, WIDTH, count),
        given["weight"],
        given["bias"],
        history[..., size - TAPS + 1 :],
        None,
        True,
    )
    slots = torch.full((4, WIDTH, size), torch.nan, dtype=torch.float64)
    slots[[2, 0]] = state
    options = {"activation": "silu", "cache_seqlens": seen if circular else None}
    weight = given["weight"].requires_grad_()
    y = causal_conv1d_update(given["x"], state, weight, given["bias"], **options)
    same(y.view_as(expected), expected)
    y.sum().backward()
    assert weight.grad is not None and not state.requires_grad
    after = torch.cat([history, given["x"].view(BATCH, WIDTH, count)], -1)[..., -size:]
    for row in range(BATCH):
        turn = (int(seen[row]) + count) % size if circular else 0
        assert torch.equal(state[row], after[row].roll(turn, -1))
    indexed = causal_conv1d_update(
        given["x"], slots, weight, given["bias"], **options, conv_state_indices=torch.tensor([2, 0])
    )
    assert (
        torch.equal(indexed, y)
        and torch.equal(slots[[2, 0]], state)
        and slots[[1, 3]].isnan().all()
    )
    kept = slots.clone()
    padded = causal_conv1d_update(
        -given["x"],
        slots,
        weight,
        given["bias"],
        **options,
        conv_state_indices=torch.tensor([2, -1]),
    )
    assert (padded[1] == 0).all() and (padded[0] != 0).any()
    assert torch.equal(slots[0], kept[0]) and not torch.equal(slots[2], kept[2])


def test_layout_and_dtype_of_the_output() -> None:
    given = {k: v.bfloat16() for k, v in inputs().items()}
    turned = given["x"].transpose(1, 2).contiguous().transpose(1, 2)
    y, state = causal_conv1d_fn(**{**given, "x": turned}, return_final_states=True)
    assert y.dtype == state.dtype == torch.bfloat16 and y.stride() == turned.stride()
    assert torch.equal(y, causal_conv1d_fn(**given))


def test_a_wrong_argument_is_named() -> None:
    given, state = inputs(), torch.zeros(BATCH, WIDTH, TAPS - 1, dtype=torch.float64)
    seq_idx = torch.zeros(BATCH, LENGTH, dtype=torch.int32)
    for key, value in (
        ("x", torch.ones(3)),
        ("weight", torch.ones(2, 2)),
        ("activation", "relu"),
        ("seq_idx", torch.ones(2, 3)),
        ("seq_idx", torch.ones(BATCH, LENGTH)),
        ("bias", torch.ones(1)),
        ("initial_states", torch.ones(2)),
    ):
        with pytest.raises(ArgumentError, match=key):
            causal_conv1d_fn(**{**given, key: value})
    with pytest.raises(ArgumentError, match="seq_idx does not go together"):
        causal_conv1d_fn(**given, seq_idx=seq_idx, return_final_states=True)
    with pytest.raises(ArgumentError, match=r"initial_states must be .* = \(2, 5, 3\), got"):
        causal_conv1d_fn(**given, seq_idx=seq_idx, initial_states=state[..., :2])
    for key, value in (
        ("conv_state", state[..., :2]),
        ("conv_state", state[:1]),
        ("conv_state_indices", torch.ones(3)),
        ("cache_seqlens", torch.ones(2)),
        ("x", torch.ones(5)),
        ("activation", "gelu"),
    ):
        with pytest.raises(ArgumentError, match=key):
            causal_conv1d_update(**{**given, "conv_state": state, key: value})


@pytest.fixture
def upstream(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The interface of the checkout, without its compiled part."""
    if CHECKOUT is None:
        pytest.skip("LONGSEQ_UPSTREAM_CAUSAL_CONV1D names no checkout of Dao-AILab/causal-conv1d")
    name = "causal_conv1d"
    package, compiled = ModuleType(name), ModuleType(f"{name}.cpp_functions")
    package.__path__ = [str(Path(CHECKOUT) / name)]
    for function in ("fwd", "bwd", "update"):
        setattr(compiled, f"causal_conv1d_{function}_function", None)
    monkeypatch.setitem(sys.modules, name, package)
    monkeypatch.setitem(sys.modules, compiled.__name__, compiled)
    yield importlib.import_module(f"{name}.causal_conv1d_interface")
    sys.modules.pop(f"{name}.causal_conv1d_interface")


@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("initial", [False, True])
def test_against_upstream(upstream: ModuleType, activation: Any, initial: bool) -> None:
    given = {k: v.float().requires_grad_() for k, v in inputs().items()}
    leaves = list(given.values())
    options: dict[str, Any] = {"activation": activation, "return_final_states": True}
    if initial:
        options["initial_states"] = normal(BATCH, WIDTH, TAPS - 1).float().requires_grad_()
        leaves.append(options["initial_states"])
    y, state = causal_conv1d_fn(**given, **options)
    expected, expected_state = upstream.causal_conv1d_ref(**given, **options)
    errors = [same(y, expected, 1e-6), same(state, expected_state, 0.0)]
    errors += [same(a, b, 1e-6) for a, b in zip(gradients(y, leaves), gradients(expected, leaves))]
    print(f"causal_conv1d_ref {activation} initial={initial}: {max(errors):.1e}")


@pytest.mark.parametrize("circular", [False, True])
@pytest.mark.parametrize("length", [None, 1, 3])
@pytest.mark.parametrize("size", [TAPS - 1, 8])
def test_update_against_upstream(
    upstream: ModuleType, size: int, length: int | None, circular: bool
) -> None:
    given = {k: v.float() for k, v in inputs(length or 1).items()}
    if length is None:
        given["x"] = given["x"].squeeze(-1)
    mine, theirs = (normal(BATCH, WIDTH, size).float() for _ in range(2))
    options = {"activation": "silu", "cache_seqlens": torch.tensor([2, 13]) if circular else None}
    y = causal_conv1d_update(given["x"], mine, given["weight"], given["bias"], **options)
    expected = upstream.causal_conv1d_update_ref(
        given["x"], theirs, given["weight"], given["bias"], **options
    )
    error = max(same(y, expected, 1e-6), same(mine, theirs, 0.0))
    print(f"causal_conv1d_update_ref size={size} length={length} circular={circular}: {error:.1e}")
