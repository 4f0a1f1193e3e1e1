"""The causal convolution as a sum over taps."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from longseq.core.ops.arguments import check_resets
from longseq.core.ops.causal_conv1d.arguments import NAME
from longseq.core.ops.precision import compute_dtype


def causal_conv1d_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    initial_state: Tensor | None = None,
    resets: Tensor | None = None,
    activation: Literal["silu"] | None = None,
) -> Tensor:
    """The sum over taps written out. Arguments as in ``causal_conv1d``; returns the output only."""
    dtype = compute_dtype(x, weight)
    batch, length, _ = x.shape
    resets = check_resets(NAME, resets, batch, length)
    width = weight.shape[1]
    past = x.new_zeros(batch, width - 1, x.shape[2]) if initial_state is None else initial_state
    padded = torch.cat([past.to(dtype), x.to(dtype)], 1)
    segment = None if resets is None else resets.cumsum(1)
    y = torch.zeros_like(padded[:, :length])
    for tap in range(width):
        back = width - 1 - tap
        seen = padded[:, tap : tap + length]
        if segment is not None:
            # What lies before the sequence belongs to segment 0, like everything before the first
            # reset.
            source = F.pad(segment, (back, 0))[:, :length]
            seen = torch.where((source == segment).unsqueeze(-1), seen, torch.zeros_like(seen))
        y = y + seen * weight[:, tap].to(dtype)
    if bias is not None:
        y = y + bias.to(dtype)
    return (F.silu(y) if activation == "silu" else y).to(x.dtype)
