"""The two-way recurrence on the CPU as an operator of torch: results, gradients and vmap."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from longseq.core.kernels.custom_op import define, gradients_of
from longseq.core.ops import cpu_calls
from longseq.core.ops.two_way_recurrence import cpu
from longseq.core.ops.two_way_recurrence.arguments import Arguments
from longseq.core.ops.two_way_recurrence.reference import two_way_recurrence_reference


class _Incoming(NamedTuple):
    dy: Tensor


def _output(call: Arguments) -> Tensor:
    batch, length, width = call.mixed.shape
    return call.mixed.new_empty((batch, length, width // 3))


def _gradient(into: _Incoming, call: Arguments) -> Tensor:
    return call.mixed.new_empty(call.mixed.shape)


def _forward_cpu(call: Arguments) -> Tensor:
    y = _output(call)
    if y.numel():
        cpu_calls.fresh(y)
        cpu.forward(y, call)
    return y


def _backward_cpu(into: _Incoming, call: Arguments) -> Tensor:
    dx = _gradient(into, call)
    if dx.numel():
        cpu_calls.fresh(dx)
        cpu.backward(dx, into.dy, call)
    return dx


def _setup(ctx: Any, output: Tensor, call: Arguments) -> None:
    ctx.save_for_backward(*call)


def _backward(ctx: Any, dy: Tensor) -> Tensor:
    (mixed,) = ctx.saved_tensors
    return backward(dy.to(mixed.dtype), mixed)


def _composed(call: Arguments) -> Tensor:
    return two_way_recurrence_reference(*call)


def _composed_backward(into: _Incoming, call: Arguments) -> Tensor:
    (dx,) = gradients_of(two_way_recurrence_reference, call, into)
    assert dx is not None
    return dx


backward = define(
    "longseq::two_way_recurrence_backward",
    (_Incoming, Arguments),
    1,
    _gradient,
    cpu=_backward_cpu,
    rows=("dy", "mixed"),
    composed=_composed_backward,
)
forward = define(
    "longseq::two_way_recurrence",
    (Arguments,),
    1,
    _output,
    cpu=_forward_cpu,
    rows=("mixed",),
    setup=_setup,
    backward=_backward,
    composed=_composed,
)
