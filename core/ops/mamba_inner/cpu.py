"""What a Mamba layer does between its outer maps, in one call of the CPU kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from longseq.core.ops import cpu_calls
from longseq.core.ops.backends import native
from longseq.core.ops.linear_maps import plain_map
from longseq.core.ops.mamba_inner.arguments import Arguments, Way


def _weights(way: Way) -> tuple[Tensor | None, ...]:
    """Returns a direction's weights in the kernel's order."""
    first: Any = way.x_proj
    second: Any = way.dt_proj
    return (
        way.taps,
        way.conv_bias,
        first.weight,
        second.weight,
        second.bias,
        way.A_log,
        way.D,
    )


def _sizes(call: Arguments) -> tuple[int, int, int, int, int, int]:
    """Returns B, L, D, N, rank and d_conv."""
    way = call.ways[0]
    maps: Any = way.dt_proj
    return (*call.x.shape, way.A_log.shape[1], maps.weight.shape[1], way.taps.shape[2])


def reason(call: Arguments) -> str | None:
    """Returns why the kernel does not take a call, or None if it does."""
    x, z, ways, _ = call
    for way in ways:
        if not (plain_map(way.x_proj) and plain_map(way.dt_proj)):
            return "a map is more than a matrix"
    weights = [_weights(way) for way in ways]
    why = cpu_calls.direct_reason(x, z, *(one for each in weights for one in each))
    if why is not None:
        return why
    if x.dtype not in (torch.float32, torch.float64):
        return "it takes float32 or float64"
    if z.dtype != x.dtype or x.stride(2) != 1 or z.stride(2) != 1:
        return "it takes x and z of one dtype, channels dense"
    _, _, width, states, rank, taps = _sizes(call)
    shapes = (
        (width, 1, taps),
        (width,),
        (rank + 2 * states, width),
        (width, rank),
        (width,),
        (width, states),
        (width,),
    )
    for way, each in zip(ways, weights):
        if getattr(way.x_proj, "bias", None) is not None:
            return "the map to Δ, B and C has a bias"
        for one, shape in zip(each, shapes):
            if one is None:
                continue
            if one.shape != shape:
                return "its shapes do not fit one another"
            if one.dtype != x.dtype or not one.is_contiguous():
                return "it takes dense weights of the input's dtype"
    return None if rank and x.numel() else "it takes at least one value, and a rank of 1"


def run(call: Arguments) -> Tensor:
    """Returns y."""
    x, z, ways, scale = call
    sizes = _sizes(call)
    y = x.new_empty(x.shape)
    native().mamba_inner(
        sizes,
        scale,
        cpu_calls.code(x.dtype),
        cpu_calls.threads(x.numel() * sizes[3]),
        cpu_calls.rows(x),
        cpu_calls.rows(z),
        cpu_calls.rows(y),
        [(way.reverse, *(cpu_calls.pointer(t) for t in _weights(way))) for way in ways],
    )
    return y
