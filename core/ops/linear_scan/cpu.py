"""The linear scan by the compiled CPU kernels: fills results that ``torch_op`` has made."""

from __future__ import annotations

import torch
from torch import Tensor

from longseq.core.ops import cpu_calls
from longseq.core.ops.backends import cpu_reason, native
from longseq.core.ops.linear_scan.arguments import Arguments


def reason(call: Arguments) -> str | None:
    """Returns why the kernels cannot take a call, or None if they can."""
    return cpu_reason(*call)


def _common(h: Tensor, dtype: torch.dtype) -> tuple[tuple[int, int, int], bool, int, int]:
    """Returns the sizes, whether all is complex, the dtype and the threads."""
    sizes = h.shape[0], h.shape[1], h.shape[2]
    return sizes, h.is_complex(), cpu_calls.code(dtype), cpu_calls.threads(4 * h.numel())


def forward(h: Tensor, call: Arguments, dtype: torch.dtype) -> None:
    """Fills all states h (B, L, D)."""
    a, b = cpu_calls.dense(call.a), cpu_calls.dense(call.b)
    initial = cpu_calls.vector(call.initial_state, dtype)
    cpu_calls.fresh(h)
    native().linear_scan_forward(
        *_common(h, dtype),
        cpu_calls.rows(a),
        cpu_calls.rows(b),
        cpu_calls.pointer(initial),
        cpu_calls.rows(h),
    )


def backward(
    grads: tuple[Tensor, Tensor, Tensor], dh: Tensor, call: Arguments, h: Tensor, dtype: torch.dtype
) -> None:
    """Fills the gradients of a, b and the initial state."""
    da, db, dinitial = grads
    a, dh = cpu_calls.dense(call.a), cpu_calls.dense(dh)
    initial = cpu_calls.vector(call.initial_state, dtype)
    cpu_calls.fresh(da, db)
    native().linear_scan_backward(
        *_common(h, dtype),
        cpu_calls.rows(a),
        cpu_calls.pointer(initial),
        cpu_calls.rows(h),
        cpu_calls.rows(dh),
        cpu_calls.rows(da),
        cpu_calls.rows(db),
        dinitial.data_ptr(),
    )
