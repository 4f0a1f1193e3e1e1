"""The gated linear unit on the CPU as an operator of torch: results, gradients and vmap."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from longseq.core.kernels.custom_op import define
from longseq.core.ops import cpu_calls
from longseq.core.ops.glu import cpu
from longseq.core.ops.glu.arguments import Arguments
from longseq.core.ops.glu.reference import biased_glu_reference


class _Incoming(NamedTuple):
    dy: Tensor


def _output(call: Arguments) -> Tensor:
    return call.x.new_empty(call.x.shape[0], call.x.shape[1] // 2)


def _gradients(into: _Incoming, call: Arguments) -> list[Tensor]:
    return [call.x.new_empty(call.x.shape), call.x.new_empty(call.x.shape[1])]


def _forward_cpu(call: Arguments) -> Tensor:
    y = _output(call)
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
        a, gate = (x if bias is None else x + bias).chunk(2, -1)
        s = torch.sigmoid(gate)
        dx = torch.cat([dy * s, dy * a * s * (1 - s)], -1)
        dbias = dx.sum(0)
    else:
        dx, dbias = backward(dy, x, bias)
    return dx, None if bias is None else dbias


def _composed(call: Arguments) -> Tensor:
    return biased_glu_reference(*call)


backward = define(
    "longseq::biased_glu_backward", (_Incoming, Arguments), None, _gradients, cpu=_backward_cpu
)
forward = define(
    "longseq::biased_glu",
    (Arguments,),
    1,
    _output,
    cpu=_forward_cpu,
    rows=("x",),
    setup=_setup,
    backward=_backward,
    composed=_composed,
)
