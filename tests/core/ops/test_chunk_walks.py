"""Operators that walk over chunks on the CPU: resets, ragged lengths, transforms, what is kept."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from longseq.core.ops.block_linear import block_linear, block_linear_reference
from longseq.core.ops.gated_norm import gated_layer_norm
from longseq.core.ops.linear_attention import chunked as attention_chunked
from longseq.core.ops.linear_attention import torch_op as attention_op
from longseq.core.ops.mlstm import chunked as mlstm_chunked
from longseq.core.ops.mlstm import torch_op as mlstm_op

BATCH, HEADS, KEY, VALUE = 2, 4, 5, 3


def normal(seed: int, *shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(s, dtype=torch.float64, generator=generator) for s in shapes]


def mlstm_inputs(length: int, batch: int = BATCH) -> list[Tensor]:
    rows = (batch, length, HEADS)
    q, k, v, i, f, c, n, m = normal(
        length,
        (*rows, KEY),
        (*rows, KEY),
        (*rows, VALUE),
        rows,
        rows,
        (batch, HEADS, KEY, VALUE),
        (batch, HEADS, KEY),
        (batch, HEADS),
    )
    return [q, k, v, i, torch.nn.functional.logsigmoid(f + 2), c, n, m]


def attention_inputs(length: int, batch: int = BATCH) -> list[Tensor]:
    rows, groups = (batch, length, HEADS), (batch, length, 2, KEY)
    q, k, v, g, state, step, skip = normal(
        length,
        groups,
        groups,
        (*rows, VALUE),
        rows,
        (batch, HEADS, KEY, VALUE),
        rows,
        (HEADS, VALUE),
    )
    return [q, k, v, -g.exp(), state, step, skip]


def mlstm_walk(*values: Tensor) -> tuple[Tensor, ...]:
    return mlstm_op.walk(*values, chunk_size=4, eps=1e-2)


def mlstm_composed(*values: Tensor) -> tuple[Tensor, ...]:
    return mlstm_chunked.composed(*values, chunk_size=4, eps=1e-2)


def attention_walk(*values: Tensor) -> tuple[Tensor, ...]:
    return attention_op.decay_attention(*values[:5], 4, *values[5:])


def attention_composed(*values: Tensor) -> tuple[Tensor, ...]:
    return attention_chunked.per_head(*values[:5], 4, *values[5:])


CASES = [
    pytest.param(mlstm_walk, mlstm_composed, mlstm_inputs, 4, id="mlstm"),
    pytest.param(attention_walk, attention_composed, attention_inputs, 3, id="attention"),
]
Function = Callable[..., tuple[Tensor, ...]]


def loss(outputs: tuple[Tensor, ...]) -> Tensor:
    return torch.stack(
        [
            (y * torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view_as(y).cos()).sum()
            for y in outputs
        ]
    ).sum()


def gradients(function: Function, values: list[Tensor]) -> tuple[Tensor, ...]:
    leaves = [x.clone().requires_grad_() for x in values]
    outputs = function(*leaves)
    return (*[y.detach() for y in outputs], *torch.autograd.grad(loss(outputs), leaves))


@pytest.mark.parametrize(("walk", "composed", "inputs", "decay"), CASES)
# 70: several marks of several chunks, the last one ragged
@pytest.mark.parametrize("length", [2, 4, 37, 70])
def test_walks_equal_their_definition(
    walk: Function,
    composed: Function,
    inputs: Callable[[int], list[Tensor]],
    decay: int,
    length: int,
) -> None:
    values = inputs(length)
    values[decay][:, [0, length // 2]] = -math.inf
    torch.testing.assert_close(
        gradients(walk, values), gradients(composed, values), rtol=1e-9, atol=1e-11
    )
    single = [x.float() for x in values]
    for found, wanted in zip(gradients(walk, single), gradients(walk, values)):
        assert (found - wanted).abs().max() <= 1e-4 * wanted.abs().max()


@pytest.mark.parametrize(("walk", "composed", "inputs", "decay"), CASES)
def test_derivatives_and_transforms(
    walk: Function, composed: Function, inputs: Callable[..., list[Tensor]], decay: int
) -> None:
    values = [x.requires_grad_() for x in inputs(6, 1)]
    assert torch.autograd.gradcheck(walk, values)
    everything = tuple(range(len(values)))

    def scalar(*values: Tensor) -> Tensor:
        return loss(walk(*values))

    wanted = torch.autograd.grad(scalar(*values), values)
    torch.testing.assert_close(torch.func.grad(scalar, everything)(*values), wanted)
    rows = [torch.stack([x, 2 * x]) for x in values]
    found = torch.func.vmap(torch.func.grad(scalar, everything))(*rows)
    torch.testing.assert_close(tuple(x[0] for x in found), wanted)
    first, second = (
        torch.autograd.grad(
            sum(
                g.square().sum()
                for g in torch.autograd.grad(loss(f(*values)), values, create_graph=True)
            ),
            values,
        )
        for f in (walk, composed)
    )
    torch.testing.assert_close(first, second, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize(("walk", "composed", "inputs", "decay"), CASES)
def test_what_is_kept_does_not_grow_with_the_square_of_a_chunk(
    walk: Function, composed: Function, inputs: Callable[[int], list[Tensor]], decay: int
) -> None:
    """The inputs, the output, and a state every few chunks."""
    values = [x.requires_grad_() for x in inputs(256)]
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        kept[x.data_ptr()] = x.numel()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        walk(*values)
    states = 256 // 4 // 4 * BATCH * HEADS * (KEY * VALUE + KEY + 1)
    assert sum(kept.values()) <= 1.5 * sum(x.numel() for x in values) + states


def test_gates_beyond_float32s_exponents() -> None:
    values = [x.float() for x in mlstm_inputs(40)]
    values[3] *= 100
    values[4] *= 100
    assert all(x.isfinite().all() for x in gradients(mlstm_walk, values))
    values[3][:, :9], values[7][:] = -math.inf, -math.inf
    assert all(x.isfinite().all() for x in gradients(mlstm_walk, values))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("width", "block"), [(48, 4), (36, 4), (30, 3), (64, 16), (8, 1)])
def test_block_linear(width: int, block: int, dtype: torch.dtype) -> None:
    x, first, second = (
        t.to(dtype).requires_grad_()
        for t in normal(0, (2, 150, width), *[(width // block, block, block)] * 2)
    )
    actual = tuple(block_linear(x, first, second, backend="cpu"))
    wanted = tuple(block_linear_reference(x, first, second))
    tolerance = 1e-4 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(actual, wanted, rtol=tolerance, atol=tolerance)
    found, expected = (torch.autograd.grad(loss(ys), (x, first, second)) for ys in (actual, wanted))
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_block_linear_second_derivatives_and_vmap() -> None:
    x, weight = (t.requires_grad_() for t in normal(1, (3, 8), (4, 2, 2)))
    assert torch.autograd.gradgradcheck(lambda x, w: block_linear(x, w)[0].sin(), (x, weight))
    found = torch.func.vmap(lambda x: block_linear(x, weight)[0])(torch.stack([x, -x]))
    torch.testing.assert_close(found[1], -block_linear_reference(x, weight)[0])


@pytest.mark.parametrize(("width", "groups"), [(48, 2), (60, 3), (7, 1)])
def test_gated_layer_norm(width: int, groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longseq.core.ops.gated_norm.cpu.SMALL", 1)
    y, z, weight, u, skip = (
        t.requires_grad_() for t in normal(2, *[(140, width)] * 2, (width,), (140, width), (width,))
    )

    def definition(*values: Tensor) -> Tensor:
        return gated_layer_norm(*values, groups, backend="reference")

    def kernel(*values: Tensor) -> Tensor:
        return gated_layer_norm(*values, groups)

    values = [y, z, weight, u, skip]
    torch.testing.assert_close(
        gradients(lambda *v: (kernel(*v),), values),
        gradients(lambda *v: (definition(*v),), values),
        rtol=1e-9,
        atol=1e-9,
    )
    few = [x[:2].detach().requires_grad_() if x.ndim == 2 else x for x in values]
    assert torch.autograd.gradgradcheck(kernel, few)
