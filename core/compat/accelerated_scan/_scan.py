"""The recurrence x_t = a_t x_{t-1} + b_t, channels first."""

from __future__ import annotations

import torch
from torch import Tensor

from longseq.core.errors import ArgumentError
from longseq.core.ops.arguments import check_kind, check_shape
from longseq.core.ops.linear_scan import linear_scan


def recurrence(name: str, gates: Tensor, tokens: Tensor) -> Tensor:
    """Returns all x (B, C, T) in the tokens' dtype, complex if the gates are.

    Args:
        name: of the function, for messages.
        gates: a (B, C, T).
        tokens: b (B, C, T).

    Raises:
        ArgumentError: naming the argument that does not fit.
    """
    check_kind(name, False, gates=gates, tokens=tokens)
    if tokens.dim() != 3:
        raise ArgumentError(
            f"{name}: tokens must be (batch, channels, time), got {tuple(tokens.shape)}"
        )
    check_shape(name, "gates", gates, tokens.shape, "(batch, channels, time)")
    dtype = torch.promote_types(gates.dtype, tokens.dtype) if gates.is_complex() else tokens.dtype
    if not tokens.numel():
        return (gates * tokens).to(dtype)
    states, _ = linear_scan(gates.transpose(1, 2), tokens.transpose(1, 2))
    return states.transpose(1, 2).contiguous().to(dtype)
