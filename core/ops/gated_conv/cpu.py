"""The gated convolution by the compiled CPU kernels: fills results that ``torch_op`` has made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from longseq.core.ops import cpu_calls
from longseq.core.ops.backends import cpu_reason, native
from longseq.core.ops.fft_conv.cpu import field_size
from longseq.core.ops.gated_conv.arguments import Arguments


def reason(call: Arguments) -> str | None:
    """Returns why the kernels cannot take a call, or None if they can."""
    return cpu_reason(*call)


def _arguments(call: Arguments, taps: Tensor) -> tuple[list[Any], list[Any]]:
    """Returns the kernels' common arguments and the tensors that must outlive the call."""
    x = cpu_calls.dense(call.x)
    vectors = [
        cpu_calls.vector(t, call.kernel.dtype)
        for t in (call.weight, call.bias, call.shift, call.skip)
    ]
    *small, skip = (cpu_calls.pointer(t) for t in vectors)
    batch, length, inner = x.shape
    arguments = [
        (batch, length, inner // 3, call.weight.shape[1], field_size(2 * length)),
        cpu_calls.code(call.kernel.dtype),
        cpu_calls.threads(x.numel()),
        cpu_calls.rows(x),
        tuple(small),
        (taps.data_ptr(), taps.shape[1], taps.stride(0), taps.stride(1)),
        skip,
    ]
    return arguments, [x, taps, *vectors]


def forward(y: Tensor, u: Tensor, call: Arguments) -> None:
    """Fills y and u (B, L, D)."""
    arguments, alive = _arguments(call, call.kernel[:, : call.x.shape[1]])
    native().gated_conv_forward(*arguments, cpu_calls.rows(y), cpu_calls.rows(u))
    del alive


def backward(outputs: Sequence[Tensor], dy: Tensor, du: Tensor | None, call: Arguments) -> None:
    """Fills the gradients of x, weight, bias, kernel and shift, all but x's in the kernel's
    dtype."""
    dx, dweight, dbias, dkernel, dshift = outputs
    length = call.x.shape[1]
    seen = dkernel[:, :length]  # laid out as the kernel is
    dkernel[:, length:] = 0
    taps = call.kernel[:, :length]
    if taps.stride() != seen.stride():
        taps = torch.empty_like(dkernel)[:, :length].copy_(taps)
    arguments, alive = _arguments(call, taps)
    dy, du = cpu_calls.dense(dy), None if du is None else cpu_calls.dense(du)
    native().gated_conv_backward(
        *arguments,
        cpu_calls.rows(dy),
        cpu_calls.rows(du),
        cpu_calls.rows(dx),
        (dweight.data_ptr(), dbias.data_ptr(), dshift.data_ptr()),
        dkernel.data_ptr(),
    )
    del alive
