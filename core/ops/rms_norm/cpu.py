"""The root mean square norm by the compiled CPU kernels: fills results that ``torch_op`` has
made."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from longseq.core.ops import cpu_calls
from longseq.core.ops.backends import cpu_reason, native
from longseq.core.ops.rms_norm.arguments import Arguments


def reason(call: Arguments) -> str | None:
    """Returns why the kernels do not take a call, or None if they do."""
    if torch.compiler.is_compiling():
        return "a compiler joins torch's own operations with what is around them"
    why = cpu_reason(*call[:3])
    if why is not None:
        return why
    dtype = torch.promote_types(call.x.dtype, torch.float32)
    if any(t is not None and t.dtype != dtype for t in call[:3]):
        return "it takes arguments of one dtype, float32 or float64"
    return None


def _dense(x: Tensor) -> Tensor:
    """Returns rows (R, width) whose channels are dense."""
    return x if x.stride(1) == 1 else x.contiguous()


def _rows(x: Tensor | None) -> cpu_calls.Arg:
    """Returns how the kernels take rows (R, width)."""
    return (0, 0, 0, 0) if x is None else (x.data_ptr(), cpu_calls.code(x.dtype), 0, x.stride(0))


def _options(x: Tensor, eps: float) -> tuple[Any, ...]:
    return tuple(x.shape), eps, cpu_calls.code(x.dtype), cpu_calls.threads(x.numel())


def forward(out: Tensor, total: Tensor | None, call: Arguments) -> None:
    """Fills out and, with a residual, total (R, width)."""
    x, weight = _dense(call.x), cpu_calls.vector(call.weight, call.x.dtype)
    residual = None if call.residual is None else _dense(call.residual)
    native().rms_norm_forward(
        *_options(x, call.eps),
        _rows(x),
        _rows(residual),
        cpu_calls.pointer(weight),
        _rows(out),
        _rows(total),
    )


def backward(
    dx: Tensor,
    dweight: Tensor,
    dout: Tensor,
    dtotal: Tensor | None,
    total: Tensor,
    weight: Tensor,
    eps: float,
) -> None:
    """Fills the gradients of what was normalised (R, width), and of the weight (width,)."""
    total, dout = _dense(total), _dense(dout)
    dtotal = None if dtotal is None else _dense(dtotal)
    vector = cpu_calls.vector(weight, total.dtype)
    part = dx.new_empty((-(-dx.shape[0] // native().NORM_ROWS), dx.shape[1]))
    native().rms_norm_backward(
        *_options(total, eps),
        _rows(total),
        cpu_calls.pointer(vector),
        _rows(dout),
        _rows(dtotal),
        _rows(dx),
        cpu_calls.pointer(part),
    )
    torch.sum(part, 0, out=dweight)
