"""The two-way recurrence by the compiled CPU kernels: fills results that ``torch_op`` has made."""

from __future__ import annotations

import torch
from torch import Tensor

from longseq.core.ops import cpu_calls
from longseq.core.ops.backends import cpu_reason, native
from longseq.core.ops.precision import compute_dtype
from longseq.core.ops.two_way_recurrence.arguments import Arguments


def reason(call: Arguments) -> str | None:
    """Returns why the kernels do not take a call, or None if they do."""
    if torch.compiler.is_compiling() or torch._C._is_tracing():
        return "a compiler or tracer is to see torch's own operations"
    return cpu_reason(*call)


def _common(y: Tensor) -> tuple[tuple[int, int, int], int, int]:
    """Returns the sizes, the dtype that is computed in, and the threads."""
    sizes = y.shape[0], y.shape[1], y.shape[2]
    return sizes, cpu_calls.code(compute_dtype(y)), cpu_calls.threads(12 * y.numel())


def forward(y: Tensor, call: Arguments) -> None:
    """Fills y (B, L, D)."""
    x = cpu_calls.dense(call.mixed)
    native().two_way_forward(*_common(y), cpu_calls.rows(x), cpu_calls.rows(y))


def backward(dx: Tensor, dy: Tensor, call: Arguments) -> None:
    """Fills dx (B, L, 3 D)."""
    x, dy = cpu_calls.dense(call.mixed), cpu_calls.dense(dy)
    native().two_way_backward(
        *_common(dy), cpu_calls.rows(x), cpu_calls.rows(dy), cpu_calls.rows(dx)
    )
