"""The last step of Mamba-2's scan in chunks: the outputs, from the states before the chunks."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from longseq.core.compat._names import module_getattr
from longseq.core.compat.mamba_ssm.ops.triton.ssd_chunk_state import in_chunks

__all__ = ["chunk_scan", "chunk_scan_ref"]
__getattr__ = module_getattr(__name__)


def _outputs(
    dtype: torch.dtype,
    B: Tensor,
    C: Tensor,
    x: Tensor,
    dt: Tensor,
    dA_cumsum: Tensor,
    prev_states: Tensor,
    D: Tensor | None,
    z: Tensor | None,
) -> Tensor:
    _, heads, chunks, size = dt.shape
    keys, queries, values = (in_chunks(t, chunks, heads).to(dtype) for t in (B, C, x))
    sums = dA_cumsum.transpose(1, 2)
    span = sums.unsqueeze(-1) - sums.unsqueeze(-2)
    ahead = torch.ones(size, size, dtype=torch.bool, device=x.device).triu(1)
    decay = torch.exp(span.masked_fill(ahead, -torch.inf))
    scores = queries @ keys.transpose(-1, -2) * (decay * dt.transpose(1, 2).unsqueeze(-2)).to(dtype)
    y = scores @ values
    through = queries @ prev_states.to(dtype).transpose(-1, -2)
    y = y + through * torch.exp(sums).to(dtype).unsqueeze(-1)
    y = y.transpose(2, 3).flatten(1, 2)
    if D is not None:
        y = y + x * (D.unsqueeze(-1) if D.dim() == 1 else D)
    return y if z is None else y * F.silu(z)


def chunk_scan(
    B: Tensor,
    C: Tensor,
    x: Tensor,
    dt: Tensor,
    dA_cumsum: Tensor,
    prev_states: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
) -> Tensor:
    """Returns the outputs (B, L, H, P), computed in float32.

    Args:
        B: (B, L, G, N), L a multiple of the chunk's size T.
        C: (B, L, G, N).
        x: (B, L, H, P).
        dt: step sizes (B, H, chunks, T).
        dA_cumsum: their running sums times A (B, H, chunks, T).
        prev_states: the state before each chunk (B, chunks, H, P, N).
        D: skip (H,), or (H, P).
        z: gate (B, L, H, P).
    """
    wide = [None if t is None else t.float() for t in (D, z)]
    return _outputs(
        torch.float32, B, C, x.float(), dt, dA_cumsum, prev_states, wide[0], wide[1]
    ).to(x.dtype)


def chunk_scan_ref(
    B: Tensor,
    C: Tensor,
    x: Tensor,
    dt: Tensor,
    dA_cumsum: Tensor,
    prev_states: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
) -> Tensor:
    """The same in x's dtype; arguments as ``chunk_scan``."""
    return _outputs(x.dtype, B, C, x, dt, dA_cumsum, prev_states, D, z)
