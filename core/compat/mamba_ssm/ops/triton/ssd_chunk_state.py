"""The first step of Mamba-2's scan in chunks: sums of log-decays, and what each chunk writes.

These parts are torch's own operations, for code that calls them one by one; the scan itself
(``ssd_combined``) is one operator.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from longseq.core.compat._names import module_getattr

__all__ = ["chunk_cumsum", "chunk_state", "chunk_state_ref", "chunk_state_varlen"]
__getattr__ = module_getattr(__name__)


def chunk_cumsum(
    dt: Tensor,
    A: Tensor,
    chunk_size: int,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, math.inf),
) -> tuple[Tensor, Tensor]:
    """Returns the running sums of dt · A inside every chunk, and the step sizes.

    Args:
        dt: (B, L, H).
        A: decay rates (H,).
        chunk_size: T.
        dt_bias: (H,).
        dt_softplus: whether the softplus is applied.
        dt_limit: bounds of the step size.

    Returns:
        Two tensors (B, H, chunks, T) in float32; steps after the end are zero.
    """
    steps = dt.float() if dt_bias is None else dt.float() + dt_bias.float()
    steps = (F.softplus(steps) if dt_softplus else steps).clamp(*dt_limit)
    steps = F.pad(steps, (0, 0, 0, -dt.shape[1] % chunk_size))
    steps = steps.unflatten(1, (-1, chunk_size)).permute(0, 3, 1, 2)
    return (steps * A.float()[:, None, None]).cumsum(-1), steps


def in_chunks(t: Tensor, chunks: int, heads: int) -> Tensor:
    """Returns (B, L, H or G, W) as (B, chunks, H, T, W) with T = L / chunks."""
    t = t.unflatten(1, (chunks, -1)).transpose(2, 3)
    return t.repeat_interleave(heads // t.shape[2], 2)


def chunk_state(
    B: Tensor,
    x: Tensor,
    dt: Tensor,
    dA_cumsum: Tensor,
    states_in_fp32: bool = True,
    seq_idx: Tensor | None = None,
) -> Tensor:
    """Returns what each chunk writes into the state at its end.

    Args:
        B: (B, L, G, N).
        x: (B, L, H, P).
        dt: step sizes (B, H, chunks, T).
        dA_cumsum: their running sums times A (B, H, chunks, T).
        states_in_fp32: whether the result is float32, or in B's dtype.
        seq_idx: integers (B, L): only the sequence of a chunk's last position counts.

    Returns:
        (B, chunks, H, P, N).
    """
    _, heads, chunks, size = dt.shape
    missing = chunks * size - x.shape[1]
    left = torch.exp(dA_cumsum[..., -1:] - dA_cumsum) * dt
    if seq_idx is not None:
        ends = torch.arange(1, chunks + 1, device=x.device) * size
        last = seq_idx[:, ends.clamp(max=x.shape[1]) - 1].unsqueeze(-1)
        index = F.pad(seq_idx, (0, missing)).unflatten(1, (chunks, size))  # without steps there
        left = left * (index == last).unsqueeze(1)
    padding = (0, 0, 0, 0, 0, missing)
    values = in_chunks(F.pad(x, padding), chunks, heads).float()
    maps = in_chunks(F.pad(B, padding), chunks, heads).float()
    states = (values * left.permute(0, 2, 1, 3).unsqueeze(-1)).transpose(-1, -2) @ maps
    return states if states_in_fp32 else states.to(B.dtype)


def chunk_state_ref(B: Tensor, x: Tensor, dt: Tensor, dA_cumsum: Tensor) -> Tensor:
    """The same in x's dtype, as one sum; arguments as ``chunk_state``."""
    _, heads, chunks, size = dt.shape
    padding = (0, 0, 0, 0, 0, chunks * size - x.shape[1])
    values, maps = (in_chunks(F.pad(t, padding), chunks, heads).to(x.dtype) for t in (x, B))
    left = torch.exp(dA_cumsum[..., -1:] - dA_cumsum)
    factors = [t.to(x.dtype) for t in (left, dt)]
    return torch.einsum("bhcl,bhcl,bchlp,bchln->bchpn", *factors, values, maps)


def chunk_state_varlen(
    B: Tensor, x: Tensor, dt: Tensor, dA_cumsum: Tensor, cu_seqlens: Tensor, chunk_states: Tensor
) -> Tensor:
    """Returns the state at the end of every packed sequence; zero for one that is empty.

    Args:
        B: (L, G, N).
        x: (L, H, P).
        dt: step sizes (H, chunks, T).
        dA_cumsum: their running sums times A (H, chunks, T).
        cu_seqlens: where the sequences begin, and the end of the last (S + 1,).
        chunk_states: the state before each chunk (chunks, H, P, N).

    Returns:
        (S, H, P, N) in the states' dtype.
    """
    heads, _, size = dt.shape
    shared = heads // B.shape[1]
    states = []
    for start, stop in pairwise(cu_seqlens.tolist()):
        if start == stop:
            states.append(torch.zeros_like(chunk_states[0]))
            continue
        chunk = (stop - 1) // size  # which the sequence ends in
        first, end = max(start - chunk * size, 0), stop - chunk * size
        sums, steps = dA_cumsum[:, chunk, :end], dt[:, chunk, first:end]
        left = torch.exp(sums[:, -1:] - sums[:, first:]) * steps
        inside = slice(chunk * size + first, stop)
        values = x[inside].float() * left.t().unsqueeze(-1)
        maps = B[inside].float().repeat_interleave(shared, 1)
        state = values.permute(1, 2, 0) @ maps.transpose(0, 1)
        if start < chunk * size:
            state = state + torch.exp(sums[:, -1])[:, None, None] * chunk_states[chunk].float()
        states.append(state.to(chunk_states.dtype))
    return torch.stack(states)


def _chunk_cumsum_fwd(
    dt: Tensor,
    A: Tensor,
    chunk_size: int,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, math.inf),
) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        return chunk_cumsum(dt, A, chunk_size, dt_bias, dt_softplus, dt_limit)


def _chunk_state_fwd(
    B: Tensor,
    x: Tensor,
    dt: Tensor,
    dA_cumsum: Tensor,
    seq_idx: Tensor | None = None,
    states: Tensor | None = None,
    states_in_fp32: bool = True,
) -> Tensor:
    with torch.no_grad():
        found = chunk_state(B, x, dt, dA_cumsum, states_in_fp32, seq_idx)
    return found if states is None else states.copy_(found)
