"""The gated convolution on the CPU as an operator of torch: results, gradients and vmap."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from longseq.core.kernels.custom_op import define
from longseq.core.ops import cpu_calls
from longseq.core.ops.causal_conv1d import causal_conv1d_reference
from longseq.core.ops.fft_conv import fft_conv, work_dtype
from longseq.core.ops.gated_conv import composed, cpu
from longseq.core.ops.gated_conv.arguments import Arguments


class _Incoming(NamedTuple):
    dy: Tensor
    du: Tensor | None


def _outputs(call: Arguments) -> tuple[Tensor, Tensor]:
    shape = (*call.x.shape[:2], call.x.shape[2] // 3)
    return call.x.new_empty(shape), call.x.new_empty(shape)


def _gradients(into: _Incoming, call: Arguments) -> list[Tensor]:
    """Returns room for the gradients of x, weight, bias, kernel and shift."""
    inner = call.weight.shape[:1]
    taps, dbias, dshift = (call.kernel.new_empty(s) for s in (call.weight.shape, inner, inner))
    return [call.x.new_empty(call.x.shape), taps, dbias, torch.empty_like(call.kernel), dshift]


def _forward_cpu(call: Arguments) -> tuple[Tensor, Tensor]:
    y, u = _outputs(call)
    cpu_calls.fresh(y, u)
    if y.numel():
        cpu.forward(y, u, call)
    return y, u


def _backward_cpu(into: _Incoming, call: Arguments) -> list[Tensor]:
    outputs = _gradients(into, call)
    cpu_calls.fresh(outputs[0])
    if call.x.numel():
        cpu.backward(outputs, *into, call)
    else:
        outputs = [t.zero_() for t in outputs]
    given = (None, call.weight, call.bias, None, call.shift)
    return [grad if t is None else grad.to(t.dtype) for grad, t in zip(outputs, given)]


def _setup(ctx: Any, output: Any, call: Arguments) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*call)


def _backward(ctx: Any, dy: Tensor | None, du: Tensor | None) -> tuple[Tensor | None, ...]:
    call = Arguments(*ctx.saved_tensors)
    if dy is None:
        dy = call.x.new_zeros(*call.x.shape[:2], call.x.shape[2] // 3)
    if torch.is_grad_enabled():
        return _differentiable_gradients(dy, du, call)
    dx, dweight, dbias, dkernel, dshift = backward(dy, du, *call)
    # The kernel's gradient at lag 0 is that of the direct connection; a view would keep all of it
    # alive.
    dskip = None if call.skip is None else dkernel[:, 0].clone()
    dbias, dshift = None if call.bias is None else dbias, None if call.shift is None else dshift
    return dx, dweight, dbias, dkernel, dskip, dshift


def _differentiable_gradients(
    dy: Tensor, du: Tensor | None, call: Arguments
) -> tuple[Tensor | None, ...]:
    """Returns the gradients in operations that have derivatives themselves."""

    def run(*there: Tensor) -> tuple[Tensor, Tensor]:
        rest = iter(there)
        x, weight, bias, kernel, skip, shift = (None if t is None else next(rest) for t in call)
        assert x is not None and weight is not None and kernel is not None
        x = x if shift is None else x + shift.to(x.dtype)
        first, factor, value = causal_conv1d_reference(x, weight, bias).chunk(3, -1)
        u = factor * value
        return first * fft_conv(u, kernel, skip), u

    given = [t for t in call if t is not None]
    grads = iter(torch.func.vjp(run, *given)[1]((dy, torch.zeros_like(dy) if du is None else du)))
    return tuple(None if t is None else next(grads) for t in call)


def _composed(call: Arguments) -> tuple[Tensor, Tensor]:
    return composed.run(call)


backward = define(
    "longseq::gated_conv_backward", (_Incoming, Arguments), None, _gradients, cpu=_backward_cpu
)
forward = define(
    "longseq::gated_conv",
    (Arguments,),
    2,
    _outputs,
    cpu=_forward_cpu,
    rows=("x",),
    setup=_setup,
    backward=_backward,
    composed=_composed,
)


def run(call: Arguments) -> tuple[Tensor, Tensor]:
    """Runs a checked call by the kernels; a single position goes through the four operators."""
    if call.x.shape[1] == 1:
        return composed.run(call)
    dtype = work_dtype(call.x, call.kernel)
    skip = None if call.skip is None else call.skip.to(dtype)
    y, u = forward(*call._replace(kernel=call.kernel.to(dtype), skip=skip))
    return y, u
