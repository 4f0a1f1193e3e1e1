"""Residuals of high-pass filters: what is left of an image without its content.

    r_k = tanh(s_k · (f_k ∗ x)),   k = 1, 2, 3 for every channel

with three filters of the spatial rich model (Fridrich and Kodovský 2012), as in the noise stream of
Zhou et al. 2018 (arXiv 1805.04953), and learnt scales s in place of their rounding and truncation.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longseq.core.checks import check_positive

_SECOND = ((-1, 2, -1), (2, -4, 2), (-1, 2, -1))
_KV = (
    (-1, 2, -2, 2, -1),
    (2, -6, 8, -6, 2),
    (-2, 8, -12, 8, -2),
    (2, -6, 8, -6, 2),
    (-1, 2, -2, 2, -1),
)
_LINE = (1, -2, 1)


class HighPass(nn.Module):
    """Images (B, C, H, W) to themselves and their residuals (B, 4 C, H, W).

    Args:
        channels: C.
        scale: of the residuals at the start, where images have a deviation of 1.
    """

    filters: Tensor
    no_decay_parameters: ClassVar[tuple[str, ...]] = ("scale",)

    def __init__(self, channels: int, scale: float = 8.0) -> None:
        super().__init__()
        filters = torch.zeros(3, 5, 5)
        filters[0, 1:4, 1:4] = torch.tensor(_SECOND) / 4
        filters[1] = torch.tensor(_KV) / 12
        filters[2, 2, 1:4] = torch.tensor(_LINE) / 2
        self.channels = check_positive("channels", channels)
        self.register_buffer("filters", filters.repeat(channels, 1, 1)[:, None], persistent=False)
        self.scale = nn.Parameter(torch.full((3 * channels,), float(scale)))

    @property
    def width(self) -> int:
        """Channels of the result."""
        return 4 * self.channels

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W), any size."""
        padded = F.pad(x, (2, 2, 2, 2), mode="replicate")
        residuals = F.conv2d(padded, self.filters.to(x.dtype), groups=self.channels)
        residuals = torch.tanh(residuals * self.scale.to(x.dtype)[:, None, None])
        return torch.cat([x, residuals], 1)
