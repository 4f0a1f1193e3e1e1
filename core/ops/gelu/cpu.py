"""The GELU by the compiled CPU kernels: fills results that ``torch_op`` has made."""

from __future__ import annotations

import torch
from torch import Tensor

from longseq.core.ops import cpu_calls
from longseq.core.ops.backends import cpu_reason, native
from longseq.core.ops.gelu.arguments import Arguments


def reason(call: Arguments) -> str | None:
    """Returns why the kernels do not take a call, or None if they do."""
    x, bias = call
    if torch.compiler.is_compiling():
        return "a compiler joins torch's own operations with what is around them"
    if x.dtype not in (torch.float32, torch.float64) or bias.dtype != x.dtype:
        return "it takes float32 or float64, and a bias of the same"
    return cpu_reason(x, bias) if x.numel() else "there is nothing to compute"


def forward(y: Tensor, call: Arguments) -> None:
    """Fills y (R, W), which may be x itself."""
    x, bias = call.x.contiguous(), call.bias.contiguous()
    native().biased_gelu_forward(
        *x.shape,
        cpu_calls.code(x.dtype),
        cpu_calls.threads(x.numel()),
        x.data_ptr(),
        bias.data_ptr(),
        y.data_ptr(),
    )


def backward(
    dx: Tensor, dbias: Tensor, dy: Tensor, call: Arguments, y: Tensor | None = None
) -> None:
    """Fills the gradients of x, which may be dy itself, and of the bias; and y anew, if given."""
    dy, x, bias = dy.contiguous(), call.x.contiguous(), call.bias.contiguous()
    sums = x.new_empty(-(-x.shape[0] // native().NORM_ROWS), x.shape[1])
    native().biased_gelu_backward(
        *x.shape,
        cpu_calls.code(x.dtype),
        cpu_calls.threads(x.numel()),
        x.data_ptr(),
        bias.data_ptr(),
        dy.data_ptr(),
        dx.data_ptr(),
        sums.data_ptr(),
        cpu_calls.pointer(y),
    )
    torch.sum(sums, 0, out=dbias)
