"""Linear attention by its Triton kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from longseq.core.ops.chunking import chunk_length
from longseq.core.ops.linear_attention.arguments import Arguments
from longseq.core.ops.precision import autocast_off, lowered
from longseq.core.ops.triton_calls import triton_reason


def reason(call: Arguments) -> str | None:
    """Returns why the kernels cannot take a call, or None if they can."""
    return triton_reason(*call.tensors())


def run(call: Arguments) -> tuple[Tensor, Tensor]:
    """Runs a checked call."""
    from longseq.core.kernels.triton import gla
    from longseq.core.kernels.triton import linear_attention as per_head

    q, k, v, g, scale, initial_state, resets, chunk_size = call
    chunk_length(chunk_size, v.shape[1])
    scale = q.shape[3] ** -0.5 if scale is None else scale
    q, k, v = lowered(q, k, v)
    with autocast_off(v):
        if resets is not None:
            g = torch.zeros(v.shape[:3], device=v.device) if g is None else g.float()
            g = g.masked_fill(resets.reshape(*resets.shape, *[1] * (g.ndim - 2)), -torch.inf)
        if g is not None and g.ndim == 4:
            return gla.attend(q, k, v, g, scale, initial_state, chunk_size)
        return per_head.attend(q, k, v, g, scale, initial_state, chunk_size)
