"""Block-diagonal maps by matrix products, for low precision, wide blocks and GPUs."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from longseq.core.ops.block_linear.reference import block_linear_reference

_MERGED_WIDTH = 64


def one(x: Tensor, weight: Tensor) -> Tensor:
    """Applies one map (W/P, P, P) to x (..., W)."""
    count, block, _ = weight.shape
    rows = x.numel() // x.shape[-1]
    merged = math.gcd(count, max(1, _MERGED_WIDTH // block)) if rows >= _MERGED_WIDTH else 1
    if merged == 1:
        return block_linear_reference(x, weight)[0]
    # Many tiny products take longer than fewer larger ones whose other entries are zero.
    units = torch.eye(merged, dtype=weight.dtype, device=weight.device)
    wide = weight.view(-1, merged, 1, block, block) * units[:, :, None, None]
    wide = wide.transpose(2, 3).reshape(-1, merged * block, merged * block)
    columns = x.reshape(rows, *wide.shape[:2]).transpose(0, 1)
    return torch.bmm(columns, wide.mT).transpose(0, 1).reshape(x.shape)
