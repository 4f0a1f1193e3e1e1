"""The gated linear unit by the compiled CPU kernels: fills results that ``torch_op`` has made."""

from __future__ import annotations

import torch
from torch import Tensor

from longseq.core.ops import cpu_calls
from longseq.core.ops.backends import cpu_reason, native
from longseq.core.ops.glu.arguments import Arguments

_ROWS = 128  # that share one partial sum of the bias's gradient, as in the compiled kernel


def reason(call: Arguments) -> str | None:
    """Returns why the kernels do not take a call, or None if they do."""
    x, bias = call
    if x.dtype not in (torch.float32, torch.float64) or (
        bias is not None and bias.dtype != x.dtype
    ):
        return "it takes float32 or float64, and a bias of the same"
    return cpu_reason(x, bias) if x.numel() else "there is nothing to compute"


def forward(y: Tensor, call: Arguments) -> None:
    """Fills y (R, W)."""
    x = call.x.contiguous()
    bias = None if call.bias is None else call.bias.contiguous()
    native().glu_forward(
        x.shape[0],
        y.shape[1],
        cpu_calls.code(x.dtype),
        cpu_calls.threads(x.numel()),
        x.data_ptr(),
        cpu_calls.pointer(bias),
        y.data_ptr(),
    )


def backward(dx: Tensor, dbias: Tensor, dy: Tensor, call: Arguments) -> None:
    """Fills the gradients of x and of a bias."""
    dy, x = dy.contiguous(), call.x.contiguous()
    bias = None if call.bias is None else call.bias.contiguous()
    sums = x.new_empty(-(-x.shape[0] // _ROWS), x.shape[1])
    native().glu_backward(
        x.shape[0],
        dy.shape[1],
        cpu_calls.code(x.dtype),
        cpu_calls.threads(x.numel()),
        x.data_ptr(),
        cpu_calls.pointer(bias),
        dy.data_ptr(),
        dx.data_ptr(),
        sums.data_ptr(),
    )
    torch.sum(sums, 0, out=dbias)
