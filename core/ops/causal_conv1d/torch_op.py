"""The causal convolution as an operator of torch: results, gradients, and the rules of autocast and
vmap."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from longseq.core.kernels.custom_op import define, gradients_of
from longseq.core.ops import cpu_calls
from longseq.core.ops.causal_conv1d import cpu, cuda
from longseq.core.ops.causal_conv1d.arguments import Arguments
from longseq.core.ops.causal_conv1d.reference import causal_conv1d_reference


class _Incoming(NamedTuple):
    dy: Tensor


def _output(call: Arguments) -> Tensor:
    return cpu_calls.empty_as(call.x)


def _gradients(into: _Incoming, call: Arguments) -> list[Tensor]:
    """Returns room for the gradients of the first four arguments; none for absent ones."""
    absent = call.x.new_empty((0,))
    room = [absent.clone() if t is None else t.new_empty(t.shape) for t in call[1:4]]
    return [cpu_calls.empty_as(call.x), *room]


def _forward_cpu(call: Arguments) -> Tensor:
    y = _output(call)
    cpu_calls.fresh(y)
    cpu.forward(y, call)
    return y


def _output_reversed(call: Arguments) -> Tensor:
    return call.x.new_empty(call.x.shape)


def _gradients_reversed(into: _Incoming, call: Arguments) -> list[Tensor]:
    return [call.x.new_empty(call.x.shape), *_gradients(into, call)[1:]]


def _reversed_cpu(call: Arguments) -> Tensor:
    y = _output_reversed(call)
    cpu_calls.fresh(y)
    cpu.forward(y, call, reverse=True)
    return y


def _backward_reversed_cpu(into: _Incoming, call: Arguments) -> list[Tensor]:
    outputs = _gradients_reversed(into, call)
    cpu.backward(outputs, into.dy, call, reverse=True)
    return outputs


def _forward_cuda(call: Arguments) -> Tensor:
    y = call.x.new_empty(call.x.shape)  # the kernel writes channels beside each other
    if y.numel():
        cuda.forward(y, call)
    return y


def _backward_cpu(into: _Incoming, call: Arguments) -> list[Tensor]:
    outputs = _gradients(into, call)
    cpu.backward(outputs, into.dy, call)
    return outputs


def _backward_cuda(into: _Incoming, call: Arguments) -> list[Tensor]:
    outputs = _gradients(into, call)
    if not call.x.numel():
        return [t.zero_() for t in outputs]
    return [
        out if given is None or grad is None else grad.to(given.dtype)
        for given, grad, out in zip(call[:4], cuda.backward(into.dy, call), outputs)
    ]


def _setup(ctx: Any, output: Tensor, call: Arguments) -> None:
    ctx.save_for_backward(*call[:5])
    ctx.silu = call.silu


def _backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
    grads = backward(dy, *ctx.saved_tensors, ctx.silu)
    return (*[g if needed else None for g, needed in zip(grads, ctx.needs_input_grad)], None, None)


def _backward_reversed(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
    grads = backward_reversed(dy, *ctx.saved_tensors, ctx.silu)
    return (*[g if needed else None for g, needed in zip(grads, ctx.needs_input_grad)], None, None)


def _composed_reversed(call: Arguments) -> Tensor:
    return _composed(call._replace(x=call.x.flip(1))).flip(1)


def _composed_backward_reversed(into: _Incoming, call: Arguments) -> list[Tensor]:
    dx, *others = _composed_backward(_Incoming(into.dy.flip(1)), call._replace(x=call.x.flip(1)))
    return [dx.flip(1), *others]


def _composed(call: Arguments) -> Tensor:
    return causal_conv1d_reference(*call[:5], "silu" if call.silu else None)


def _composed_backward(into: _Incoming, call: Arguments) -> list[Tensor]:
    def run(*given: Tensor | None) -> Tensor:
        return _composed(Arguments._make([*given, *call[4:]]))

    found = gradients_of(run, call[:4], into)
    return [call.x.new_empty((0,)) if grad is None else grad for grad in found]


backward = define(
    "longseq::causal_conv1d_backward",
    (_Incoming, Arguments),
    None,
    _gradients,
    cpu=_backward_cpu,
    cuda=_backward_cuda,
    composed=_composed_backward,
)
forward = define(
    "longseq::causal_conv1d",
    (Arguments,),
    1,
    _output,
    cpu=_forward_cpu,
    cuda=_forward_cuda,
    rows=("x", "initial_state", "resets"),
    setup=_setup,
    backward=_backward,
    composed=_composed,
    lower=("x", "initial_state"),
    keep=("weight", "bias"),
)
backward_reversed = define(
    "longseq::causal_conv1d_reversed_backward",
    (_Incoming, Arguments),
    None,
    _gradients_reversed,
    cpu=_backward_reversed_cpu,
    composed=_composed_backward_reversed,
)
forward_reversed = define(
    "longseq::causal_conv1d_reversed",
    (Arguments,),
    1,
    _output_reversed,
    cpu=_reversed_cpu,
    rows=("x", "initial_state", "resets"),
    setup=_setup,
    backward=_backward_reversed,
    composed=_composed_reversed,
    lower=("x", "initial_state"),
    keep=("weight", "bias"),
)
