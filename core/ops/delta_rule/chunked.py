"""The delta rule over chunks in torch's own operations."""

from __future__ import annotations

import torch
from torch import Tensor

from longseq.core.ops.chunking import (
    Spans,
    by_blocks,
    chunk_length,
    decayed_products,
    from_chunks,
    lower_triangular,
    run_blocks,
    span_sums,
    to_chunks,
)
from longseq.core.ops.delta_rule import reference
from longseq.core.ops.delta_rule.arguments import Arguments, prepared
from longseq.core.ops.precision import autocast_off


def run(call: Arguments) -> tuple[Tensor, Tensor]:
    """Runs a checked call; a single position is a step, and a long call without gradients goes by
    blocks."""
    v = call.v
    if v.shape[1] == 1:
        return reference.run(call)
    if by_blocks(v.shape[1]):

        def block(
            q: Tensor,
            k: Tensor,
            v: Tensor,
            beta: Tensor,
            g: Tensor | None,
            resets: Tensor | None,
            state: Tensor | None,
        ) -> tuple[Tensor, Tensor]:
            part = call._replace(q=q, k=k, v=v, beta=beta, log_decay=g)
            return run(part._replace(resets=resets, initial_state=state))

        return run_blocks(block, (*call[:5], call.resets), call.initial_state)
    with autocast_off(v):
        q, k, values, beta, g, state = prepared(call)
        y, last = _chunked(q, k, values, beta, g, state, chunk_length(call.chunk_size, v.shape[1]))
        return y.to(v.dtype), last


def _chunked(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, g: Tensor, state: Tensor, chunk: int
) -> tuple[Tensor, Tensor]:
    """The operator for prepared arguments, q scaled."""
    length, shared = v.shape[1], v.shape[2] // q.shape[2]
    qc, kc, vc, bc = (to_chunks(x, chunk) for x in (q, k, v, beta.unsqueeze(-1)))
    spans = span_sums(to_chunks(g if g.ndim == 4 else g.unsqueeze(-1), chunk))
    through, behind = (x.squeeze(-3).exp() for x in spans[-1])  # (B, G or H, C, T, K or 1)
    if g.ndim == 4:
        ((read, met),) = decayed_products((qc, kc), (kc,), spans)
        read, met = read.repeat_interleave(shared, 1), met.repeat_interleave(shared, 1)
        through, behind = through.repeat_interleave(shared, 1), behind.repeat_interleave(shared, 1)
    else:
        decay = _decay_matrix(spans)
        # (B, H, C, T, T)
        read, met = (
            (x @ kc.transpose(-1, -2)).repeat_interleave(shared, 1) * decay for x in (qc, kc)
        )
    qc, kc = qc.repeat_interleave(shared, 1), kc.repeat_interleave(shared, 1)
    # solve_triangular takes the diagonal as ones and does not look above it.
    writes = torch.linalg.solve_triangular(
        bc * met, bc * torch.cat([vc, kc * through], -1), upper=False, unitriangular=True
    )
    own, corrections = writes.split([vc.shape[-1], kc.shape[-1]], -1)
    keys, total = (kc * behind).transpose(-1, -2), through[..., -1, :].unsqueeze(-1)
    before, written = [], []
    for c in range(own.shape[2]):
        before.append(state)
        written.append(own[:, :, c] - corrections[:, :, c] @ state)
        state = total[:, :, c] * state + keys[:, :, c] @ written[-1]
    y = (qc * through) @ torch.stack(before, 2) + read @ torch.stack(written, 2)
    return from_chunks(y, length), state


def _decay_matrix(spans: Spans) -> Tensor:
    """Returns exp(g_{j+1} + … + g_i) for j ≤ i, else 0, (..., T, T), of sums (..., T/h, h, 1)."""
    # Later rows, earlier columns.
    blocks = (a[..., 1::2, :, :] + b[..., 0::2, :, :].transpose(-1, -2) for a, b in spans[:-1])
    return lower_triangular(spans[0][1], blocks, -torch.inf).exp()
