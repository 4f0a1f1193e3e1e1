"""The second step of Mamba-2's scan in chunks: handing the state on from chunk to chunk."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from longseq.core.compat._names import module_getattr

__all__ = ["state_passing", "state_passing_ref"]
__getattr__ = module_getattr(__name__)


def state_passing(
    states: Tensor,
    dA_chunk_cumsum: Tensor,
    initial_states: Tensor | None = None,
    seq_idx: Tensor | None = None,
    chunk_size: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns the state before every chunk, and the last one.

    Args:
        states: what each chunk writes (B, chunks, H, W).
        dA_chunk_cumsum: log-decay over each chunk (B, H, chunks).
        initial_states: (B, H, W).
        seq_idx: integers (B, L): a state does not pass a chunk in whose course the sequence
            changes.
        chunk_size: T, with ``seq_idx``.

    Returns:
        (B, chunks, H, W) in the states' dtype, and (B, H, W).
    """
    decay = torch.exp(dA_chunk_cumsum.float())
    if seq_idx is not None:
        assert chunk_size is not None, "seq_idx needs chunk_size"
        ends = torch.arange(1, states.shape[1] + 1, device=states.device) * chunk_size
        last = seq_idx[:, ends.clamp(max=seq_idx.shape[1]) - 1]
        same = last == F.pad(last[:, :-1], (1, 0))  # before the first chunk there is sequence 0
        decay = decay * same.unsqueeze(1)
    state = torch.zeros_like(states[:, 0]) if initial_states is None else initial_states
    state = state.float()
    before = []
    for c in range(states.shape[1]):
        before.append(state)
        state = decay[:, :, c, None] * state + states[:, c].float()
    return torch.stack(before, 1).to(states.dtype), state


def state_passing_ref(
    states: Tensor, dA_chunk_cumsum: Tensor, initial_states: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The same as one product with a matrix of decays; arguments as ``state_passing``."""
    first = torch.zeros_like(states[:, 0]) if initial_states is None else initial_states
    sums = F.pad(dA_chunk_cumsum, (1, 0)).cumsum(-1)
    decay = torch.exp(sums.unsqueeze(-1) - sums.unsqueeze(-2)).tril()
    written = torch.cat([first.unsqueeze(1), states], 1)
    out = torch.einsum("bhzc,bchw->bzhw", decay.to(states.dtype), written)
    return out[:, :-1], out[:, -1]


def _state_passing_fwd(
    states: Tensor,
    dA_chunk_cumsum: Tensor,
    initial_states: Tensor | None = None,
    seq_idx: Tensor | None = None,
    chunk_size: int | None = None,
    out_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        out, final = state_passing(states, dA_chunk_cumsum, initial_states, seq_idx, chunk_size)
    return out.to(out_dtype or states.dtype), final
