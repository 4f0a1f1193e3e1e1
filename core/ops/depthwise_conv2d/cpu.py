"""The depthwise convolution of maps by the compiled CPU kernels: fills results that ``torch_op``
has made."""

from __future__ import annotations

import torch
from torch import Tensor

from longseq.core.ops import cpu_calls
from longseq.core.ops.backends import cpu_reason, native
from longseq.core.ops.depthwise_conv2d.arguments import Arguments
from longseq.core.ops.precision import compute_dtype


def reason(call: Arguments) -> str | None:
    """Returns why the kernels do not take a call, or None if they do."""
    if torch.compiler.is_compiling():
        return "a compiler has torch's own convolution"
    if not call.x.numel():
        return "there is nothing to compute"
    return cpu_reason(*call[:3])


def _dense(x: Tensor) -> Tensor:
    """Returns maps whose channels are dense."""
    return x if (x.stride(3) == 1 or x.shape[3] == 1) and not x.is_neg() else x.contiguous()


def _grid(x: Tensor) -> cpu_calls.Wide:
    """Returns how the kernels take maps: pointer, dtype, strides of batch, rows and columns."""
    batch, row, column, _ = x.stride()
    return x.data_ptr(), cpu_calls.code(x.dtype), batch, row, column


def _taps(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns taps (KH, KW, C), dense and of the compute dtype."""
    return weight[:, 0].permute(1, 2, 0).to(dtype).contiguous()


def strips(height: int) -> int:
    """Returns into how many strips of rows the kernels cut a map."""
    about = -(-height // native().MAP_ROWS)
    return -(-height // -(-height // about))


def forward(y: Tensor, call: Arguments) -> None:
    """Fills y (B, H, W, C)."""
    x, dtype = _dense(call.x), compute_dtype(call.x, call.weight)
    taps, bias = _taps(call.weight, dtype), cpu_calls.vector(call.bias, dtype)
    sizes = (*x.shape, *call.weight.shape[2:])
    native().depthwise_conv_forward(
        sizes,
        call.silu,
        cpu_calls.code(dtype),
        cpu_calls.threads(x.numel()),
        _grid(x),
        taps.data_ptr(),
        cpu_calls.pointer(bias),
        _grid(y),
    )


def backward(dx: Tensor, dweight: Tensor, dbias: Tensor, dy: Tensor, call: Arguments) -> None:
    """Fills the gradients of x, of the weight and of a bias."""
    x, dy, dtype = _dense(call.x), _dense(dy), compute_dtype(call.x, call.weight)
    taps, bias = _taps(call.weight, dtype), cpu_calls.vector(call.bias, dtype)
    turned = taps.flip(0, 1)
    batch, height, _, channels = x.shape
    sides = call.weight.shape[2:]
    sums = taps.new_empty((batch * strips(height), sides.numel() + 1, channels))
    native().depthwise_conv_backward(
        (*x.shape, *sides),
        call.silu,
        cpu_calls.code(dtype),
        cpu_calls.threads(x.numel()),
        _grid(x),
        taps.data_ptr(),
        cpu_calls.pointer(bias),
        _grid(dy),
        _grid(dx),
        turned.data_ptr(),
        sums.data_ptr(),
    )
    total = sums.sum(0)
    dweight.copy_(total[:-1].t().reshape(dweight.shape))
    dbias.copy_(total[-1])
