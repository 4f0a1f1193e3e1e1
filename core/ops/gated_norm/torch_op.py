"""The gated norms on the CPU as an operator of torch: only inputs are kept for the backward."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from longseq.core.kernels.custom_op import define
from longseq.core.ops import cpu_calls
from longseq.core.ops.gated_norm import cpu, reference
from longseq.core.ops.gated_norm.arguments import Arguments


class _Incoming(NamedTuple):
    dout: Tensor


def _output(call: Arguments) -> Tensor:
    return call.y.new_empty(call.y.shape)


def _gradients(into: _Incoming, call: Arguments) -> list[Tensor]:
    return [call.y.new_empty((0,) if x is None else x.shape) for x in call[:5]]


def _forward_cpu(call: Arguments) -> Tensor:
    out = torch.empty(call.y.shape, dtype=call.y.dtype)
    cpu_calls.fresh(out)
    cpu.forward(out, call)
    return out


def _backward_cpu(into: _Incoming, call: Arguments) -> list[Tensor]:
    outputs = _gradients(into, call)
    cpu_calls.fresh(outputs[0], outputs[1], outputs[3])
    cpu.backward(outputs, into.dout, call)
    return outputs


def _setup(ctx: Any, output: Tensor, call: Arguments) -> None:
    ctx.save_for_backward(*call[:5])
    ctx.options = call[5:]


def _backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    if torch.is_grad_enabled():
        there = [x for x in saved if x is not None]

        def again(*values: Tensor) -> Tensor:
            y, z, weight, *more = values
            u, skip = more or (None, None)
            return reference.run(Arguments(y, z, weight, u, skip, *ctx.options))

        _, pull, *_ = torch.func.vjp(again, *there)
        found = pull(dout)
    else:
        found = backward(dout, *saved, *ctx.options)
    grads = [found[k] if k < len(found) and x is not None else None for k, x in enumerate(saved)]
    return (*grads, None, None, None, None)


def _composed(call: Arguments) -> Tensor:
    return reference.run(call)


backward = define(
    "longseq::gated_norm_backward", (_Incoming, Arguments), None, _gradients, cpu=_backward_cpu
)
forward = define(
    "longseq::gated_norm",
    (Arguments,),
    1,
    _output,
    cpu=_forward_cpu,
    rows=("y", "z", "u"),
    setup=_setup,
    backward=_backward,
    composed=_composed,
)


def run(call: Arguments) -> Tensor:
    """Runs a call over the rows of all leading dimensions."""
    width = call.y.shape[-1]
    y, z, u = (None if x is None else x.reshape(-1, width) for x in (call.y, call.z, call.u))
    out: Tensor = forward(y, z, call.weight, u, *call[4:])
    return out.view(call.y.shape)
