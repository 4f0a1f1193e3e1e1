"""Image models whose authors published no code, slowly and plainly by their papers' equations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _Retention(nn.Module):
    """Retention position after position, as in the paper's recurrent form (eq. 2)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.norm = nn.Linear(width, 3 * width), nn.LayerNorm(width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        parts = []
        for h in range(self.heads):
            gamma, wide = 1 - 2.0 ** (-5 - h), x.shape[2] // self.heads
            own = slice(h * wide, (h + 1) * wide)
            q, k, v = (part[..., own] for part in self.qkv(x).chunk(3, -1))
            state, rows = x.new_zeros(x.shape[0], wide, wide), []
            for t in range(x.shape[1]):
                state = gamma * state + k[:, t, :, None] * v[:, t, None]
                rows.append((q[:, t, None] @ state)[:, 0] / wide**0.5)
            parts.append(torch.stack(rows, 1))
        return self.proj(F.gelu(self.norm(torch.cat(parts, -1))))


class _RetentionBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.ret = _Retention(width, heads)
        hidden = {"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)}
        self.mlp = nn.ModuleDict(hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ret(self.norm1(x))
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


class _ViR(nn.Module):
    def __init__(self, num_classes: int, side: int, patch: int, width: int, depth: int, heads: int):
        super().__init__()
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, patch, patch)})
        self.pos_embed = nn.Parameter(torch.zeros(1, (side // patch) ** 2, width))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.cls_position = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = nn.Sequential(*(_RetentionBlock(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        grid = self.patch_embed["proj"](x)
        side = int(self.pos_embed.shape[1] ** 0.5)
        where = self.pos_embed.transpose(1, 2).unflatten(2, (side, side))
        if grid.shape[2:] != (side, side):
            where = F.interpolate(
                where, grid.shape[2:], mode="bicubic", antialias=True, align_corners=False
            )
        tokens = (grid + where).flatten(2).transpose(1, 2)
        last = (self.cls_token + self.cls_position).expand(len(x), -1, -1)
        return self.head(self.norm(self.blocks(torch.cat([tokens, last], 1)))[:, -1])


def vir(root: Path, **kwargs: Any) -> nn.Module:
    """Returns ViR by its equations; its authors have published no code."""
    return _ViR(**kwargs)
