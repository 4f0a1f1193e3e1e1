"""Root-mean-square normalisation with a swish gate, shared by Mamba-2, retention and GLA."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import silu


class GatedRMSNorm(nn.Module):
    """RMSNorm(y) · w · silu(z), or RMSNorm(y · silu(z)) · w, in float32 at least.

    Args:
        width: channels.
        groups: the mean square is taken over each of so many equal runs of channels.
        norm_before_gate: whether the gate multiplies the normalised value or what is normalised.
        eps: added to the mean square.
    """

    def __init__(self, width: int, groups: int = 1, norm_before_gate: bool = True, eps: float = 1e-5) -> None:
        super().__init__()
        self.groups, self.norm_before_gate, self.eps = groups, norm_before_gate, eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, y: Tensor, z: Tensor) -> Tensor:
        """Normalises and gates.

        Args:
            y: values (..., width).
            z: gate (..., width).

        Returns:
            (..., width) in z's dtype.
        """
        dtype = torch.promote_types(y.dtype, torch.float32)
        gate = silu(z.to(dtype))
        value = y.to(dtype) if self.norm_before_gate else y.to(dtype) * gate
        grouped = value.unflatten(-1, (self.groups, -1))
        grouped = grouped * torch.rsqrt(grouped.square().mean(-1, keepdim=True) + self.eps)
        out = grouped.flatten(-2) * self.weight.to(dtype)
        return (out * gate if self.norm_before_gate else out).to(z.dtype)
