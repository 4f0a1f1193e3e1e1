"""Linear attention over chunks in torch's own operations, all chunks at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from longseq.core.ops.chunking import (
    by_blocks,
    chunk_length,
    decayed_products,
    fold,
    from_chunks,
    lower_triangular,
    pass_states,
    run_blocks,
    span_sums,
    to_chunks,
    unfold,
)
from longseq.core.ops.linear_attention import reference
from longseq.core.ops.linear_attention.arguments import Arguments, prepared
from longseq.core.ops.precision import autocast_off


def run(call: Arguments) -> tuple[Tensor, Tensor]:
    """Runs a checked call; a single position is a step, and a long call without gradients goes by
    blocks."""
    if call.v.shape[1] == 1:
        return reference.run(call)
    if not by_blocks(call.v.shape[1]):
        return _run(call)

    def block(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        g: Tensor | None,
        resets: Tensor | None,
        state: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        return run(call._replace(q=q, k=k, v=v, log_decay=g, resets=resets, initial_state=state))

    return run_blocks(
        block, (call.q, call.k, call.v, call.log_decay, call.resets), call.initial_state
    )


def _run(call: Arguments) -> tuple[Tensor, Tensor]:
    with autocast_off(call.v):
        q, k, values, g, state = prepared(call)
        if g.ndim == 3:
            y, last = per_head(q, k, values, g, state, call.chunk_size)
        else:
            y, last = _per_channel(q, k, values, g, state, call.chunk_size)
        return y.to(call.v.dtype), last


def per_head(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    state: Tensor,
    chunk_size: int,
    step: Tensor | None = None,
    skip: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The operator for a decay per head, in operations that have derivatives of any order.

    Args:
        q: (B, L, G, K), scaled.
        k: (B, L, G, K).
        v: (B, L, H, V).
        g: log-decays (B, L, H).
        state: (B, H, K, V).
        chunk_size: positions per chunk.
        step: (B, L, H) or None: what of the values is attended to.
        skip: (H, V) or None: what of the values is added to the output.

    Returns:
        The output (B, L, H, V) and the final state (B, H, K, V).
    """
    groups, shared = q.shape[2], v.shape[2] // q.shape[2]
    chunk = chunk_length(chunk_size, v.shape[1])
    stepped = v if step is None else v * step.unsqueeze(-1)
    qc, kc, vc = (to_chunks(x, chunk) for x in (q, k, stepped))
    spans = span_sums(to_chunks(g.unsqueeze(-1), chunk))
    through, behind = (x.squeeze(-3).exp() for x in spans[-1])  # (B, H, C, T, 1)
    blocks = (
        a[..., 1::2, :, :].exp() * b[..., 0::2, :, :].exp().transpose(-1, -2) for a, b in spans[:-1]
    )
    decay = lower_triangular(torch.ones_like(spans[0][0]), blocks, 0.0)  # (B, H, C, T, T)
    scores = (qc @ kc.transpose(-1, -2)).unsqueeze(2) * decay.unflatten(1, (groups, shared))
    y = scores.flatten(1, 2) @ vc
    local = kc.transpose(-1, -2) @ fold(vc * behind, groups)  # (B, G, C, K, R·V)
    total = through[..., -1, :].unflatten(1, (groups, shared)).permute(0, 1, 3, 4, 2)
    total = total.repeat_interleave(v.shape[3], dim=-1)  # (B, G, C, 1, R·V)
    carried, last = pass_states(fold(state.unsqueeze(2), groups).squeeze(2), local, total)
    y = from_chunks(y + unfold(qc @ carried, shared) * through, v.shape[1])
    if skip is not None:
        y = y + v * skip
    return y, unfold(last.unsqueeze(2), shared).squeeze(2)


def _per_channel(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, state: Tensor, chunk_size: int
) -> tuple[Tensor, Tensor]:
    """The operator for log-decays (B, L, G, K)."""
    length, groups, shared = v.shape[1], q.shape[2], v.shape[2] // q.shape[2]
    chunk = chunk_length(chunk_size, length)
    qc, kc, vc = (to_chunks(x, chunk) for x in (q, k, v))
    spans = span_sums(to_chunks(g, chunk))
    through, behind = (x.squeeze(-3).exp() for x in spans[-1])  # (B, G, C, T, K)
    ((scores,),) = decayed_products((qc,), (kc,), spans)
    folded = fold(vc, groups)
    y = unfold(scores @ folded, shared)
    local = (kc * behind).transpose(-1, -2) @ folded
    total = through[..., -1, :].unsqueeze(-1)  # (B, G, C, K, 1)
    carried, last = pass_states(fold(state.unsqueeze(2), groups).squeeze(2), local, total)
    y = y + unfold((qc * through) @ carried, shared)
    return from_chunks(y, length), unfold(last.unsqueeze(2), shared).squeeze(2)
