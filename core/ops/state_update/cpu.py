"""One step of a diagonal state-space layer by the CPU kernels, called past torch's dispatcher."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from longseq.core.ops import cpu_calls
from longseq.core.ops.backends import native
from longseq.core.ops.state_update.arguments import Arguments

_DTYPES = (torch.float32, torch.float64)


def reason(call: Arguments) -> str | None:
    """Returns why the kernel may not take a call, or None if it may: it reads what the sizes say is
    there."""
    state, x, dt, A, B, C, D, z, bias, *_ = call
    if state.dtype not in _DTYPES or A.is_complex():
        return "it takes real states in float32 or float64"
    if state.ndim < 3 or x.ndim != 2 or dt.ndim != 2 or B.ndim not in (2, 3):
        return "its shapes do not fit one another"
    (rows, *_, states), (batch, width), (of_dt, heads), maps = (
        state.shape,
        x.shape,
        dt.shape,
        B.shape,
    )
    fits = (
        rows == batch == of_dt == maps[0]
        and width * states * rows == state.numel()
        and maps[-1] == states
        and C.shape == maps
        and heads > 0 == width % heads
        and A.numel() == (heads if A.dim() == 1 else width * states)
        and (D is None or D.numel() in (heads, width))
        and (bias is None or bias.numel() == heads)
        and (z is None or z.shape == x.shape)
    )
    if not fits:
        return "its shapes do not fit one another"
    return cpu_calls.direct_reason(*call[:9])


def run(call: Arguments) -> tuple[Tensor, Tensor]:
    """Takes one step."""
    state, x, dt, A, B, C, D, z, bias, with_softplus, limits, log_decay = call
    batch, width = x.shape
    dtype, heads = state.dtype, dt.shape[1]
    x, dt, B, C = _dense(x), _dense(dt), _dense(B), _dense(C)
    z = None if z is None else _dense(z)
    y, after = x.new_empty(batch, width), state.new_empty(state.shape)
    if not after.numel():
        return y.zero_(), after
    states = state.shape[-1]
    low, high = limits if call.limited() else (-math.inf, math.inf)
    dense = [cpu_calls.vector(t, dtype) for t in (A, D, bias, state)]  # which must outlive the call
    pointers = [cpu_calls.pointer(t) for t in dense]
    native().state_update(
        (batch, width, states, B.shape[1] if B.dim() == 3 else 1, width // heads),
        (with_softplus, log_decay, A.dim() == 1, D is not None and D.shape[0] == heads),
        low,
        high,
        cpu_calls.code(dtype),
        cpu_calls.threads(batch * width * states),
        _rows(x),
        _rows(dt),
        pointers[0],
        _rows(B),
        _rows(C),
        pointers[1],
        _rows(z),
        pointers[2],
        pointers[3],
        _rows(y),
        after.data_ptr(),
    )
    return y, after


def _dense(tensor: Tensor) -> Tensor:
    """Returns the tensor with every dimension after the first dense."""
    if tensor.dim() == 2:
        return tensor if tensor.stride(1) == 1 else tensor.contiguous()
    dense = tensor.stride(2) == 1 and tensor.stride(1) == tensor.shape[2]
    return tensor if dense else tensor.contiguous()


def _rows(tensor: Tensor | None) -> cpu_calls.Arg:
    """Returns (pointer, dtype, batch stride, 0)."""
    if tensor is None:
        return 0, 0, 0, 0
    return tensor.data_ptr(), cpu_calls.code(tensor.dtype), tensor.stride(0), 0
