"""What a Mamba layer does between its outer maps, in one call of the CPU kernels, and its gradients
in another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from longseq.core.kernels.custom_op import learnt
from longseq.core.ops import cpu_calls
from longseq.core.ops.backends import native
from longseq.core.ops.linear_maps import ANY_HOOKS, plain_map
from longseq.core.ops.mamba_inner import composed
from longseq.core.ops.mamba_inner.arguments import Arguments, Way
from longseq.core.ops.selective_scan.cpu import saved_size

_EACH = 7
"""Weights of a direction."""


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
    batch, length, double = call.xz.shape
    inner = way.A_log.shape[1], maps.weight.shape[1], way.taps.shape[2]
    return (batch, length, double // 2, *inner)


def reason(call: Arguments) -> str | None:
    """Returns why the kernels do not take a call, or None if they do."""
    xz, ways, _ = call
    grads = torch.is_grad_enabled()
    for way in ways:
        for layer in (way.x_proj, way.dt_proj):
            if not (plain_map(layer, ANY_HOOKS) if grads else plain_map(layer)):
                return "a map is more than a matrix"
    weights = [_weights(way) for way in ways]
    given = (one for each in weights for one in each)
    why = cpu_calls.direct_reason(xz, *given, but_autograd=True)
    if why is not None:
        return why
    if xz.dtype not in (torch.float32, torch.float64):
        return "it takes float32 or float64"
    if xz.stride(2) != 1:
        return "it takes dense channels"
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
            if one.dtype != xz.dtype or not one.is_contiguous():
                return "it takes dense weights of the input's dtype"
    return None if rank and xz.numel() else "it takes at least one value, and a rank of 1"


def run(call: Arguments) -> Tensor:
    """Returns y."""
    weights = [one for way in call.ways for one in _weights(way)]
    if learnt((call.xz, *weights)):
        y: Tensor = _Learnt.apply(call.ways, call.scale, _sizes(call), call.xz, *weights)
        return y
    return _forward(call, _sizes(call), weights, [(None, None)] * len(call.ways))


_Kept = list[tuple[Tensor | None, Tensor | None]]
"""Of each direction: the states of every chunk, and what the map gives (see ``MambaWay`` of the
kernels)."""


def _at(ways: tuple[Way, ...], weights: Sequence[Tensor | None], kept: _Kept) -> list[list[int]]:
    """Returns every direction's addresses in the kernel's order."""
    found = []
    for i, way in enumerate(ways):
        tensors = (*weights[_EACH * i : _EACH * (i + 1)], *kept[i])
        found.append([int(way.reverse), *(cpu_calls.pointer(t) for t in tensors)])
    return found


def _plain(call: Arguments, sizes: tuple[int, ...]) -> tuple[Any, ...]:
    work = sizes[0] * sizes[1] * sizes[2] * sizes[3]
    return sizes, call.scale, cpu_calls.code(call.xz.dtype), cpu_calls.threads(work)


def _forward(
    call: Arguments, sizes: tuple[int, ...], weights: Sequence[Tensor | None], kept: _Kept
) -> Tensor:
    x, z = call.halves()
    y = x.new_empty(x.shape)
    cpu_calls.fresh(y)
    rows = (cpu_calls.rows(one) for one in (x, z, y))
    native().mamba_inner(*_plain(call, sizes), *rows, _at(call.ways, weights, kept))
    return y


def _made_of(ways: tuple[Way, ...], weights: Sequence[Tensor]) -> tuple[Way, ...]:
    """Returns the directions with the weights of the call, which a module may have lost since, as
    after ``torch.func.functional_call``."""

    def linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
        layer = nn.Linear(1, 1, device="meta")
        del layer.weight, layer.bias  # parameters; what takes their place may have a history
        layer.weight, layer.bias = weight, bias  # type: ignore[assignment]
        return layer

    found = []
    for i, way in enumerate(ways):
        taps, conv_bias, low, wide, bias, log, skip = weights[_EACH * i : _EACH * (i + 1)]
        maps = linear(low, None), linear(wide, bias)
        found.append(Way(taps, conv_bias, *maps, log, skip, way.reverse))
    return tuple(found)


class _Learnt(torch.autograd.Function):
    """The call with its gradients; second derivatives are taken of its operators."""

    @staticmethod
    def forward(
        ctx: Any,
        ways: tuple[Way, ...],
        scale: float,
        sizes: tuple[int, ...],
        xz: Tensor,
        *weights: Tensor | None,
    ) -> Tensor:
        batch, length, width, states, rank, _ = sizes
        size = saved_size(length, width, 1, ways[0].A_log)
        kept: _Kept = [
            (xz.new_empty((batch, size)), xz.new_empty((batch, length, rank + 2 * states)))
            for _ in ways
        ]
        y = _forward(Arguments(xz, ways, scale), sizes, weights, kept)
        ctx.ways, ctx.scale, ctx.sizes = ways, scale, sizes
        ctx.save_for_backward(xz, *weights, *(one for each in kept for one in each))
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        (dy,) = grads
        xz, *saved = ctx.saved_tensors
        count, needed = _EACH * len(ctx.ways), ctx.needs_input_grad[3:]
        weights, pairs = saved[:count], iter(saved[count:])
        call = Arguments(xz, ctx.ways, ctx.scale)
        if torch.is_grad_enabled():
            # A weight may stand in two places, and xz depend on one: views keep each place's part.
            views: list[Any] = [None if t is None else t.view_as(t) for t in (xz, *weights)]
            wanted = [one for one, wants in zip(views, needed) if wants]
            y = composed.run(Arguments(views[0], _made_of(ctx.ways, views[1:]), ctx.scale), "auto")
            found = iter(torch.autograd.grad(y, wanted, dy, create_graph=True))
            return (None, None, None, *(next(found) if wants else None for wants in needed))
        dy = dy if dy.dtype == xz.dtype and dy.stride(2) == 1 else dy.to(xz.dtype).contiguous()
        dxz = xz.new_empty(xz.shape)
        cpu_calls.fresh(dxz)
        # The kernel writes every gradient; a bias that is absent has one that is thrown away.
        absent = (ctx.sizes[2],)
        room = [xz.new_empty(absent) if t is None else torch.empty_like(t) for t in weights]
        into = [one.data_ptr() for one in room]
        rows = (cpu_calls.rows(one) for one in (*call.halves(), dy, *dxz.chunk(2, dim=-1)))
        native().mamba_inner_backward(
            *_plain(call, ctx.sizes),
            *rows,
            [
                [*at, *into[_EACH * i : _EACH * (i + 1)]]
                for i, at in enumerate(_at(ctx.ways, weights, list(zip(pairs, pairs))))
            ],
        )
        return (
            None,
            None,
            None,
            *(one if wants else None for one, wants in zip((dxz, *room), needed)),
        )
