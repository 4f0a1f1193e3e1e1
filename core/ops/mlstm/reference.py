"""The mLSTM's recurrence, one position after the other, and one position on its own."""

from __future__ import annotations

import torch
from torch import Tensor

from longseq.core.ops.mlstm.arguments import EPS, Arguments, MLSTMState, checked, prepared
from longseq.core.ops.mlstm.stabiliser import divided, finite, normalise
from longseq.core.ops.precision import autocast_off


def mlstm_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    initial_state: MLSTMState | None = None,
    resets: Tensor | None = None,
    eps: float = EPS,
) -> tuple[Tensor, MLSTMState]:
    """The same as ``mlstm``, one position after the other.

    Args:
        q: (B, L, H, K).
        k: (B, L, H, K).
        v: (B, L, H, V).
        i: (B, L, H).
        f: (B, L, H).
        initial_state: C (B, H, K, V), n (B, H, K), m (B, H).
        resets: bool or integer (B, L).
        eps: added to the denominator.

    Returns:
        The output (B, L, H, V) and the final (C, n, m).

    Raises:
        ArgumentError: naming the argument that does not fit.
    """
    return run(checked(Arguments(q, k, v, i, f, initial_state, resets, eps=eps)))


def run(call: Arguments) -> tuple[Tensor, MLSTMState]:
    """Runs a checked call."""
    v, eps = call.v, call.eps
    with autocast_off(v):
        q, k, values, i, log_f, (c, n, m) = prepared(call)
        k, outputs = k * k.shape[3] ** -0.5, []
        for t in range(v.shape[1]):
            last_m = torch.maximum(log_f[:, t] + m, i[:, t])
            unit = finite(last_m)
            keep, add = torch.exp(log_f[:, t] + m - unit), torch.exp(i[:, t] - unit)
            c = keep[..., None, None] * c + add[..., None, None] * k[:, t].unsqueeze(-1) * values[
                :, t
            ].unsqueeze(-2)
            n = keep.unsqueeze(-1) * n + add.unsqueeze(-1) * k[:, t]
            m = last_m
            y = (q[:, t].unsqueeze(-2) @ torch.cat([c, n.unsqueeze(-1)], -1)).squeeze(-2)
            outputs.append(normalise(y, m, eps))
        return torch.stack(outputs, 1).to(v.dtype), (c, n, m)


def step(call: Arguments) -> tuple[Tensor, MLSTMState]:
    """Runs a checked call of one position."""
    v = call.v
    with autocast_off(v):
        *inputs, state = prepared(call)
        q, k, values, i, log_f = (x[:, 0] for x in inputs)
        h, state = stepped(q, k, values, i, log_f, state, call.eps)
        return h.unsqueeze(1).to(v.dtype), state


def stepped(
    q: Tensor, k: Tensor, v: Tensor, i: Tensor, log_f: Tensor, state: MLSTMState, eps: float
) -> tuple[Tensor, MLSTMState]:
    """Takes one step, all in one dtype, float32 or float64.

    What takes time is going over C, which is read and written as seldom as torch can.

    Args:
        q: (B, H, K).
        k: (B, H, K), not yet scaled.
        v: (B, H, V).
        i: (B, H).
        log_f: logarithms of the forget gates (B, H), -inf at resets.
        state: C (B, H, K, V), n (B, H, K), m (B, H).
        eps: added to the denominator.

    Returns:
        The output (B, H, V) and the new (C, n, m).
    """
    c, n, m = state
    kept = log_f + m
    m = torch.maximum(kept, i)
    unit = finite(m)
    keep, add = torch.exp(kept - unit).unsqueeze(-1), torch.exp(i - unit).unsqueeze(-1)
    key = add * (k * k.shape[2] ** -0.5)
    c = torch.addcmul(keep.unsqueeze(-1) * c, key.unsqueeze(-1), v.unsqueeze(-2))
    n = keep * n + key
    y = (q.unsqueeze(-2) @ c).squeeze(-2)
    total = (q * n).sum(-1, keepdim=True)
    return divided(y, total, m, eps), (c, n, m)
