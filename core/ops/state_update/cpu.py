"""One step of a diagonal state-space layer by the CPU kernels, called past torch's dispatcher."""

from __future__ import annotations

import math

from torch import Tensor

from longseq.core.ops import cpu_calls
from longseq.core.ops.backends import native
from longseq.core.ops.state_update.arguments import Arguments


def reason(call: Arguments) -> str | None:
    """Returns why the kernel may not take a call, or None if it may."""
    state, x, B, C = call.state, call.x, call.B, call.C
    rows, states = state.shape[0], state.shape[-1]
    fits = all(t.shape[0] == rows for t in (x, call.dt, B, C)) and x.shape[1] * states * rows == state.numel()
    if not fits or B.shape[-1] != states or C.shape != B.shape:
        return "its shapes do not fit one another"
    return cpu_calls.direct_reason(*call[:9])


def run(call: Arguments) -> tuple[Tensor, Tensor]:
    """Takes one step."""
    state, z = call.state, call.z
    batch, width = call.x.shape
    dtype = state.dtype
    heads = call.dt.shape[1]
    x, dt, B, C = (_dense(t) for t in (call.x, call.dt, call.B, call.C))
    z = None if z is None else _dense(z)
    vectors = [cpu_calls.vector(t, dtype) for t in (call.A, call.D, call.dt_bias, state)]
    y, after = x.new_empty(batch, width), state.new_empty(state.shape)
    if not after.numel():
        return y.zero_(), after
    states = state.shape[-1]
    skip_per_head = call.D is not None and call.D.shape[0] == heads
    groups = B.shape[1] if B.dim() == 3 else 1
    low, high = call.dt_limit if call.limited() else (-math.inf, math.inf)
    A, D, bias, first = (cpu_calls.pointer(t) for t in vectors)
    native().state_update(
        (batch, width, states, groups, width // heads),
        (call.dt_softplus, call.log_decay, call.A.dim() == 1, skip_per_head),
        low,
        high,
        cpu_calls.code(dtype),
        cpu_calls.threads(batch * width * states),
        _rows(x),
        _rows(dt),
        A,
        _rows(B),
        _rows(C),
        D,
        _rows(z),
        bias,
        first,
        _rows(y),
        cpu_calls.pointer(after),
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
