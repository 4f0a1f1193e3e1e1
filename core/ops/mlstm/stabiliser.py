"""The mLSTM's stabiliser m: units that may be infinite, and the division by the normaliser."""

from __future__ import annotations

import torch
from torch import Tensor

# exp(-m) is a floor under the denominator; beyond this exponent the output is zero to any rounding,
# while float32 would overflow.
MAX_FLOOR_EXPONENT = 60.0


def finite(m: Tensor) -> Tensor:
    """Returns m with -inf (nothing seen yet) made finite, so that exp(-inf - m) is 0 and not
    NaN."""
    return m.clamp_min(-1e30)


def floor_of(m: Tensor) -> Tensor:
    """Returns the floor under the denominator for the stabiliser m."""
    return torch.exp((-m).clamp_max(MAX_FLOOR_EXPONENT))


def normalise(y: Tensor, m: Tensor, eps: float) -> Tensor:
    """Returns h (..., V) for y (..., V + 1), whose last column is nᵀq, and the stabiliser m
    (...)."""
    return divided(y[..., :-1], y[..., -1:], m, eps)


def divided(y: Tensor, total: Tensor, m: Tensor, eps: float) -> Tensor:
    """Returns h (..., V) for y (..., V), nᵀq (..., 1), and the stabiliser m (...)."""
    return y / (torch.maximum(total.abs(), floor_of(m).unsqueeze(-1)) + eps)
