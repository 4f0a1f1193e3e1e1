"""The two-way recurrence as two linear scans, for compilers and devices without a kernel of its
own."""

from __future__ import annotations

import torch
from torch import Tensor

from longseq.core.ops.linear_scan import linear_scan


def composed(mixed: Tensor) -> Tensor:
    """(B, L, 3 D) to (B, L, D)."""
    wide = mixed.to(torch.promote_types(mixed.dtype, torch.float32))
    value, *gates = wide.chunk(3, dim=2)
    total: Tensor | None = None
    for turned, gate in enumerate(gates):
        keep = torch.sigmoid(gate)
        arrives = torch.addcmul(value, keep, value, value=-1)
        if turned:
            keep, arrives = keep.flip(1), arrives.flip(1)
        states, _ = linear_scan(keep, arrives)
        total = states if total is None else total + states.flip(1)
    assert total is not None
    return total.to(mixed.dtype)
