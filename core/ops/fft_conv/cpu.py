"""The long convolution by the compiled CPU kernels: fills results that ``torch_op`` has made."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from longseq.core.ops import cpu_calls
from longseq.core.ops.backends import cpu_reason, native
from longseq.core.ops.fft_conv.arguments import Arguments
from longseq.core.ops.fft_conv.composed import SHORT_KERNEL

_ODD = (1, 3, 5, 9, 15)  # odd factors of transforms: sizes at most a quarter apart


class Inputs(NamedTuple):
    """A call of the kernels: the last ``new`` of T outputs.

    Attributes:
        x: (B, T, D).
        kernel: (D, taps), float32 or float64, which is computed in.
        skip: (D,) or None.
        new: number of outputs.
    """

    x: Tensor
    kernel: Tensor
    skip: Tensor | None
    new: int


def reason(call: Arguments) -> str | None:
    """Returns why the kernels cannot take a call, or None if they can."""
    return cpu_reason(call.u, call.k)


def field_size(n: int) -> int:
    """Returns the number N of points whose 2N values hold ``n``.

    Args:
        n: values, at least 1.
    """
    return min(m << max(0, -(-n // (2 * m)) - 1).bit_length() for m in _ODD)


def _arguments(x: Tensor, kernel: Tensor, skip: Tensor | None, new: int, span: int) -> list[Any]:
    """Returns the kernels' common arguments, for frames of the ``span`` positions to be worked
    out."""
    batch, total, channels = x.shape
    taps = kernel.shape[1]
    reach = min(taps, total) - 1
    hop = span
    if span > SHORT_KERNEL * taps:
        points = field_size(max(4 * taps, 64))
        hop = 2 * points - reach
    else:
        points = field_size(max(span + reach, taps))
    return [
        (batch, total, new, channels, points, hop),
        cpu_calls.code(kernel.dtype),
        cpu_calls.threads(batch * total * channels),
        cpu_calls.rows(x),
        (kernel.data_ptr(), taps, kernel.stride(0), kernel.stride(1)),
        cpu_calls.pointer(skip),
    ]


def forward(y: Tensor, inputs: Inputs) -> None:
    """Fills y (B, new, D)."""
    x, kernel, skip, new = inputs
    skip = None if skip is None else skip.contiguous()
    x, taps = cpu_calls.dense(x), kernel[:, : x.shape[1]]
    native().long_conv_forward(*_arguments(x, taps, skip, new, new), cpu_calls.rows(y))


def backward(dx: Tensor, dkernel: Tensor, dy: Tensor, inputs: Inputs) -> None:
    """Fills the gradients of x and of the kernel, whose lag 0 is that of the skip."""
    x, kernel, skip, new = inputs
    total = x.shape[1]
    seen = dkernel[:, :total]  # laid out as the kernel is
    dkernel[:, total:] = 0
    skip = None if skip is None else skip.contiguous()
    taps = kernel[:, :total]
    if taps.stride() != seen.stride():
        taps = torch.empty_like(dkernel)[:, :total].copy_(taps)
    x, dy = cpu_calls.dense(x), cpu_calls.dense(dy)
    native().long_conv_backward(
        *_arguments(x, taps, skip, new, total),
        cpu_calls.rows(dy),
        cpu_calls.rows(dx),
        dkernel.data_ptr(),
    )
