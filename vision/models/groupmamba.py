r"""GroupMamba (Shaker et al. 2025, arXiv 2407.13772): a quarter of the channels for each direction.

Block:  x ← x + W norm(s ⊙ concat_k(scan_k(u_k)) ⊙ u),  u = norm(x)
        x ← x + MLP(norm(x)), with a depthwise convolution inside

where scan_k, over the k-th quarter of the channels, runs in one of four directions, and s weighs
channels by the mean of u. The head takes the mean of the last map through one more such block.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longseq.core.checks import check_positive
from longseq.core.errors import ConfigError
from longseq.vision.models.layers import DropPath, depthwise, head, path_rates, with_branch
from longseq.vision.models.pyramid import (
    IMAGENET,
    ExactMLP,
    ImagePreset,
    Pyramid,
    check_stages,
    initialise,
)
from longseq.vision.models.scan2d import CROSS_SCAN
from longseq.vision.models.vmamba import SS2D


class GroupedScan(nn.Module):
    """The mixer: (B, H, W, C) to the same shape.

    Args:
        channels: C, a multiple of 4.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        if channels % 4:
            raise ConfigError(f"the widths of GroupMamba must be multiples of 4, got {channels}")
        inner = check_positive("channels // 16", channels // 16)
        self.fc1, self.fc2 = nn.Linear(channels, inner), nn.Linear(inner, channels)
        self.norm = nn.LayerNorm(channels)
        self.mamba_g1, self.mamba_g2, self.mamba_g3, self.mamba_g4 = (
            SS2D(channels // 4, conv_bias=True, orders=(order,), gate=True) for order in CROSS_SCAN
        )
        self.proj = nn.Linear(channels, channels)
        self.skip_scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, H, W, C)."""
        x = self.norm(x)
        weights = self.fc2(torch.relu(self.fc1(x.mean((1, 2), keepdim=True)))).sigmoid()
        scans = (self.mamba_g1, self.mamba_g2, self.mamba_g3, self.mamba_g4)
        y = torch.cat([scan(part) for scan, part in zip(scans, x.chunk(4, dim=-1))], -1)
        return self.proj(self.norm(y * self.skip_scale * x * weights))


class Depthwise(nn.Module):
    """A 3×3 depthwise convolution of (B, H, W, C).

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, H, W, C)."""
        return depthwise(self.dwconv, x)


class DepthwiseMLP(ExactMLP):
    """An MLP with a depthwise convolution before its GELU; (B, H, W, C).

    Args:
        channels: C.
        hidden: width between.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__(channels, hidden)
        self.dwconv = Depthwise(hidden)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, H, W, C)."""
        return self.fc2(F.gelu(self.dwconv(self.fc1(x))))


class GroupBlock(nn.Module):
    """Mixer and MLP, each beside a shortcut; (B, H, W, C).

    Args:
        channels: C.
        mlp_ratio: hidden width of the MLP as a multiple of C.
        drop_path: rate of stochastic depth.
    """

    def __init__(self, channels: int, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        self.norm2 = nn.LayerNorm(channels, eps=1e-6)
        self.attn = GroupedScan(channels)
        self.mlp = DepthwiseMLP(channels, int(mlp_ratio * channels))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, H, W, C)."""
        x = with_branch(x, (self.attn,), self.drop_path)
        return with_branch(x, (self.norm2, self.mlp), self.drop_path)


class PooledBlock(nn.Module):
    """The block of the pooled vector, (B, 1, 1, C).

    Args:
        channels: C.
        mlp_ratio: hidden width of the MLP as a multiple of C.
    """

    def __init__(self, channels: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(channels, eps=1e-6) for _ in range(2))
        self.attn = GroupedScan(channels)
        self.mlp = ExactMLP(channels, int(mlp_ratio * channels))

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, 1, 1, C)."""
        x = x + self.norm1(self.attn(x))
        return x + self.mlp(self.norm2(x))


class Embed(nn.Module):
    """A convolution of stride 2 and a norm: (B, C, H, W) to (B, H/2, W/2, D).

    Args:
        ins: channels C.
        outs: channels D.
    """

    def __init__(self, ins: int, outs: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(ins, outs, 3, 2, padding=1)
        self.norm = nn.LayerNorm(outs)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W)."""
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


class GroupStem(Embed):
    """Three convolutions, the first of stride 2, then ``Embed``: to (B, H/4, W/4, D).

    Args:
        ins: channels C.
        hidden: channels between.
        outs: channels D.
    """

    def __init__(self, ins: int, hidden: int, outs: int) -> None:
        super().__init__(hidden, outs)
        layers: list[nn.Module] = []
        for before, size, stride in ((ins, 7, 2), (hidden, 3, 1), (hidden, 3, 1)):
            layers.append(nn.Conv2d(before, hidden, size, stride, size // 2, bias=False))
            layers += [nn.BatchNorm2d(hidden), nn.ReLU()]
        self.conv = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W)."""
        return super().forward(self.conv(x))


class GroupMamba(Pyramid):
    """GroupMamba at any resolution; published checkpoints load by name.

    Args:
        num_classes: classes of the head; 0 for none.
        in_chans: channels of the images.
        dims: width of every stage, multiples of 4.
        depths: blocks of every stage.
        mlp_ratios: hidden width of the MLPs as a multiple of the stage's.
        stem_dim: width in the stem.
        two_heads: whether there is a second head, which the published weights learned from a
            teacher; the logits are the mean of both.
        drop_path: highest rate of stochastic depth.
    """

    stem_key = "patch_embed1.conv.0.weight"
    more_heads = ("dist_head",)

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        dims: Sequence[int] = (64, 128, 348, 448),
        depths: Sequence[int] = (3, 4, 9, 3),
        mlp_ratios: Sequence[float] = (8, 8, 4, 4),
        stem_dim: int = 32,
        two_heads: bool = True,
        drop_path: float = 0.05,
    ) -> None:
        super().__init__()
        check_stages(dims, depths, mlp_ratios=mlp_ratios)
        self.in_chans, self.min_size = check_positive("in_chans", in_chans), 1
        self.num_features, self.channels = dims[-1], list(dims)
        self.reductions = [4 * 2**i for i in range(len(dims))]
        rates = iter(path_rates(drop_path, sum(depths)))
        for i, (width, depth, ratio) in enumerate(zip(dims, depths, mlp_ratios)):
            embed = Embed(dims[i - 1], width) if i else GroupStem(in_chans, stem_dim, width)
            blocks = (GroupBlock(width, ratio, next(rates)) for _ in range(depth))
            self.add_module(f"patch_embed{i + 1}", embed)
            self.add_module(f"block{i + 1}", nn.Sequential(*blocks))
            self.add_module(f"norm{i + 1}", nn.LayerNorm(width, eps=1e-6))
        self.post_network = nn.Sequential(PooledBlock(dims[-1], mlp_ratios[-1]))
        self.head = head(dims[-1], num_classes)
        self.dist_head = head(dims[-1], num_classes) if two_heads and num_classes else None
        self.apply(initialise)

    def stage_maps(self, x: Tensor) -> list[Tensor]:
        """Returns the map of every stage, (B, C_i, H_i, W_i), normalised but for the last."""
        self.check_images(x)
        maps: list[Tensor] = []
        for i in range(len(self.channels)):
            y = getattr(self, f"patch_embed{i + 1}")(maps[-1] if maps else x)
            y = getattr(self, f"block{i + 1}")(y)
            if i + 1 < len(self.channels):
                y = getattr(self, f"norm{i + 1}")(y)
            maps.append(y.permute(0, 3, 1, 2))
        return maps

    def pool(self, features: Tensor) -> Tensor:
        """Returns the mean over the map after the last block and norm, (B, D)."""
        pooled = self.post_network(features.mean((2, 3))[:, None, None])
        return getattr(self, f"norm{len(self.channels)}")(pooled)[:, 0, 0]

    def classify(self, pooled: Tensor) -> Tensor:
        """Returns the mean of the heads' logits, (B, classes)."""
        logits = self.head(pooled)
        return logits if self.dist_head is None else (logits + self.dist_head(pooled)) / 2


def _preset(size: str, **kwargs: object) -> ImagePreset:
    return ImagePreset(GroupMamba, kwargs, f"GroupMamba-{size}, published layout", IMAGENET)


PRESETS = {
    "groupmamba_tiny": _preset("T"),
    "groupmamba_small": _preset("S", dims=(64, 128, 348, 512), depths=(3, 4, 16, 3), stem_dim=64),
    "groupmamba_base": _preset("B", dims=(96, 192, 424, 512), depths=(3, 6, 21, 3), stem_dim=64),
}
