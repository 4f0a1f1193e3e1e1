"""The gated norms by their definition, in torch's operations."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import silu

from longseq.core.ops.gated_norm.arguments import Arguments
from longseq.core.ops.precision import bounded


def run(call: Arguments) -> Tensor:
    """Returns (norm(y) · w + s · u) · silu(z), or norm(y · silu(z)) · w + s · u, in z's dtype."""
    y, z, weight, u, skip, groups, centred, norm_first, eps = call
    dtype = torch.promote_types(y.dtype, torch.float32)
    gate = silu(z.to(dtype))
    value = y.to(dtype) if norm_first else y.to(dtype) * gate
    grouped = bounded(value.unflatten(-1, (groups, -1)))
    if centred:
        grouped = grouped - grouped.mean(-1, keepdim=True)
    grouped = grouped * torch.rsqrt(grouped.square().mean(-1, keepdim=True) + eps)
    out = grouped.flatten(-2) * weight.to(dtype)
    if u is not None and skip is not None:
        out = out + skip.to(dtype) * u.to(dtype)
    return (out * gate if norm_first else out).to(z.dtype)
