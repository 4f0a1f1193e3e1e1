"""The mLSTM over chunks in torch's own operations, all chunks at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from longseq.core.ops.chunking import (
    by_blocks,
    chunk_length,
    from_chunks,
    lower_triangular,
    pass_states,
    run_blocks,
    span_sums,
    to_chunks,
)
from longseq.core.ops.mlstm import reference
from longseq.core.ops.mlstm.arguments import Arguments, MLSTMState, prepared
from longseq.core.ops.mlstm.stabiliser import finite, normalise
from longseq.core.ops.precision import autocast_off


def run(call: Arguments) -> tuple[Tensor, MLSTMState]:
    """Runs a checked call; a single position is a step, and a long call without gradients goes by
    blocks."""
    if call.v.shape[1] == 1:
        return reference.step(call)
    if not by_blocks(call.v.shape[1]):
        return _run(call)

    def block(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        i: Tensor,
        f: Tensor,
        resets: Tensor | None,
        state: MLSTMState | None,
    ) -> tuple[Tensor, MLSTMState]:
        return run(call._replace(q=q, k=k, v=v, i=i, f=f, resets=resets, initial_state=state))

    return run_blocks(block, (*call[:5], call.resets), call.initial_state)


def _run(call: Arguments) -> tuple[Tensor, MLSTMState]:
    with autocast_off(call.v):
        q, k, values, i, log_f, state = prepared(call)
        h, *last = composed(q, k, values, i, log_f, *state, call.chunk_size, call.eps)
        return h.to(call.v.dtype), (last[0], last[1], last[2])


def composed(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    g: Tensor,
    c: Tensor,
    n: Tensor,
    m: Tensor,
    chunk_size: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The operator in operations that have derivatives of any order.

    Args:
        q: (B, L, H, K).
        k: (B, L, H, K), not yet scaled.
        v: (B, L, H, V).
        i: input gates before their exponential (B, L, H).
        g: logarithms of the forget gates (B, L, H), -inf at resets.
        c: C (B, H, K, V).
        n: (B, H, K).
        m: (B, H).
        chunk_size: positions per chunk.
        eps: added to the denominator.

    Returns:
        The output (B, L, H, V) and the final C, n and m.
    """
    chunk = chunk_length(chunk_size, v.shape[1])
    qc, kc, vc = (to_chunks(x, chunk) for x in (q, k * k.shape[3] ** -0.5, v))
    ic = to_chunks(i.unsqueeze(-1), chunk, -torch.inf)  # (B, H, C, T, 1)
    spans = span_sums(to_chunks(g.unsqueeze(-1), chunk))
    through, behind = (x.squeeze(-3) for x in spans[-1])  # (B, H, C, T, 1)

    # The exponents of the state's units at the borders of the chunks: never below any inside the
    # chunk.
    exponent, total = behind + ic, through[..., -1, :]
    units = [m.unsqueeze(-1)]
    for chunk_m, chunk_total in zip(exponent.amax(-2).unbind(2), total.unbind(2)):
        units.append(torch.maximum(chunk_total + units[-1], chunk_m))
    borders = torch.stack(units, 2)  # (B, H, C + 1, 1)
    carried_m, last_m = borders[:, :, :-1], finite(borders[:, :, 1:])
    weighted = kc * torch.exp(exponent - last_m.unsqueeze(-2))
    # n is the memory of a value that is always 1: one more column of C.
    vc = torch.cat([vc, torch.ones_like(vc[..., :1])], -1)
    own = weighted.transpose(-1, -2) @ vc  # (B, H, C, K, V + 1)
    keep = torch.exp(total + carried_m - last_m).unsqueeze(-1)
    carried, state = pass_states(torch.cat([c, n.unsqueeze(-1)], -1), own, keep)

    blocks = (a[..., 1::2, :, :] + b[..., 0::2, :, :].transpose(-1, -2) for a, b in spans[:-1])
    zeros = torch.zeros_like(spans[0][0])
    log_weights = lower_triangular(zeros, blocks, -torch.inf) + ic.transpose(-1, -2)
    from_state = through + carried_m.unsqueeze(-2)  # (B, H, C, T, 1)
    row_m = torch.maximum(from_state, log_weights.amax(-1, keepdim=True))
    unit = finite(row_m)
    scores = (qc @ kc.transpose(-1, -2)) * torch.exp(log_weights - unit)
    queries = (qc * torch.exp(from_state - unit)).flatten(0, 2)
    y = torch.baddbmm((scores @ vc).flatten(0, 2), queries, carried.flatten(0, 2))
    h = normalise(y.view(*row_m.shape[:4], -1), row_m.squeeze(-1), eps)
    return from_chunks(h, v.shape[1]), state[..., :-1], state[..., -1], units[-1].squeeze(-1)
