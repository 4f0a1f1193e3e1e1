"""The root mean square norm by its definition, in torch's operations."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from longseq.core.ops.precision import bounded
from longseq.core.ops.rms_norm.arguments import Arguments


def run(call: Arguments) -> tuple[Tensor, Tensor]:
    """Returns x / √(mean(x²) + eps) · w of x or of x + residual, and what was normalised."""
    x, residual, weight, eps = call
    total = x if residual is None else x + residual
    dtype = torch.promote_types(total.dtype, torch.float32)
    wide = bounded(total.to(dtype))
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (wide * weight.to(dtype)).to(weight.dtype), total


def composed(call: Arguments) -> tuple[Tensor, Tensor]:
    """The same by torch's own norm, which has a kernel on a GPU; squares may overflow in it."""
    x, residual, weight, eps = call
    total = x if residual is None else x + residual
    if total.dtype == weight.dtype:
        return F.rms_norm(total, weight.shape, weight, eps), total
    dtype = torch.promote_types(total.dtype, torch.float32)
    out = F.rms_norm(total.to(dtype), weight.shape, weight.to(dtype), eps)
    return out.to(weight.dtype), total
