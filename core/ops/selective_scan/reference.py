"""The selective scan's recurrence written out, one step at a time."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from longseq.core.ops.precision import compute_dtype
from longseq.core.ops.selective_scan.arguments import Arguments, checked


def selective_scan_reference(*arguments: Any, **named: Any) -> tuple[Tensor, Tensor]:
    """The recurrence written out, one step at a time; takes and returns as ``selective_scan``.

    Args:
        *arguments: those of ``selective_scan`` in its order, but the backend.
        **named: the others by name.
    """
    return run(checked(Arguments(*arguments, **named)))


def run(x: Arguments) -> tuple[Tensor, Tensor]:
    """Runs a checked call."""
    u, delta, A, B, C, D, z, delta_bias, initial_state, resets, delta_softplus = x
    dtype = compute_dtype(u, A)
    cdtype = torch.promote_types(dtype, torch.complex64) if A.is_complex() else dtype
    batch, _, width = u.shape
    groups = B.shape[2] if B.dim() == 4 else 1
    value, dt = u.to(dtype), delta.to(dtype)
    if delta_bias is not None:
        dt = dt + delta_bias.to(dtype)
    if delta_softplus:
        # torch's default, 20, is off by 2e-9 there: much in float64
        dt = F.softplus(dt, threshold=40.0)
    A = A.to(cdtype)
    if initial_state is None:
        h = torch.zeros(batch, width, A.shape[1], dtype=cdtype, device=u.device)
    else:
        h = initial_state.to(cdtype)

    def per_channel(m: Tensor) -> Tensor:  # (B, G, N) or (B, N) to (B, D, N)
        m = m.reshape(batch, groups, 1, A.shape[1]).to(cdtype)
        return m.expand(-1, -1, width // groups, -1).reshape(batch, width, A.shape[1])

    steps = zip(value.unbind(1), dt.unbind(1), B.unbind(1), C.unbind(1))
    outputs = []
    for t, (x_t, dt_t, B_t, C_t) in enumerate(steps):
        if resets is not None:
            h = torch.where(resets[:, t, None, None], torch.zeros_like(h), h)
        h = torch.exp(dt_t.unsqueeze(-1) * A) * h + (dt_t * x_t).unsqueeze(-1) * per_channel(B_t)
        y_t = (per_channel(C_t) * h).sum(-1)
        outputs.append(2 * y_t.real if y_t.is_complex() else y_t)
    y = torch.stack(outputs, 1)
    if D is not None:
        y = y + value * D.to(dtype)
    if z is not None:
        y = y * F.silu(z.to(dtype))
    return y.to(u.dtype), h
