r"""Multi-scale state-space restoration after Serpent (Sepehri et al. 2024, arXiv 2403.17902).

A U-shaped network of blocks at falling resolution, y = up_s(x) + f(x), with up_s the bicubic
enlargement (nothing for s = 1). Every level halves the map, so scans see the whole image at the
price of a short sequence:

  x_0 = conv(unshuffle_p(x)),   x_i = blocks_i(down(x_{i-1})),
  z_i = blocks'_i(W concat(up(z_{i+1}), x_i)),   f(x) = shuffle_{p s}(conv(z_0))

A block is two 3×3 convolutions beside a shortcut; in the levels named in ``scans`` it is followed
by a state-space block of VMamba in four directions, or, as a peer, by CFSR's modulation by a large
kernel (Wu et al. 2024, arXiv 2401.05633):  x + W_3((D_9 W_1 n) ⊙ W_2 n), then a feed-forward with a
depthwise convolution; its edge filters of fixed direction fold into such a one.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longseq.core.checks import check_choice, check_positive
from longseq.core.errors import ArgumentError, ConfigError
from longseq.vision.models.pyramid import LayerNorm2d, check_stages
from longseq.vision.models.vmamba import SS2D, VSSBlock

LongBlock = Literal["scan", "modulation", "none"]


class Modulation(nn.Module):
    """CFSR's block: a large depthwise kernel weighs the values; (B, C, H, W) to the same shape.

    Args:
        width: channels C.
        kernel: side of the depthwise convolution.
        ratio: hidden width of the feed-forward as a multiple of C.
    """

    def __init__(self, width: int, kernel: int = 9, ratio: float = 2.0) -> None:
        super().__init__()
        hidden = int(ratio * width)
        self.norm, self.norm2 = LayerNorm2d(width), LayerNorm2d(width)
        self.query, self.value = nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 1)
        self.large = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width)
        self.out = nn.Conv2d(width, width, 1)
        self.fc1, self.fc2 = nn.Conv2d(width, hidden, 1), nn.Conv2d(hidden, width, 1)
        self.edges = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W)."""
        n = self.norm(x)
        x = x + self.out(self.large(self.query(n)) * self.value(n))
        h = F.gelu(self.fc1(self.norm2(x)))
        return x + self.fc2(h + self.edges(h))


class RestorationBlock(nn.Module):
    """x + conv(relu(conv(x))), then what sees far; (B, C, H, W) to the same shape.

    Args:
        width: channels C.
        long: "scan", "modulation" or "none".
        d_state: states per channel of the scans.
    """

    def __init__(self, width: int, long: LongBlock, d_state: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.long, self.kind = None, long
        if long == "scan":
            self.long = VSSBlock(width, 0.0, 2.0, SS2D(width, d_state))
        elif long == "modulation":
            self.long = Modulation(width)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W)."""
        x = x + self.second(torch.relu(self.first(x)))
        if self.long is None:
            return x
        if self.kind == "modulation":
            return self.long(x)
        return self.long(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Serpent(nn.Module):
    """A restorer of images (B, C, h, w) with values of 0 to 1, to (B, C, s h, s w).

    Args:
        in_chans: channels C.
        scale: s: 1 to restore, 2 to 4 to enlarge too.
        patch: pixels per side that become channels before the first convolution, as in FFDNet: a
            quarter of the time with 2.
        dims: width of every level.
        depths: blocks of every level, on the way down and on the way up.
        scans: levels whose blocks see the whole map.
        long: how: "scan", or "modulation" for CFSR's block.
        d_state: states per channel of the scans.
    """

    def __init__(
        self,
        in_chans: int = 3,
        scale: int = 1,
        patch: int = 2,
        dims: Sequence[int] = (48, 64, 96),
        depths: Sequence[int] = (1, 1, 1),
        scans: Sequence[int] = (1, 2),
        long: LongBlock = "scan",
        d_state: int = 4,
    ) -> None:
        super().__init__()
        check_stages(dims, depths)
        check_choice("long", long, LongBlock)
        if not 1 <= check_positive("scale", scale) <= 4:
            raise ConfigError(f"scale must lie between 1 and 4, got {scale}")
        if any(not 0 <= level < len(dims) for level in scans):
            raise ConfigError(f"scans must name levels from 0 to {len(dims) - 1}, got {scans}")
        self.in_chans, self.scale = check_positive("in_chans", in_chans), scale
        self.patch, self.multiple = check_positive("patch", patch), patch * 2 ** (len(dims) - 1)
        self.stem = nn.Conv2d(in_chans * patch**2, dims[0], 3, padding=1)

        def blocks(level: int) -> nn.Sequential:
            kind: LongBlock = long if level in scans else "none"
            return nn.Sequential(
                *(RestorationBlock(dims[level], kind, d_state) for _ in range(depths[level]))
            )

        self.levels = nn.ModuleList(blocks(i) for i in range(len(dims)))
        pairs = list(itertools.pairwise(dims))
        self.down = nn.ModuleList(nn.Conv2d(a, b, 2, stride=2) for a, b in pairs)
        self.up = nn.ModuleList(nn.Conv2d(b, 4 * a, 1) for a, b in pairs)
        self.join = nn.ModuleList(nn.Conv2d(2 * a, a, 1) for a, _ in pairs)
        self.back = nn.ModuleList(blocks(i) for i in range(len(dims) - 1))
        self.head = nn.Conv2d(dims[0], in_chans * (patch * scale) ** 2, 3, padding=1)
        # It begins as the enlargement itself.
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, h, w), of any size: sides are mirrored up to a multiple and cut again."""
        if x.dim() != 4 or x.shape[1] != self.in_chans:
            raise ArgumentError(
                f"images must have the shape (batch, {self.in_chans}, height, width), got "
                f"{tuple(x.shape)}"
            )
        height, width = x.shape[2:]
        grown = F.pixel_unshuffle(mirrored(x, self.multiple), self.patch)
        y = self.stem(grown.contiguous(memory_format=torch.channels_last))
        maps: list[Tensor] = []
        for i, level in enumerate(self.levels):
            y = level(y if i == 0 else self.down[i - 1](y))
            maps.append(y)
        for i in reversed(range(len(self.back))):
            y = F.pixel_shuffle(self.up[i](y), 2)
            y = self.back[i](self.join[i](torch.cat([y, maps[i]], 1)))
        residual = F.pixel_shuffle(self.head(y), self.patch * self.scale)
        return enlarge(x, self.scale) + residual[..., : height * self.scale, : width * self.scale]


def enlarge(x: Tensor, scale: int, mode: str = "bicubic") -> Tensor:
    """Returns images enlarged between pixels, as they are for a scale of 1.

    Args:
        x: (B, C, h, w).
        scale: of both sides.
        mode: "bicubic" or "bilinear".
    """
    if scale == 1:
        return x
    return F.interpolate(x, scale_factor=scale, mode=mode, align_corners=False)


def mirrored(x: Tensor, multiple: int) -> Tensor:
    """Returns images whose sides are multiples of a number: mirrored at the right and below.

    Args:
        x: (B, C, H, W), of any size.
        multiple: of both sides.
    """
    for dim in (2, 3):
        side = x.shape[dim]
        if more := -side % multiple:
            # As numpy's "symmetric", which repeats where the image is smaller than what is added.
            ramp = torch.arange(side + more, device=x.device) % (2 * side)
            x = x.index_select(dim, torch.where(ramp < side, ramp, 2 * side - 1 - ramp))
    return x
