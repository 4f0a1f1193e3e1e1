"""The linear scan's recurrence written out."""

from __future__ import annotations

import torch
from torch import Tensor

from longseq.core.ops.precision import compute_dtype


def linear_scan_reference(a: Tensor, b: Tensor, initial_state: Tensor | None = None) -> Tensor:
    """The recurrence written out. Arguments as in ``linear_scan`` with a of b's shape; returns all
    states."""
    dtype = compute_dtype(a, b, initial_state)
    if any(t is not None and t.is_complex() for t in (a, b, initial_state)):
        dtype = torch.promote_types(dtype, torch.complex64)
    h = torch.zeros_like(b[:, 0], dtype=dtype) if initial_state is None else initial_state.to(dtype)
    states = []
    for a_t, b_t in zip(a.to(dtype).unbind(1), b.to(dtype).unbind(1)):
        h = a_t * h + b_t
        states.append(h)
    return torch.stack(states, 1)
