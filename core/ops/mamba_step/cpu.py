"""One step of a Mamba layer in one call of the CPU kernels: the weights are read once, in order."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from longseq.core.ops import cpu_calls
from longseq.core.ops.backends import native
from longseq.core.ops.linear_maps import plain_map
from longseq.core.ops.mamba_step.arguments import Arguments, MambaLayer

LARGEST_BATCH = 8
"""Beyond it, matrix products that keep the weights in registers are faster."""


def _weights(layer: MambaLayer) -> tuple[Tensor | None, ...]:
    """Returns the weights in the kernel's order."""
    first: Any = layer.in_proj
    second: Any = layer.x_proj
    third: Any = layer.dt_proj
    last: Any = layer.out_proj
    return (
        first.weight,
        first.bias,
        layer.taps,
        layer.conv_bias,
        second.weight,
        third.weight,
        third.bias,
        layer.A_log,
        layer.D,
        last.weight,
        last.bias,
    )


def _rank(layer: MambaLayer) -> int:
    maps: Any = layer.dt_proj
    return int(maps.weight.shape[1])


def reason(call: Arguments) -> str | None:
    """Returns why the kernel does not take a call, or None if it does."""
    x, conv, state, layer = call
    if not all(
        plain_map(one) for one in (layer.in_proj, layer.x_proj, layer.dt_proj, layer.out_proj)
    ):
        return "a map is more than a matrix"
    weights = _weights(layer)
    why = cpu_calls.direct_reason(x, conv, state, *weights)
    if why is not None:
        return why
    if x.dtype not in (torch.float32, torch.float64):
        return "it takes float32 or float64"
    if not 1 <= x.shape[0] <= LARGEST_BATCH:
        return f"it takes 1 to {LARGEST_BATCH} rows, these are {x.shape[0]}"
    (rows, d_model), (width, states), rank = (
        x.shape,
        layer.A_log.shape,
        _rank(layer),
    )
    shapes = (
        (2 * width, d_model),
        (2 * width,),
        (width, 1, layer.taps.shape[-1]),
        (width,),
        (rank + 2 * states, width),
        (width, rank),
        (width,),
        (width, states),
        (width,),
        (d_model, width),
        (d_model,),
    )
    fits = conv.shape == (rows, layer.taps.shape[-1] - 1, width) and state.shape == (
        rows,
        width,
        states,
    )
    if not fits or any(t is not None and t.shape != shape for t, shape in zip(weights, shapes)):
        return "its shapes do not fit one another"
    if not all(
        t is None or (t.dtype == x.dtype and t.is_contiguous()) for t in (x, conv, state, *weights)
    ):
        return "it takes dense tensors of one dtype"
    return None


def run(call: Arguments) -> tuple[Tensor, Tensor, Tensor]:
    """Takes one step."""
    x, conv, state, layer = call
    y, next_conv, after = torch.empty_like(x), torch.empty_like(conv), torch.empty_like(state)
    batch, width, states = state.shape
    rank, taps = _rank(layer), conv.shape[1] + 1
    size = 3 * width * x.shape[1]
    native().mamba_step(
        (batch, x.shape[1], width, states, rank, taps),
        cpu_calls.code(x.dtype),
        cpu_calls.threads(batch * size),
        [cpu_calls.pointer(t) for t in (x, conv, state, *_weights(layer), y, next_conv, after)],
    )
    return y, next_conv, after
