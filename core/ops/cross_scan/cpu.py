"""The cross-scan in one call of the CPU kernels, and its gradients in another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from longseq.core.kernels.custom_op import learnt
from longseq.core.ops import cpu_calls
from longseq.core.ops.backends import native
from longseq.core.ops.cross_scan import composed
from longseq.core.ops.cross_scan.arguments import Arguments, Way
from longseq.core.ops.precision import autocast_off
from longseq.core.ops.selective_scan.cpu import saved_size


def reason(call: Arguments) -> str | None:
    """Returns why the kernels do not take a call, or None if they do."""
    why = cpu_calls.direct_reason(*call[:6], but_autograd=True)
    if why is not None:
        return why
    if call.u.dtype not in (torch.float32, torch.float64):
        return "it takes float32 or float64"
    if any(one.dtype != call.u.dtype for one in call[1:6]):
        return "it takes arguments of one dtype"
    return None if call.u.numel() and call.sizes[4] else "it takes at least one value and a rank"


def _call(given: Sequence[Tensor], ways: tuple[Way, ...]) -> Arguments:
    u, low, weight, bias, A, D = given
    return Arguments(u, low, weight, bias, A, D, ways)


def _rows(*tensors: Tensor) -> list[cpu_calls.Arg]:
    return [cpu_calls.rows(one) for one in tensors]


def _plain(call: Arguments) -> tuple[tuple[int, ...], int, int]:
    sizes = call.sizes
    work = len(call.ways) * sizes[0] * sizes[1] * sizes[2] * sizes[3]
    return sizes, cpu_calls.code(call.u.dtype), cpu_calls.threads(work)


def _ways(call: Arguments) -> tuple[list[int], list[int]]:
    return [int(way.reverse) for way in call.ways], [way.height for way in call.ways]


def _dense(call: Arguments) -> Arguments:
    """Returns the call as the kernels read it: parameters, values and channels dense."""
    u = call.u if call.u.stride(2) == 1 or call.u.shape[2] == 1 else call.u.contiguous()
    return call._replace(
        u=u,
        low=cpu_calls.dense(call.low),
        weight=call.weight.contiguous(),
        bias=call.bias.contiguous(),
        A=call.A.contiguous(),
        D=call.D.contiguous(),
    )


def _forward(call: Arguments, states: Tensor | None) -> Tensor:
    y = call.u.new_empty(call.u.shape)
    cpu_calls.fresh(y)
    at = [cpu_calls.pointer(one) for one in (call.weight, call.bias, call.A, call.D, states)]
    native().cross_scan(*_plain(call), *_rows(call.u, call.low, y), at, *_ways(call))
    return y


def run(call: Arguments) -> Tensor:
    """Returns y."""
    if learnt(call[:6]):
        y: Tensor = _Learnt.apply(call.ways, *call[:6])
        return y
    return _forward(_dense(call), None)


def _composed_gradients(ctx: Any, given: Sequence[Tensor], dy: Tensor) -> tuple[Any, ...]:
    again = torch.is_grad_enabled()
    needed = ctx.needs_input_grad[1:]
    with torch.enable_grad():
        # An argument may stand in two places: views keep each place's part.
        views = [one.view_as(one) for one in given]
        wanted = [one for one, wants in zip(views, needed) if wants]
        y = composed.run(_call(views, ctx.ways))
    found = iter(torch.autograd.grad(y, wanted, dy, create_graph=again))
    return (None, *(next(found) if wants else None for wants in needed))


class _Learnt(torch.autograd.Function):
    """The call with its gradients; second derivatives are taken of its operators."""

    @staticmethod
    def forward(ctx: Any, ways: tuple[Way, ...], *given: Tensor) -> Tensor:
        call = _dense(_call(given, ways))
        batch, length, width, _, _ = call.sizes
        size = saved_size(length, width, 1, call.A[0])
        states = call.u.new_empty((len(ways), batch, size))
        cpu_calls.fresh(states)
        ctx.ways = ways
        ctx.save_for_backward(*given, states)
        return _forward(call, states)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        (dy,) = grads
        *given, states = ctx.saved_tensors
        # A transform or mode may be around the backward alone.
        with autocast_off(dy):  # as it was in the forward
            if torch.is_grad_enabled() or cpu_calls.direct_reason(dy, *given) is not None:
                return _composed_gradients(ctx, given, dy)
        call = _dense(_call(given, ctx.ways))
        dy = dy.to(call.u.dtype)
        dy = dy if dy.stride(2) == 1 and dy.stride(1) >= dy.shape[2] else dy.contiguous()
        du, dlow = call.u.new_empty(call.u.shape), call.u.new_empty(call.low.shape)
        cpu_calls.fresh(du, dlow)
        learnt = (call.weight, call.bias, call.A, call.D)
        room = [torch.empty_like(one) for one in learnt]
        native().cross_scan_backward(
            *_plain(call),
            *_rows(call.u, call.low, dy, du, dlow),
            [cpu_calls.pointer(one) for one in (*learnt, states)],
            [one.data_ptr() for one in room],
            *_ways(call),
        )
        wants = ctx.needs_input_grad[1:]
        return (None, *(one if want else None for one, want in zip((du, dlow, *room), wants)))
