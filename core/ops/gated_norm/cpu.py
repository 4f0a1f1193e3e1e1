"""The gated norms by the compiled CPU kernels: fills results that ``torch_op`` has made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from longseq.core.ops import cpu_calls
from longseq.core.ops.backends import cpu_reason, native
from longseq.core.ops.gated_norm.arguments import Arguments

SMALL = 1 << 12
"""Up to so many values torch's own operations are as quick, and keep little, where the kernels are
called through torch's dispatcher."""


def reason(call: Arguments) -> str | None:
    """Returns why the kernels do not take a call, or None if they do."""
    given = [t for t in call[:5] if t is not None]
    if call.y.numel() <= SMALL and cpu_calls.direct_reason(*given) is not None:
        return f"for up to {SMALL} values torch's own operations are as quick"
    why = cpu_reason(*given)
    if why is not None:
        return why
    dtype = torch.promote_types(call.y.dtype, torch.float32)
    if any(t.dtype != dtype for t in given):
        return "it takes arguments of one dtype, float32 or float64"
    return None


def _rows(x: Tensor | None) -> cpu_calls.Arg:
    """Returns how the kernels take rows (R, width)."""
    return (0, 0, 0, 0) if x is None else (x.data_ptr(), cpu_calls.code(x.dtype), 0, x.stride(0))


def _arguments(call: Arguments) -> tuple[list[Any], list[Any]]:
    """Returns the kernels' common arguments and the tensors that must outlive the call."""
    rows = [
        x if x is None or x.stride(1) == 1 else x.contiguous() for x in (call.y, call.z, call.u)
    ]
    vectors = [cpu_calls.vector(x, call.y.dtype) for x in (call.weight, call.skip)]
    arguments = [
        (*call.y.shape, call.groups),
        (call.centred, call.norm_first),
        call.eps,
        cpu_calls.code(call.y.dtype),
        cpu_calls.threads(call.y.numel()),
        *[_rows(x) for x in rows],
        *[cpu_calls.pointer(x) for x in vectors],
    ]
    return arguments, [*rows, *vectors]


def forward(out: Tensor, call: Arguments) -> None:
    """Fills out (R, width)."""
    arguments, alive = _arguments(call)
    native().gated_norm_forward(*arguments, _rows(out))
    del alive


def backward(outputs: Sequence[Tensor], dout: Tensor, call: Arguments) -> None:
    """Fills the gradients of y, z, weight, u and skip; those of absent ones are left alone."""
    dy, dz, dweight, du, dskip = outputs
    arguments, alive = _arguments(call)
    dout = dout if dout.stride(1) == 1 else dout.contiguous()
    blocks = -(-dy.shape[0] // native().NORM_ROWS)
    parts = [
        None if x is None else dy.new_empty((blocks, dy.shape[1])) for x in (call.weight, call.skip)
    ]
    native().gated_norm_backward(
        *arguments,
        _rows(dout),
        _rows(dy),
        _rows(dz),
        _rows(None if call.u is None else du),
        *[cpu_calls.pointer(part) for part in parts],
    )
    del alive
    for to, part in zip((dweight, dskip), parts):
        if part is not None:
            torch.sum(part, 0, out=to)
