"""The diagonal-plus-rank-one recurrence, one position after the other."""

from __future__ import annotations

import torch
from torch import Tensor

from longseq.core.ops.dplr.arguments import Arguments, checked, prepared
from longseq.core.ops.precision import autocast_off


def dplr_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    log_decay: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    resets: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The same as ``dplr``, one position after the other.

    Args:
        q: queries (B, L, H, K).
        k: keys (B, L, H, K).
        v: values (B, L, H, V).
        a: (B, L, H, K).
        b: (B, L, H, K).
        log_decay: (B, L, H, K).
        scale: factor of the output; 1/√K if None.
        initial_state: (B, H, K, V).
        resets: bool (B, L).

    Returns:
        The output (B, L, H, V) and the final state (B, H, K, V).

    Raises:
        ArgumentError: naming the argument that does not fit.
    """
    return run(checked(Arguments(q, k, v, a, b, log_decay, scale, initial_state, resets)))


def run(call: Arguments) -> tuple[Tensor, Tensor]:
    """Runs a checked call."""
    with autocast_off(call.v):
        q, k, v, a, b, g, state = prepared(call)
        outputs = []
        for t in range(v.shape[1]):
            found = b[:, t].unsqueeze(-2) @ state  # bᵀ S, (B, H, 1, V)
            state = g[:, t].exp().unsqueeze(-1) * state + a[:, t].unsqueeze(-1) * found
            state = state + k[:, t].unsqueeze(-1) * v[:, t].unsqueeze(-2)
            outputs.append((q[:, t].unsqueeze(-2) @ state).squeeze(-2))
        return torch.stack(outputs, 1).to(call.v.dtype), state
