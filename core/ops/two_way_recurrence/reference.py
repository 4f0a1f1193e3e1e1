"""The two-way recurrence position by position."""

from __future__ import annotations

import torch
from torch import Tensor


def two_way_recurrence_reference(mixed: Tensor) -> Tensor:
    """The definition, (B, L, 3 D) to (B, L, D)."""
    wide = mixed.to(torch.promote_types(mixed.dtype, torch.float32))
    value, *gates = wide.chunk(3, dim=2)
    sums = [torch.zeros_like(value[:, 0])] * value.shape[1]
    for gate, order in zip(gates, (range(len(sums)), reversed(range(len(sums))))):
        state = torch.zeros_like(value[:, 0])
        for t in order:
            keep = torch.sigmoid(gate[:, t])
            state = keep * state + (1 - keep) * value[:, t]
            sums[t] = sums[t] + state
    return torch.stack(sums, 1).to(mixed.dtype)
