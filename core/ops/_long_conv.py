"""The compiled long convolution as a torch operator: the backward keeps the input and the kernel only."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from longseq.core.ops import _native
from longseq.core.ops.backends import native

_SHORT_KERNEL = 8  # a sequence this many times longer than the kernel is cut into overlapping frames
_ODD = (1, 3, 5, 9, 15)  # odd factors of transforms: sizes at most a quarter apart


def field_size(n: int) -> int:
    """Returns the number N of points whose 2N values hold ``n``.

    Args:
        n: values, at least 1.
    """
    return min(m << max(0, -(-n // (2 * m)) - 1).bit_length() for m in _ODD)


def _arguments(
    x: Tensor, kernel: Tensor, skip: Tensor | None, new: int, span: int
) -> tuple[list[Any], list[Any]]:
    """Returns the kernels' common arguments, for frames of the ``span`` positions to be worked out, and the
    tensors that must outlive the call."""
    x = _native.dense(x)
    batch, total, channels = x.shape
    taps = kernel.shape[1]
    reach = min(taps, total) - 1
    hop = span
    if span > _SHORT_KERNEL * taps:
        points = field_size(max(4 * taps, 64))
        hop = 2 * points - reach
    else:
        points = field_size(max(span + reach, taps))
    arguments = [
        (batch, total, new, channels, points, hop), _native.code(kernel.dtype),
        _native.threads(batch * total * channels), _native.rows(x),
        (kernel.data_ptr(), taps, kernel.stride(0), kernel.stride(1)), _native.pointer(skip),
    ]  # fmt: skip
    return arguments, [x, kernel, skip]


@torch.library.custom_op("longseq::long_conv", mutates_args=(), device_types="cpu")
def _conv(x: Tensor, kernel: Tensor, skip: Tensor | None, new: int) -> Tensor:
    y = _conv_fake(x, kernel, skip, new)
    _native.fresh(y)
    skip = None if skip is None else skip.contiguous()
    arguments, alive = _arguments(x, kernel[:, : x.shape[1]], skip, new, new)
    native().long_conv_forward(*arguments, _native.rows(y))
    del alive
    return y


@_conv.register_fake
def _conv_fake(x: Tensor, kernel: Tensor, skip: Tensor | None, new: int) -> Tensor:
    return x.new_empty((x.shape[0], new, x.shape[2]))


@torch.library.custom_op("longseq::long_conv_backward", mutates_args=(), device_types="cpu")
def _conv_backward(dy: Tensor, x: Tensor, kernel: Tensor, skip: Tensor | None, new: int) -> list[Tensor]:
    dx, dkernel = _conv_backward_fake(dy, x, kernel, skip, new)
    total = x.shape[1]
    seen = dkernel[:, :total]  # laid out as the kernel is
    dkernel[:, total:] = 0
    skip = None if skip is None else skip.contiguous()
    taps = kernel[:, :total]
    if taps.stride() != seen.stride():
        taps = torch.empty_like(dkernel)[:, :total].copy_(taps)
    arguments, alive = _arguments(x, taps, skip, new, total)
    dy = _native.dense(dy)
    _native.fresh(dx)
    native().long_conv_backward(*arguments, _native.rows(dy), _native.rows(dx), dkernel.data_ptr())
    del alive
    return [dx, dkernel]


@_conv_backward.register_fake
def _conv_backward_fake(dy: Tensor, x: Tensor, kernel: Tensor, skip: Tensor | None, new: int) -> list[Tensor]:
    return [x.new_empty(x.shape), torch.empty_like(kernel)]


def spectral_gradients(
    dy: Tensor, x: Tensor, kernel: Tensor, skip: Tensor | None, size: int
) -> tuple[Tensor, Tensor]:
    """Returns the gradients of x and of the kernel in operations of torch, which have derivatives themselves.

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
    lags = torch.fft.irfft((later * spectrum.conj()).sum(0), n=size)[:, : min(total, kernel.shape[1])]
    return dx.to(x.dtype), torch.nn.functional.pad(lags, (0, kernel.shape[1] - lags.shape[1]))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.new = inputs[3]


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, kernel, skip = ctx.saved_tensors
    if torch.is_grad_enabled():
        total = x.shape[1]
        size = 2 * field_size(total + max(ctx.new, min(total, kernel.shape[1])) - 1)
        dx, dkernel = spectral_gradients(dy, x, kernel, skip, size)
    else:
        dx, dkernel = _call_backward(dy, x, kernel, skip, ctx.new)
    # The kernel's gradient at lag 0 is that of the direct connection; a view would keep all of it alive.
    return dx, dkernel, None if skip is None else dkernel[:, 0].clone(), None


_conv.register_autograd(_backward, setup_context=_setup)


def _conv_vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
    return _native.vmap_fold(long_conv, (0,), info, in_dims, args), 0


def _conv_backward_vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
    return _native.vmap_loop(_call_backward, info, in_dims, args), (0,) * 2


_call_backward = _native.transformable(_conv_backward, _conv_backward_vmap)
long_conv = _native.transformable(_conv, _conv_vmap, _setup, _backward)
"""The last ``new`` of ``T`` outputs: x (B, T, D), kernel (D, taps), skip (D,) or None, new → (B, new, D).

The kernel is float32 or float64, which is computed in; x may be of a lower precision, as the output then is.
"""
