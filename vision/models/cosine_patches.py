"""Overlapping patches in a basis of cosines: a stem's fixed first half."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longseq.core.checks import check_positive

SIZE, STRIDE = 4, 2
"""Sides of a patch, and pixels between patches."""


def cosines(size: int) -> Tensor:
    """Returns the orthonormal cosine transform of so many values, a row per frequency (DCT-II).

    Args:
        size: number of values N.
    """
    frequency, place = torch.arange(size)[:, None], torch.arange(size)[None]
    rows = torch.cos(math.pi * (place + 0.5) * frequency / size) * math.sqrt(2 / size)
    rows[0] /= math.sqrt(2)
    return rows


def _colours(channels: int) -> Tensor:
    """Returns an orthonormal basis of channels: of three brightness and two differences, which
    photographs need most and least; of others the channels themselves."""
    if channels != 3:
        return torch.eye(channels)
    rows = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [0.5, -1.0, 0.5]])
    return rows / rows.norm(dim=1, keepdim=True)


class CosinePatches(nn.Module):
    """The cosine transform of patches of 4 × 4 pixels, two apart: (B, C, H, W) to (B, 16 C, H // 2,
    W // 2). Its outputs are almost uncorrelated for photographs (Ahmed et al. 1974, "Discrete
    cosine transform"), it has no weights, and nothing is computed backwards.

    Args:
        channels: C.
    """

    filters: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = SIZE * SIZE * check_positive("channels", channels)
        waves = torch.einsum("ai,bj->abij", cosines(SIZE), cosines(SIZE)).flatten(0, 1)
        filters = torch.einsum("kij,oc->okcij", waves, _colours(channels)).flatten(0, 1)
        self.register_buffer("filters", filters, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W)."""
        return F.conv2d(x, self.filters, stride=STRIDE, padding=(SIZE - STRIDE) // 2)
