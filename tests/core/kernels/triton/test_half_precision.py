"""Triton operators in bfloat16 and float16, and under autocast: outputs, final states and every
gradient.

The interpreter multiplies bfloat16 operands as float32 (see ``common.choose_tile``). What is
checked without a GPU is what is rounded where: inputs, outputs, the decayed operands that are
stored, and gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from longseq.core.ops.delta_rule import delta_rule, delta_rule_reference
from longseq.core.ops.linear_attention import linear_attention, linear_attention_reference
from longseq.core.ops.mlstm import mlstm, mlstm_reference
from longseq.core.ops.ssd import ssd, ssd_reference

Tensors = dict[str, Tensor]
LOW = ("q", "k", "v", "x", "z", "B", "C")  # activations; gates, decays and states are float32
LENGTH = 21
# A rounding is at most 2^-8 of a number in bfloat16, where the interpreter cuts off instead (2^-7),
# and 2^-11 in float16. Outputs and gradients are rounded once, the decayed operands that are stored
# once more, and over a sum such errors average out.
TOLERANCE = {torch.bfloat16: 1e-2, torch.float16: 2e-3}
each_dtype = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=["bf16", "fp16"])


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def attention_inputs(decay: str) -> Tensors:
    made = {name: normal(1, LENGTH, 1, 5, seed=at) for at, name in enumerate("qk")}
    made |= {"v": normal(1, LENGTH, 2, 4), "initial_state": normal(1, 2, 5, 4)}
    if decay != "none":
        shape = (1, LENGTH, 2) if decay == "head" else (1, LENGTH, 1, 5)
        made["log_decay"] = -normal(*shape, seed=2).exp()
    return made


def delta_inputs(decay: str) -> Tensors:
    made = attention_inputs(decay)
    made["k"] = torch.nn.functional.normalize(made["k"], dim=-1)
    return made | {"beta": 2 * normal(1, LENGTH, 2, seed=3).sigmoid()}


def ssd_inputs() -> Tensors:
    return {
        "x": normal(1, LENGTH, 4, 3),
        "dt": normal(1, LENGTH, 4),
        "A": -normal(4).exp(),
        "B": normal(1, LENGTH, 2, 5),
        "C": normal(1, LENGTH, 2, 5, seed=1),
        "D": normal(4),
        "dt_bias": normal(4, seed=1),
        "initial_states": normal(1, 4, 3, 5),
    }


def mlstm_inputs(divided: bool) -> Tensors:
    # Small input gates: the divisor is its floor. Large ones, and products of one sign: it is
    # |nᵀq|, and no difference that happens to vanish.
    sign, shift = (torch.abs, 4.0) if divided else (torch.clone, -3.0)
    made = {name: sign(normal(1, LENGTH, 2, 5, seed=at)) for at, name in enumerate("qk")}
    made |= {
        "v": normal(1, LENGTH, 2, 4),
        "i": normal(1, LENGTH, 2) + shift,
        "f": normal(1, LENGTH, 2) + 2,
    }
    return made | {
        "c": 0.3 * normal(1, 2, 5, 4),
        "n": 0.3 * sign(normal(1, 2, 5)),
        "m": normal(1, 2) + shift,
    }


def memory(function: Callable[..., Any]) -> Callable[..., tuple[Tensor, ...]]:
    def call(c: Tensor, n: Tensor, m: Tensor, **rest: Any) -> tuple[Tensor, ...]:
        y, state = function(**rest, initial_state=(c, n, m))
        return (y, *state)

    return call


OPERATORS: dict[str, tuple[Callable[..., Any], Callable[..., Any], Tensors, dict[str, Any]]] = {
    **{
        f"linear attention, decay: {decay}": (
            linear_attention,
            linear_attention_reference,
            attention_inputs(decay),
            {},
        )
        for decay in ("none", "head", "channel")
    },
    **{
        f"delta rule, decay: {decay}": (delta_rule, delta_rule_reference, delta_inputs(decay), {})
        for decay in ("none", "head", "channel")
    },
    "ssd": (ssd, ssd_reference, ssd_inputs(), {"dt_softplus": True}),
    "mlstm": (memory(mlstm), memory(mlstm_reference), mlstm_inputs(False), {}),
    "mlstm, divided": (memory(mlstm), memory(mlstm_reference), mlstm_inputs(True), {}),
}


def packed(device: str) -> Tensor:
    """Three sequences in a row, the first of which continues the initial state."""
    resets = torch.zeros(1, LENGTH, dtype=torch.bool, device=device)
    resets[:, [6, 17]] = True
    return resets


def run(
    function: Callable[..., Any],
    tensors: Tensors,
    dtype: torch.dtype,
    exact: bool,
    device: str,
    **options: Any,
) -> Tensors:
    """Outputs and gradients of a loss linear in the output; ``exact``: in float64, of the rounded
    inputs."""
    leaves = {}
    for key, value in tensors.items():
        leaf = value.to(device, dtype if key in LOW else torch.float32)
        leaves[key] = (leaf.double() if exact else leaf).requires_grad_()
    outputs = function(**leaves, **options, resets=packed(device))
    loss = torch.zeros((), dtype=torch.float64, device=device)
    for at, value in enumerate(outputs):
        weights = normal(*value.shape, seed=at + 9).to(device)
        loss = loss + (value.double() * weights).sum()
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    found = {f"output {at}": value.detach() for at, value in enumerate(outputs)}
    return found | {f"gradient of {key}": value for key, value in zip(leaves, gradients)}


@each_dtype
@pytest.mark.parametrize("name", OPERATORS)
def test_agrees_with_float64(name: str, dtype: torch.dtype, device: str) -> None:
    fast, reference, tensors, options = OPERATORS[name]
    actual = run(fast, tensors, dtype, False, device, **options, chunk_size=16, backend="triton")
    expected = run(reference, tensors, dtype, True, device, **options)
    assert actual["output 0"].dtype == dtype
    for key, value in expected.items():
        low = key == "output 0" or key.removeprefix("gradient of ") in LOW
        assert actual[key].dtype == (dtype if low else torch.float32), key
        error = (actual[key].double() - value).abs().max()
        assert error <= TOLERANCE[dtype] * value.abs().max(), f"{key}: {error:.2e}"


@pytest.mark.parametrize(
    "name",
    [
        "linear attention, decay: head",
        "linear attention, decay: channel",
        "delta rule, decay: channel",
        "ssd",
        "mlstm",
    ],
)
def test_autocast_lowers_activations_and_nothing_else(name: str, device: str) -> None:
    """As the compiled operators do: float32 arguments under autocast = activations rounded
    beforehand."""
    fast, _, tensors, options = OPERATORS[name]
    options = {**options, "chunk_size": 16, "backend": "triton", "resets": packed(device)}
    full = {key: value.to(device, torch.float32).requires_grad_() for key, value in tensors.items()}
    low = {
        key: value.detach().to(torch.bfloat16 if key in LOW else torch.float32)
        for key, value in full.items()
    }
    low = {key: value.requires_grad_() for key, value in low.items()}
    with torch.autocast(device, torch.bfloat16):
        under = fast(**full, **options)
    rounded = fast(**low, **options)
    assert under[0].dtype == torch.bfloat16 and all(
        state.dtype == torch.float32 for state in under[1:]
    )
    for a, b in zip(under, rounded):
        assert torch.equal(a, b)
    found, expected = (
        torch.autograd.grad(sum(t.float().sum() for t in outputs), list(leaves.values()))
        for outputs, leaves in ((under, full), (rounded, low))
    )
    for key, a, b in zip(tensors, found, expected):
        assert a.dtype == torch.float32 and torch.equal(a, b.float()), key
