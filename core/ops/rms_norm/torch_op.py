"""The root mean square norm on the CPU as an operator of torch: only the sum and the weight are
kept for the backward."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from longseq.core.kernels.custom_op import define, gradients_of
from longseq.core.ops import cpu_calls
from longseq.core.ops.rms_norm import cpu, reference
from longseq.core.ops.rms_norm.arguments import Arguments


class _Incoming(NamedTuple):
    dout: Tensor
    dtotal: Tensor | None
    total: Tensor
    weight: Tensor
    eps: float


def _outputs(call: Arguments) -> tuple[Tensor, Tensor]:
    shape = call.x.shape
    return call.x.new_empty(shape), call.x.new_empty((0,) if call.residual is None else shape)


def _forward_cpu(call: Arguments) -> tuple[Tensor, Tensor]:
    out, total = _outputs(call)
    cpu_calls.fresh(out, total)
    cpu.forward(out, None if call.residual is None else total, call)
    return out, total


def _gradients(into: _Incoming) -> list[Tensor]:
    return [into.total.new_empty(into.total.shape), into.weight.new_empty(into.weight.shape)]


def _backward_cpu(into: _Incoming) -> list[Tensor]:
    dx, dweight = _gradients(into)
    cpu_calls.fresh(dx)
    cpu.backward(dx, dweight, *into)
    return [dx, dweight]


def _setup(ctx: Any, output: tuple[Tensor, Tensor], call: Arguments) -> None:
    ctx.save_for_backward(call.x if call.residual is None else output[1], call.weight)
    ctx.alone, ctx.eps = call.residual is None, call.eps
    ctx.set_materialize_grads(False)


def _backward(
    ctx: Any, dout: Tensor | None, dtotal: Tensor | None
) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
    total, weight = ctx.saved_tensors
    dtotal = None if ctx.alone else dtotal
    if dout is None:
        return dtotal, dtotal, None, None
    if torch.is_grad_enabled():

        def again(total: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
            return reference.run(Arguments(total, None, weight, ctx.eps))

        dx, dweight = gradients_of(again, [total, weight], [dout, dtotal])
    else:
        dx, dweight = backward(dout, dtotal, total, weight, ctx.eps)
    return dx, None if ctx.alone else dx, dweight, None


def _composed(call: Arguments) -> tuple[Tensor, Tensor]:
    out, total = reference.run(call)
    return out, call.x.new_empty(0) if call.residual is None else total


backward = define("longseq::rms_norm_backward", (_Incoming,), None, _gradients, cpu=_backward_cpu)
forward = define(
    "longseq::rms_norm",
    (Arguments,),
    2,
    _outputs,
    cpu=_forward_cpu,
    rows=("x", "residual"),
    setup=_setup,
    backward=_backward,
    composed=_composed,
)


def run(call: Arguments) -> tuple[Tensor, Tensor]:
    """Runs a call over the rows of all leading dimensions."""
    x, residual, weight, eps = call
    width = x.shape[-1]
    rows = None if residual is None else residual.reshape(-1, width)
    out, total = forward(x.reshape(-1, width), rows, weight, eps)
    return out.view(x.shape), x if residual is None else total.view(x.shape)
