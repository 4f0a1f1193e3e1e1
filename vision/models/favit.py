r"""FaViT (Qin et al. 2023, arXiv 2312.08614): attention factorised over shares of the channels.

Every share of a position's query attends to its own few keys: the first to those of the whole map
at a lower resolution (a strided convolution), the others to the 7 × 7 places of a dilated window,
each made of that place in all windows of the map. Values gain a depthwise convolution of
themselves.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longseq.core.checks import check_positive
from longseq.core.errors import ConfigError
from longseq.vision.models.groupmamba import DepthwiseMLP
from longseq.vision.models.layers import DropPath, head, path_rates, with_branch
from longseq.vision.models.pyramid import IMAGENET, ImagePreset, Pyramid, check_stages, initialise

WINDOW = 7
"""Places per side of a window."""


def _depthwise(channels: int) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, 3, padding=1, groups=channels)


class DepthPoint(nn.Module):
    """A depthwise and a 1×1 convolution; (B, C, H, W).

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depth_conv = _depthwise(channels)
        self.point_conv = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W)."""
        return self.point_conv(self.depth_conv(x))


def window_keys(x: Tensor, dilation: int, n_heads: int) -> Tensor:
    """Returns one vector for each of the 49 places of a window, (B, heads, 49, c).

    A window has its places ``dilation`` apart; windows lie side by side, and the map is reflected
    at its ends to whole windows, several times where it is smaller. Of w windows a place has w
    vectors of a head's c channels; as in the published code, they are laid one behind the other
    and every w numbers in a row are averaged: of one window the vector itself, of several a mean
    over neighbouring channels too.

    Args:
        x: (B, heads · c, H, W).
        dilation: distance of places.
        n_heads: heads.
    """
    step = dilation * (WINDOW - 1) + 1
    height, width = x.shape[2:]

    def index(length: int) -> Tensor:
        """Positions of a line continued to whole windows by reflection, (windows, 7)."""
        whole = length + -length % step
        where = torch.arange(whole, device=x.device).view(-1, step)[:, ::dilation]
        if length == 1:
            return torch.zeros_like(where)
        where = where % (2 * length - 2)
        return torch.minimum(where, 2 * length - 2 - where)

    found = x.unflatten(1, (n_heads, -1))[:, :, :, index(height)][..., index(width)]
    # (B, heads, c, rows, 7, columns, 7) to (B, heads, 7, 7, rows, columns, c)
    found = found.permute(0, 1, 4, 6, 3, 5, 2).flatten(2, 3)
    channels = x.shape[1] // n_heads
    return found.flatten(3).unflatten(3, (channels, -1)).mean(-1)


class FactorizedAttention(nn.Module):
    """The mixer: (B, H, W, C) to the same shape.

    Args:
        channels: C.
        n_heads: of the windows' shares; the first share has one.
        stride: of the convolution of the first share, and the dilation of the last; 1 for two
            shares instead of three.
    """

    def __init__(self, channels: int, n_heads: int, stride: int) -> None:
        super().__init__()
        parts = (2, 7, 7) if check_positive("stride", stride) > 1 else (1, 7)
        if channels % sum(parts) or channels // sum(parts) * 7 % n_heads:
            raise ConfigError(
                f"the widths of FaViT must be multiples of {sum(parts)} (at stride {stride}), and "
                f"7/{sum(parts)} of them of the {n_heads} heads, got {channels}"
            )
        sizes = [channels // sum(parts) * part for part in parts]
        self.sizes, self.n_heads, self.stride = sizes, n_heads, stride
        self.dilations = (1, stride)[: len(parts) - 1]
        whole = sizes[0]
        self.q = nn.Linear(channels, channels)
        self.kv_g, self.kv_l = nn.Linear(whole, 2 * whole), DepthPoint(channels - whole)
        self.sr = nn.Conv2d(whole, whole, stride, stride)
        self.norm = nn.LayerNorm(whole)
        self.local_conv_g = _depthwise(whole)
        each = [size // n_heads for size in sizes[1:]]
        self.fcs = nn.ModuleList(nn.Linear(size, size) for size in each)
        self.single_heads = nn.ModuleList(nn.Linear(size, 2 * size) for size in each)
        self.local_convs = nn.ModuleList(_depthwise(size) for size in sizes[1:])
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, H, W, C), with sides of at least the stride."""
        queries = self.q(x).flatten(1, 2).split(self.sizes, dim=2)
        small = self.sr(x[..., : self.sizes[0]].permute(0, 3, 1, 2))
        keys, values = self.kv_g(self.norm(small.permute(0, 2, 3, 1))).chunk(2, dim=-1)
        values = values + self.local_conv_g(values.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        found = [
            F.scaled_dot_product_attention(queries[0], keys.flatten(1, 2), values.flatten(1, 2))
        ]
        local = self.kv_l(x[..., self.sizes[0] :].permute(0, 3, 1, 2)).split(self.sizes[1:], dim=1)
        # The published code numbers a head's channels over all shares, and so does this.
        heads = torch.cat(queries[1:], -1).unflatten(2, (self.n_heads, -1)).transpose(1, 2)
        each = heads.split([size // self.n_heads for size in self.sizes[1:]], dim=3)
        for i, dilation in enumerate(self.dilations):
            means = window_keys(local[i], dilation, self.n_heads)
            keys, values = self.single_heads[i](self.fcs[i](means)).chunk(2, dim=-1)
            flat = values.transpose(2, 3).flatten(1, 2).unflatten(2, (WINDOW, WINDOW))
            near = self.local_convs[i](flat).flatten(2).unflatten(1, (self.n_heads, -1))
            values = values + near.transpose(2, 3)
            y = F.scaled_dot_product_attention(each[i], keys, values)
            found.append(y.transpose(1, 2).flatten(2))
        return self.proj(torch.cat(found, -1)).view(x.shape)


class FactorizedBlock(nn.Module):
    """Mixer and MLP, each beside a shortcut; (B, H, W, C).

    Args:
        channels: C.
        n_heads: see ``FactorizedAttention``.
        stride: likewise.
        mlp_ratio: hidden width of the MLP as a multiple of C.
        drop_path: rate of stochastic depth.
    """

    def __init__(
        self, channels: int, n_heads: int, stride: int, mlp_ratio: float, drop_path: float
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(channels, eps=1e-6) for _ in range(2))
        self.attn = FactorizedAttention(channels, n_heads, stride)
        self.mlp = DepthwiseMLP(channels, int(mlp_ratio * channels))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, H, W, C)."""
        x = with_branch(x, (self.norm1, self.attn), self.drop_path)
        return with_branch(x, (self.norm2, self.mlp), self.drop_path)


class OverlapEmbed(nn.Module):
    """Overlapping patches and a norm: (B, C, H, W) to (B, H/s, W/s, D).

    Args:
        ins: channels C.
        outs: channels D.
        size: side of a patch, odd.
        stride: s.
    """

    def __init__(self, ins: int, outs: int, size: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(ins, outs, size, stride, padding=size // 2)
        self.norm = nn.LayerNorm(outs)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W)."""
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


class FaViT(Pyramid):
    """FaViT at any resolution of at least 32 pixels; published checkpoints load by name.

    Args:
        num_classes: classes of the head; 0 for none.
        in_chans: channels of the images.
        dims: width of every stage.
        depths: blocks of every stage.
        n_heads: of every stage.
        mlp_ratios: hidden width of the MLPs as a multiple of the stage's.
        strides: of the attention to the whole map, for every stage.
        drop_path: highest rate of stochastic depth.
    """

    stem_key = "patch_embed1.proj.weight"

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        dims: Sequence[int] = (32, 64, 128, 256),
        depths: Sequence[int] = (2, 2, 6, 2),
        n_heads: Sequence[int] = (1, 2, 4, 8),
        mlp_ratios: Sequence[float] = (8, 6, 4, 4),
        strides: Sequence[int] = (8, 4, 2, 1),
        drop_path: float = 0.1,
    ) -> None:
        super().__init__()
        check_stages(dims, depths, n_heads=n_heads, mlp_ratios=mlp_ratios, strides=strides)
        self.in_chans = check_positive("in_chans", in_chans)
        self.num_features, self.channels = dims[-1], list(dims)
        self.reductions = [4 * 2**i for i in range(len(dims))]
        self.min_size = max(a * b for a, b in zip(self.reductions, strides))
        rates = iter(path_rates(drop_path, sum(depths)))
        for i, width in enumerate(dims):
            embed = OverlapEmbed(
                dims[i - 1] if i else in_chans, width, 3 if i else 7, 2 if i else 4
            )
            blocks = (
                FactorizedBlock(width, n_heads[i], strides[i], mlp_ratios[i], next(rates))
                for _ in range(depths[i])
            )
            self.add_module(f"patch_embed{i + 1}", embed)
            self.add_module(f"block{i + 1}", nn.Sequential(*blocks))
            self.add_module(f"norm{i + 1}", nn.LayerNorm(width, eps=1e-6))
        self.head = head(dims[-1], num_classes)
        self.apply(initialise)

    def stage_maps(self, x: Tensor) -> list[Tensor]:
        """Returns the normalised map of every stage, (B, C_i, H_i, W_i)."""
        self.check_images(x)
        maps: list[Tensor] = []
        for i in range(len(self.channels)):
            y = getattr(self, f"patch_embed{i + 1}")(maps[-1] if maps else x)
            y = getattr(self, f"norm{i + 1}")(getattr(self, f"block{i + 1}")(y))
            maps.append(y.permute(0, 3, 1, 2))
        return maps


def _preset(size: str, **kwargs: object) -> ImagePreset:
    return ImagePreset(FaViT, kwargs, f"FaViT-{size}, published layout", IMAGENET)


_WIDE = (64, 128, 256, 512)
PRESETS = {
    "favit_b0": _preset("B0"),
    "favit_b1": _preset("B1", dims=_WIDE),
    "favit_b2": _preset("B2", dims=_WIDE, depths=(2, 3, 18, 3)),
    "favit_b3": _preset("B3", dims=(96, 192, 384, 768), depths=(2, 3, 14, 3)),
}
