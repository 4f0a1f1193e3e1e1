"""Root-mean-square normalisation with a swish gate, shared by Mamba-2, retention and GLA."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from longseq.core.ops.gated_norm import gated_rms_norm


class GatedRMSNorm(nn.Module):
    """RMSNorm(y) · w · silu(z), or RMSNorm(y · silu(z)) · w, in float32 at least.

    Args:
        width: channels.
        groups: the mean square is taken over each of so many equal runs of channels.
        norm_before_gate: whether the gate multiplies the normalised value or what is normalised.
        eps: added to the mean square.
    """

    def __init__(
        self, width: int, groups: int = 1, norm_before_gate: bool = True, eps: float = 1e-5
    ) -> None:
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
        return gated_rms_norm(y, z, self.weight, self.groups, self.norm_before_gate, self.eps)
