"""The depthwise convolution of maps on the CPU as an operator of torch: results, gradients, and
the rules of autocast and vmap."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from longseq.core.kernels.custom_op import define, gradients_of
from longseq.core.ops import cpu_calls
from longseq.core.ops.depthwise_conv2d import cpu, reference
from longseq.core.ops.depthwise_conv2d.arguments import Arguments


class _Incoming(NamedTuple):
    dy: Tensor


def _output(call: Arguments) -> Tensor:
    return call.x.new_empty(call.x.shape)


def _gradients(into: _Incoming, call: Arguments) -> list[Tensor]:
    x, weight, bias, _ = call
    dbias = weight.new_empty(weight.shape[:1]) if bias is None else bias.new_empty(bias.shape)
    return [x.new_empty(x.shape), weight.new_empty(weight.shape), dbias]


def _forward_cpu(call: Arguments) -> Tensor:
    y = _output(call)
    cpu_calls.fresh(y)
    cpu.forward(y, call)
    return y


def _backward_cpu(into: _Incoming, call: Arguments) -> list[Tensor]:
    dx, dweight, dbias = _gradients(into, call)
    cpu_calls.fresh(dx)
    cpu.backward(dx, dweight, dbias, into.dy, call)
    return [dx, dweight, dbias]


def _setup(ctx: Any, output: Tensor, call: Arguments) -> None:
    ctx.save_for_backward(*call[:3])
    ctx.silu = call.silu


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bias = ctx.saved_tensors
    if torch.is_grad_enabled():  # in operations that have derivatives themselves

        def again(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            return reference.run(Arguments(x, weight, bias, ctx.silu))

        return (*gradients_of(again, [x, weight, bias], [dy]), None)
    dx, dweight, dbias = backward(dy, x, weight, bias, ctx.silu)
    return dx, dweight, None if bias is None else dbias, None


backward = define(
    "longseq::depthwise_conv2d_backward",
    (_Incoming, Arguments),
    None,
    _gradients,
    cpu=_backward_cpu,
)
forward = define(
    "longseq::depthwise_conv2d",
    (Arguments,),
    1,
    _output,
    cpu=_forward_cpu,
    rows=("x",),
    setup=_setup,
    backward=_backward,
    composed=reference.run,
    lower=("x",),
    keep=("weight", "bias"),
)


def run(call: Arguments) -> Tensor:
    """Runs a checked call by the CPU kernels."""
    y: Tensor = forward(*call)
    return y
