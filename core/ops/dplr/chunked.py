"""The diagonal-plus-rank-one recurrence over chunks, in torch's own operations."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from longseq.core.ops.chunking import (
    by_blocks,
    chunk_length,
    decayed_products,
    from_chunks,
    run_blocks,
    span_sums,
    to_chunks,
)
from longseq.core.ops.dplr import reference
from longseq.core.ops.dplr.arguments import Arguments, prepared
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
            a: Tensor,
            b: Tensor,
            g: Tensor,
            resets: Tensor | None,
            state: Tensor | None,
        ) -> tuple[Tensor, Tensor]:
            part = call._replace(q=q, k=k, v=v, a=a, b=b, log_decay=g)
            return run(part._replace(resets=resets, initial_state=state))

        return run_blocks(block, (*call[:6], call.resets), call.initial_state)
    with autocast_off(v):
        y, last = _chunked(*prepared(call), chunk_length(call.chunk_size, v.shape[1]))
        return y.to(v.dtype), last


def _chunked(
    q: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, g: Tensor, state: Tensor, chunk: int
) -> tuple[Tensor, Tensor]:
    """The operator for prepared arguments, q scaled.

    What position t finds, p_t = S_{t-1}ᵀ b_t, is read behind position t-1: b is moved one position
    back.
    """
    qc, kc, vc, ac, bc = (to_chunks(x, chunk) for x in (q, k, v, a, b))
    spans = span_sums(to_chunks(g, chunk))
    through, behind = (x.squeeze(-3).exp() for x in spans[-1])  # (B, H, C, T, K)
    early = pad(bc[..., 1:, :], (0, 0, 0, 1))
    (found_a, read_a), (found_k, read_k) = decayed_products((early, qc), (ac, kc), spans)
    found_a, found_k = (pad(x[..., :-1, :], (0, 0, 1, 0)) for x in (found_a, found_k))
    from_start = bc * pad(through[..., :-1, :], (0, 0, 1, 0), value=1.0)
    # solve_triangular takes the diagonal as ones and does not look above it.
    solved = torch.linalg.solve_triangular(
        -found_a, torch.cat([found_k @ vc, from_start], -1), upper=False, unitriangular=True
    )
    own, from_state = solved.split([vc.shape[-1], kc.shape[-1]], -1)
    added = (kc * behind).transpose(-1, -2) @ vc
    corrections, total = (ac * behind).transpose(-1, -2), through[..., -1, :].unsqueeze(-1)
    before, found = [], []
    for c in range(own.shape[2]):
        before.append(state)
        found.append(own[:, :, c] + from_state[:, :, c] @ state)
        state = total[:, :, c] * state + added[:, :, c] + corrections[:, :, c] @ found[-1]
    y = (qc * through) @ torch.stack(before, 2) + read_k @ vc + read_a @ torch.stack(found, 2)
    return from_chunks(y, v.shape[1]), state
