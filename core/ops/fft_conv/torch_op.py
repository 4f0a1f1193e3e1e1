"""The long convolution on the CPU as an operator of torch: the backward keeps the input and the
kernel."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from longseq.core.kernels.custom_op import define
from longseq.core.ops import cpu_calls
from longseq.core.ops.fft_conv import composed, cpu
from longseq.core.ops.fft_conv.cpu import Inputs, field_size


class _Incoming(NamedTuple):
    dy: Tensor


def _output(inputs: Inputs) -> Tensor:
    x = inputs.x
    return x.new_empty((x.shape[0], inputs.new, x.shape[2]))


def _gradients(into: _Incoming, inputs: Inputs) -> list[Tensor]:
    return [inputs.x.new_empty(inputs.x.shape), torch.empty_like(inputs.kernel)]


def _forward_cpu(inputs: Inputs) -> Tensor:
    y = _output(inputs)
    cpu_calls.fresh(y)
    if y.numel():
        cpu.forward(y, inputs)
    return y


def _backward_cpu(into: _Incoming, inputs: Inputs) -> list[Tensor]:
    dx, dkernel = _gradients(into, inputs)
    if not dx.numel():
        return [dx, dkernel.zero_()]
    cpu_calls.fresh(dx)
    cpu.backward(dx, dkernel, into.dy, inputs)
    return [dx, dkernel]


def spectral_gradients(
    dy: Tensor, x: Tensor, kernel: Tensor, skip: Tensor | None, size: int
) -> tuple[Tensor, Tensor]:
    """Returns the gradients of x and of the kernel in operations of torch, which have derivatives
    themselves.

    Args:
        dy: (B, L, D).
        x: (B, T, D), T ≥ L.
        kernel: (D, taps).
        skip: (D,), a further weight at lag 0, or None.
        size: of the transform, at least T + L - 1 and L + taps - 1.
    """
    total, new = x.shape[1], dy.shape[1]
    rest = torch.nn.functional.pad(dy.to(kernel.dtype).transpose(1, 2), (total - new, 0))
    later = torch.fft.rfft(rest, n=size)
    response = torch.fft.rfft(kernel[:, :total], n=size)
    if skip is not None:
        response = response + skip.unsqueeze(-1)
    dx = torch.fft.irfft(later * response.conj(), n=size)[..., :total].transpose(1, 2)
    spectrum = torch.fft.rfft(x.to(kernel.dtype).transpose(1, 2), n=size)
    lags = torch.fft.irfft((later * spectrum.conj()).sum(0), n=size)[
        :, : min(total, kernel.shape[1])
    ]
    return dx.to(x.dtype), torch.nn.functional.pad(lags, (0, kernel.shape[1] - lags.shape[1]))


def _setup(ctx: Any, output: Tensor, inputs: Inputs) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.new = inputs.new


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, kernel, skip = ctx.saved_tensors
    if torch.is_grad_enabled():
        total = x.shape[1]
        size = 2 * field_size(total + max(ctx.new, min(total, kernel.shape[1])) - 1)
        dx, dkernel = spectral_gradients(dy, x, kernel, skip, size)
    else:
        dx, dkernel = backward(dy, x, kernel, skip, ctx.new)
    # The kernel's gradient at lag 0 is that of the direct connection; a view would keep all of it
    # alive.
    return dx, dkernel, None if skip is None else dkernel[:, 0].clone(), None


def _composed(inputs: Inputs) -> Tensor:
    return composed.convolve(*inputs)


backward = define(
    "longseq::long_conv_backward", (_Incoming, Inputs), None, _gradients, cpu=_backward_cpu
)
forward = define(
    "longseq::long_conv",
    (Inputs,),
    1,
    _output,
    cpu=_forward_cpu,
    rows=("x",),
    setup=_setup,
    backward=_backward,
    composed=_composed,
)


def convolve(x: Tensor, k: Tensor, skip: Tensor | None, new: int) -> Tensor:
    """``composed.convolve`` by the kernels; one position is one product, as quick in torch."""
    if new == 1:
        return composed.convolve(x, k, skip, new)
    y: Tensor = forward(x, k, skip, new)
    return y
