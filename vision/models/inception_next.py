r"""InceptionNeXt (Yu et al. 2024, arXiv 2303.16900): depthwise convolutions in parallel branches.

Block:  x ← x + γ ⊙ MLP(bn(mix(x)))
Mixer:  mix(x) = concat(x₀, k×k conv(x₁), 1×b conv(x₂), b×1 conv(x₃))

where x₁ … x₃ are each a small share of the channels and x₀, the rest, passes as it is: a large
depthwise kernel costs memory traffic on every channel, two bands on a few cost almost none.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longseq.core.checks import check_positive
from longseq.core.errors import ConfigError
from longseq.core.ops.linear_maps import mapped
from longseq.vision.models.layers import DropPath, add_branch, head, path_rates
from longseq.vision.models.pyramid import IMAGENET, ImagePreset, Pyramid, check_stages


class InceptionConv2d(nn.Module):
    """Depthwise convolutions of a square and two bands, each over a share of the channels.

    Args:
        channels: C of (B, C, H, W).
        square: side of the square kernel, odd.
        band: length of the bands, odd.
        share: of the channels that every branch has.
    """

    def __init__(
        self, channels: int, square: int = 3, band: int = 11, share: float = 0.125
    ) -> None:
        super().__init__()
        if square % 2 == 0 or band % 2 == 0:
            raise ConfigError(f"square and band must be odd, got {square} and {band}")
        part = check_positive("share · channels", int(channels * share))
        self.parts = [check_positive("1 - 3 · share", channels - 3 * part), part, part, part]
        self.dwconv_hw = nn.Conv2d(part, part, square, padding=square // 2, groups=part)
        self.dwconv_w = nn.Conv2d(part, part, (1, band), padding=(0, band // 2), groups=part)
        self.dwconv_h = nn.Conv2d(part, part, (band, 1), padding=(band // 2, 0), groups=part)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W)."""
        same, square, across, down = x.split(self.parts, dim=1)
        return torch.cat(
            [same, self.dwconv_hw(square), self.dwconv_w(across), self.dwconv_h(down)], 1
        )


class ConvMLP(nn.Module):
    """An MLP at every position of a map, (B, C, H, W) to the same shape.

    Args:
        channels: C.
        hidden: width between the two maps.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.fc2 = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W)."""
        return mapped(self.fc2, F.gelu(mapped(self.fc1, x)))


class InceptionBlock(nn.Module):
    """x + γ · MLP(bn(mix(x))); (B, C, H, W).

    Args:
        channels: C.
        mlp_ratio: hidden width of the MLP as a multiple of C.
        layer_scale: what γ begins with.
        drop_path: rate of stochastic depth.
        mixer: the depthwise branches.
    """

    def __init__(
        self,
        channels: int,
        mlp_ratio: float,
        layer_scale: float,
        drop_path: float,
        mixer: InceptionConv2d,
    ) -> None:
        super().__init__()
        self.token_mixer = mixer
        self.norm = nn.BatchNorm2d(channels)
        self.mlp = ConvMLP(channels, int(mlp_ratio * channels))
        self.gamma = nn.Parameter(torch.full((channels,), layer_scale))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W)."""
        inner = self.mlp(self.norm(self.token_mixer(x)))
        return add_branch(x, inner * self.gamma.view(1, -1, 1, 1), self.drop_path)


class InceptionStage(nn.Module):
    """The blocks of one resolution, after a norm and a convolution of stride 2.

    Args:
        blocks: of the stage.
        ins: channels before; None in the first stage, which keeps the resolution.
        outs: channels of the stage.
    """

    def __init__(self, blocks: Sequence[InceptionBlock], ins: int | None, outs: int) -> None:
        super().__init__()
        self.downsample: nn.Module = nn.Identity()
        if ins is not None:
            self.downsample = nn.Sequential(nn.BatchNorm2d(ins), nn.Conv2d(ins, outs, 2, stride=2))
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W)."""
        return self.blocks(self.downsample(x))


class MLPHead(nn.Module):
    """linear → GELU → norm → linear, of pooled features (B, D).

    Args:
        width: D.
        num_classes: classes.
        ratio: hidden width as a multiple of D.
    """

    def __init__(self, width: int, num_classes: int, ratio: int = 3) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, ratio * width)
        self.norm = nn.LayerNorm(ratio * width, eps=1e-6)
        self.fc2 = head(ratio * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, D)."""
        return mapped(self.fc2, self.norm(F.gelu(mapped(self.fc1, x))))


class InceptionNeXt(Pyramid):
    """InceptionNeXt at any resolution of at least 32 pixels; published checkpoints load by name.

    Args:
        num_classes: classes of the head; 0 for none.
        in_chans: channels of the images.
        dims: width of every stage.
        depths: blocks of every stage.
        mlp_ratios: hidden width of the MLPs as a multiple of the stage's.
        band: length of the bands.
        share: of the channels that every branch has.
        layer_scale: what the residual branches' scales begin with.
        drop_path: highest rate of stochastic depth.
    """

    stem_key = "stem.0.weight"
    head_key = "head.fc2"
    head_norms = ("head.fc1", "head.norm")

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        dims: Sequence[int] = (96, 192, 384, 768),
        depths: Sequence[int] = (3, 3, 9, 3),
        mlp_ratios: Sequence[float] = (4, 4, 4, 3),
        band: int = 11,
        share: float = 0.125,
        layer_scale: float = 1e-6,
        drop_path: float = 0.1,
    ) -> None:
        super().__init__()
        check_stages(dims, depths, mlp_ratios=mlp_ratios)
        self.in_chans = check_positive("in_chans", in_chans)
        self.num_features, self.channels = dims[-1], list(dims)
        self.reductions = [4 * 2**i for i in range(len(dims))]
        self.min_size = self.reductions[-1]
        self.stem = nn.Sequential(nn.Conv2d(in_chans, dims[0], 4, 4), nn.BatchNorm2d(dims[0]))
        rates, stages, before = iter(path_rates(drop_path, sum(depths))), [], None
        for width, depth, ratio in zip(dims, depths, mlp_ratios):
            blocks = [
                InceptionBlock(
                    width,
                    ratio,
                    layer_scale,
                    next(rates),
                    InceptionConv2d(width, band=band, share=share),
                )
                for _ in range(depth)
            ]
            stages.append(InceptionStage(blocks, before, width))
            before = width
        self.stages = nn.Sequential(*stages)
        self.head = MLPHead(dims[-1], num_classes) if num_classes else nn.Identity()
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)) and not module.weight.is_meta:
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        self.to(memory_format=torch.channels_last)

    def stage_maps(self, x: Tensor) -> list[Tensor]:
        """Returns the map of every stage, (B, C_i, H_i, W_i)."""
        self.check_images(x)
        x, maps = self.stem(x.contiguous(memory_format=torch.channels_last)), []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


_BASE = {"dims": (128, 256, 512, 1024), "depths": (3, 3, 27, 3), "drop_path": 0.4}
PRESETS = {
    "inceptionnext_atto": ImagePreset(
        InceptionNeXt,
        {"dims": (40, 80, 160, 320), "depths": (2, 2, 6, 2), "band": 9, "share": 0.25},
        "InceptionNeXt-A: a plain CNN of depthwise bands, published layout",
        IMAGENET,
    ),
    "inceptionnext_tiny": ImagePreset(
        InceptionNeXt, {}, "InceptionNeXt-T, published layout", IMAGENET
    ),
    "inceptionnext_small": ImagePreset(
        InceptionNeXt,
        {"depths": (3, 3, 27, 3), "drop_path": 0.3},
        "InceptionNeXt-S, published layout",
        IMAGENET,
    ),
    "inceptionnext_base": ImagePreset(
        InceptionNeXt, _BASE, "InceptionNeXt-B, published layout", IMAGENET
    ),
    "inceptionnext_base_384": ImagePreset(
        InceptionNeXt,
        _BASE,
        "InceptionNeXt-B at 384 px, published layout",
        {**IMAGENET, "img_size": 384, "crop_ratio": 1.0},
    ),
}
