"""Block-diagonal maps on the CPU as an operator of torch: results, gradients and vmap."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from longseq.core.kernels.custom_op import define
from longseq.core.ops import cpu_calls
from longseq.core.ops.block_linear import cpu
from longseq.core.ops.block_linear.cpu import MAX_MAPS, Inputs
from longseq.core.ops.block_linear.reference import block_linear_reference


class _Incoming(NamedTuple):
    first: Tensor
    second: Tensor | None
    third: Tensor | None


def _outputs(inputs: Inputs) -> list[Tensor]:
    return [inputs.x.new_empty(inputs.x.shape) for _ in range(inputs.weight.shape[0])]


def _gradients(inputs: Inputs, into: _Incoming) -> list[Tensor]:
    return [t.new_empty(t.shape) for t in inputs]


def _forward_cpu(inputs: Inputs) -> list[Tensor]:
    outputs = _outputs(inputs)
    cpu_calls.fresh(*outputs)
    cpu.forward(outputs, inputs)
    return outputs


def _backward_cpu(inputs: Inputs, into: _Incoming) -> list[Tensor]:
    dx = inputs.x.new_empty(inputs.x.shape)
    cpu_calls.fresh(dx)
    return [dx, cpu.backward(dx, [dy for dy in into if dy is not None], inputs)]


def _setup(ctx: Any, output: Any, inputs: Inputs) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grads: Any, *more: Any) -> tuple[Any, ...]:
    grads = grads if isinstance(grads, (list, tuple)) else (grads, *more)
    x, weight = ctx.saved_tensors
    grads = [torch.zeros_like(x) if dy is None else dy for dy in grads]
    if torch.is_grad_enabled():

        def again(x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
            return tuple(block_linear_reference(x, *weight.unbind()))

        _, pull, *_ = torch.func.vjp(again, x, weight)
        found = pull(tuple(grads))
    else:
        found = backward(x, weight, *grads, *[None] * (MAX_MAPS - len(grads)))
    return found[0], found[1]


def _composed(inputs: Inputs) -> list[Tensor]:
    return block_linear_reference(inputs.x, *inputs.weight.unbind())


backward = define(
    "longseq::block_linear_backward", (Inputs, _Incoming), None, _gradients, cpu=_backward_cpu
)
forward = define(
    "longseq::block_linear",
    (Inputs,),
    None,
    _outputs,
    cpu=_forward_cpu,
    rows=("x",),
    setup=_setup,
    backward=_backward,
    composed=_composed,
)
