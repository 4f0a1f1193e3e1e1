"""The depthwise convolution of maps by its definition, and by torch's own convolution."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from longseq.core.ops.depthwise_conv2d.arguments import Arguments
from longseq.core.ops.precision import compute_dtype


def run(call: Arguments) -> Tensor:
    """Returns the sum over the taps, written out: a shifted map for each, in float32 at least."""
    x, weight, bias, silu = call
    dtype = compute_dtype(x, weight)
    height, width = x.shape[1:3]
    rows, columns = weight.shape[2:]
    padded = F.pad(x.to(dtype), (0, 0, columns // 2, columns // 2, rows // 2, rows // 2))
    total = torch.zeros_like(x, dtype=dtype)
    for k in range(rows):
        for j in range(columns):
            shifted = padded[:, k : k + height, j : j + width]
            total = total + shifted * weight[:, 0, k, j].to(dtype)
    if bias is not None:
        total = total + bias.to(dtype)
    return (F.silu(total) if silu else total).to(x.dtype)


def composed(call: Arguments) -> Tensor:
    """The same by torch's convolution, in the dtype that it gives."""
    x, weight, bias, silu = call
    y = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding="same", groups=x.shape[3])
    return (F.silu(y) if silu else y).permute(0, 2, 3, 1)
