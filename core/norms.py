"""The norms of the residual backbone by name."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from longseq.core.ops.rms_norm import rms_norm


class OffsetRMSNorm(nn.Module):
    """x / rms(x) · (1 + w), in float32 at least, as in Gemma: the scale is kept less 1.

    Args:
        width: channels.
        eps: added to the mean square.
    """

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) to the same, in the input's dtype."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        weight = 1 + self.weight.to(dtype)
        return nn.functional.rms_norm(x.to(dtype), weight.shape, weight, self.eps).to(x.dtype)


class RMSNorm(nn.RMSNorm):
    """torch's ``RMSNorm`` by the kernels of ``longseq.core.ops.rms_norm`` where they serve."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) to the same."""
        assert self.eps is not None
        return rms_norm(x, self.weight, self.eps)


NORMS: dict[str, Any] = {
    "rms": RMSNorm,
    "rms_offset": OffsetRMSNorm,
    "layer": nn.LayerNorm,
    "layer_nobias": partial(nn.LayerNorm, bias=False),
}


def normed(norm: nn.Module, x: Tensor) -> Tensor:
    """Returns ``norm(x)`` in the dtype of the norm's weights, if x is a wider residual stream."""
    dtype = cast(Tensor, norm.weight).dtype
    return norm(x.to(dtype) if x.dtype == torch.float32 and dtype.itemsize == 2 else x)
