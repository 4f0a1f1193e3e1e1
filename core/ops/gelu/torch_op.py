"""The GELU on the CPU as an operator of torch: results, gradients and vmap."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from longseq.core.kernels.custom_op import define, gradients_of
from longseq.core.ops import cpu_calls
from longseq.core.ops.gelu import cpu
from longseq.core.ops.gelu.arguments import Arguments
from longseq.core.ops.gelu.reference import biased_gelu_reference


class _Incoming(NamedTuple):
    dy: Tensor


def _output(call: Arguments) -> Tensor:
    return call.x.new_empty(call.x.shape)


def _gradients(into: _Incoming, call: Arguments) -> list[Tensor]:
    return [call.x.new_empty(call.x.shape), call.bias.new_empty(call.bias.shape)]


def _forward_cpu(call: Arguments) -> Tensor:
    y = _output(call)
    cpu_calls.fresh(y)
    cpu.forward(y, call)
    return y


def _backward_cpu(into: _Incoming, call: Arguments) -> list[Tensor]:
    dx, dbias = _gradients(into, call)
    cpu_calls.fresh(dx)
    cpu.backward(dx, dbias, into.dy, call)
    return [dx, dbias]


def _setup(ctx: Any, output: Tensor, call: Arguments) -> None:
    ctx.save_for_backward(*call)


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, bias = ctx.saved_tensors
    if torch.is_grad_enabled():  # in operations that have derivatives themselves
        return tuple(gradients_of(biased_gelu_reference, [x, bias], [dy]))
    return tuple(backward(dy, x, bias))


def _composed(call: Arguments) -> Tensor:
    return biased_gelu_reference(*call)


backward = define(
    "longseq::biased_gelu_backward", (_Incoming, Arguments), None, _gradients, cpu=_backward_cpu
)
forward = define(
    "longseq::biased_gelu",
    (Arguments,),
    1,
    _output,
    cpu=_forward_cpu,
    rows=("x",),
    setup=_setup,
    backward=_backward,
    composed=_composed,
)
