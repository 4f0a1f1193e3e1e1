"""The scan in torch's own operations, for any multiplication and addition."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from longseq.core.compat._names import module_getattr

__all__ = ["scan"]
__getattr__ = module_getattr(__name__)


def scan(
    gates: Tensor,
    tokens: Tensor,
    mul: Callable[[Tensor, Tensor], Tensor] = torch.mul,
    add: Callable[[Tensor, Tensor], Tensor] = torch.add,
    zeros_like: Callable[[Tensor], Tensor] = torch.zeros_like,
    ones_like: Callable[[Tensor], Tensor] = torch.ones_like,
    reverse: bool = False,
) -> Tensor:
    """Returns x (B, C, T) with x_t = gates_t x_{t-1} + tokens_t, by doubling spans.

    Args:
        gates: (B, C, T).
        tokens: (B, C, T).
        mul: of the ring.
        add: of the ring.
        zeros_like: its zeros.
        ones_like: its ones.
        reverse: whether the recurrence runs from the end.
    """
    if reverse:
        gates, tokens = gates.flip(-1), tokens.flip(-1)
    span, length = 1, tokens.shape[-1]
    while span < length:
        # Every position joins what ended `span` before it.
        before = torch.cat([zeros_like(tokens[..., :span]), tokens[..., :-span]], -1)
        decay = torch.cat([ones_like(gates[..., :span]), gates[..., :-span]], -1)
        tokens = add(mul(gates, before), tokens)
        gates = mul(gates, decay)
        span *= 2
    return tokens.flip(-1) if reverse else tokens
