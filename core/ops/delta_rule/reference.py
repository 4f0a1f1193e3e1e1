"""The delta rule's recurrence, one position after the other."""

from __future__ import annotations

import torch
from torch import Tensor

from longseq.core.ops.delta_rule.arguments import Arguments, checked, prepared
from longseq.core.ops.precision import autocast_off


def delta_rule_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    resets: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The same as ``delta_rule``, one position after the other.

    Args:
        q: queries (B, L, G, K).
        k: keys (B, L, G, K).
        v: values (B, L, H, V).
        beta: (B, L, H).
        log_decay: None, (B, L, H) or (B, L, G, K).
        scale: factor of the output; 1/√K if None.
        initial_state: (B, H, K, V).
        resets: bool or integer (B, L).

    Returns:
        The output (B, L, H, V) and the final state (B, H, K, V).

    Raises:
        ArgumentError: naming the argument that does not fit.
    """
    return run(checked(Arguments(q, k, v, beta, log_decay, scale, initial_state, resets)))


def run(call: Arguments) -> tuple[Tensor, Tensor]:
    """Runs a checked call."""
    v = call.v
    with autocast_off(v):
        q, k, values, beta, g, state = prepared(call)
        shared = v.shape[2] // q.shape[2]
        q, k = q.repeat_interleave(shared, 2), k.repeat_interleave(shared, 2)
        decay = (
            (g.unsqueeze(-1) if g.ndim == 3 else g.repeat_interleave(shared, 2)).exp().unsqueeze(-1)
        )
        outputs = []
        for t in range(v.shape[1]):
            state = decay[:, t] * state
            # The value that the key finds, (B, H, V)
            held = (k[:, t].unsqueeze(-2) @ state).squeeze(-2)
            written = beta[:, t].unsqueeze(-1) * (values[:, t] - held)
            state = state + k[:, t].unsqueeze(-1) * written.unsqueeze(-2)
            outputs.append((q[:, t].unsqueeze(-2) @ state).squeeze(-2))
        return torch.stack(outputs, 1).to(v.dtype), state
