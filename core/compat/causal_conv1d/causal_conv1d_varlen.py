"""States of the short convolution at the ends of packed sequences."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from longseq.core.compat._names import module_getattr
from longseq.core.compat._tensors import bounds_of
from longseq.core.errors import ArgumentError

__all__ = ["causal_conv1d_varlen_states", "causal_conv1d_varlen_states_ref"]
__getattr__ = module_getattr(__name__)


def causal_conv1d_varlen_states(x: Tensor, cu_seqlens: Tensor, state_len: int) -> Tensor:
    """Returns the last inputs of every packed sequence, zeros before those that are shorter.

    Args:
        x: packed inputs (T, D).
        cu_seqlens: where the sequences begin, and the end of the last one (S + 1,); a repeated
            entry is an empty sequence.
        state_len: inputs per state.

    Returns:
        (S, D, state_len), each input's channels dense in memory.

    Raises:
        ArgumentError: naming the argument that does not fit.
    """
    name = "causal_conv1d_varlen_states"
    if x.dim() != 2:
        raise ArgumentError(f"{name}: x must be (positions, channels), got {tuple(x.shape)}")
    bounds_of(name, cu_seqlens, x.shape[0])
    starts, ends = cu_seqlens[:-1].long(), cu_seqlens[1:].long()
    at = ends.unsqueeze(1) + torch.arange(-state_len, 0, device=x.device)
    inside = at >= starts.unsqueeze(1)
    if not x.shape[0]:
        return x.new_zeros(at.shape[0], state_len, x.shape[1]).transpose(1, 2)
    rows = x[at.clamp(min=0)]
    return torch.where(inside.unsqueeze(-1), rows, torch.zeros_like(rows)).transpose(1, 2)


def causal_conv1d_varlen_states_ref(x: Tensor, cu_seqlens: Tensor, state_len: int) -> Tensor:
    """The same, sequence by sequence; arguments as ``causal_conv1d_varlen_states``."""
    states = x.new_zeros(cu_seqlens.numel() - 1, state_len, x.shape[1])
    for state, (start, stop) in zip(states, pairwise(cu_seqlens.tolist())):
        kept = min(stop - start, state_len)
        if kept:
            state[-kept:] = x[stop - kept : stop]
    return states.transpose(1, 2)
