"""Residual convolutional stages (He et al. 2015, arXiv 1512.03385), some of them with a scan.

A block is  relu(shortcut(x) + f₂(relu(f₁(x))))  with f = batch norm of a convolution; in the stages
named in ``scans`` f₂ is a gated linear recurrence over the map instead. There maps are small and a
scan costs less than a convolution of the same width, so the stage can be wider; before it, where
edges and textures are found, convolutions are the better use of time. Between f₁ and f₂ polarized
self-attention may weigh the map.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from longseq.core.checks import check_positive
from longseq.core.errors import ConfigError
from longseq.vision.models.layers import DropPath, head, path_rates
from longseq.vision.models.polarized import Form, PolarizedAttention
from longseq.vision.models.pyramid import Pyramid, check_stages
from longseq.vision.models.recurrence2d import GatedRecurrence2d


def _conv(ins: int, outs: int, size: int, stride: int = 1) -> nn.Sequential:
    """A convolution and its batch norm."""
    return nn.Sequential(
        nn.Conv2d(ins, outs, size, stride, size // 2, bias=False), nn.BatchNorm2d(outs)
    )


def _shortcut(ins: int, outs: int, stride: int, averaged: bool) -> nn.Module:
    """What leads past a block's layers."""
    if ins == outs and stride == 1:
        return nn.Identity()
    if not averaged or stride == 1:
        return _conv(ins, outs, 1, stride)
    # A map of odd sides keeps its last row and column, as beside the strided convolution.
    mean = nn.AvgPool2d(stride, ceil_mode=True, count_include_pad=False)
    return nn.Sequential(mean, *_conv(ins, outs, 1))


class ResidualBlock(nn.Module):
    """Two layers beside a shortcut; (B, C, H, W) to (B, C', H/s, W/s).

    Args:
        ins: channels C.
        outs: channels C'.
        stride: s.
        drop_path: rate of stochastic depth.
        orders: of the recurrence in the place of the second convolution; None for a convolution.
        polarized: form of polarized self-attention before it; None for none.
        averaged: whether the shortcut takes means of s x s positions (ResNet-D: He et al. 2018,
            arXiv 1812.01187) in place of every s-th.
    """

    def __init__(
        self,
        ins: int,
        outs: int,
        stride: int,
        drop_path: float = 0.0,
        orders: Sequence[str] | None = None,
        polarized: Form | None = None,
        averaged: bool = False,
    ) -> None:
        super().__init__()
        self.first = _conv(ins, outs, 3, stride)
        self.attend = nn.Identity() if polarized is None else PolarizedAttention(outs, polarized)
        self.second = (
            _conv(outs, outs, 3)
            if orders is None
            else nn.Sequential(GatedRecurrence2d(outs, orders), nn.BatchNorm2d(outs))
        )
        self.shortcut = _shortcut(ins, outs, stride, averaged)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W)."""
        inner = self.second(self.attend(torch.relu(self.first(x))))
        return torch.relu(self.shortcut(x) + self.drop_path(inner))


class ResNet(Pyramid):
    """A residual network of basic blocks, whose later stages may scan; at any resolution.

    Args:
        num_classes: classes of the head; 0 for none.
        in_chans: channels of the images.
        dims: width of every stage.
        depths: blocks of every stage.
        stem_stride: pixels that a position of the first stage spans: 1, 2 or 4.
        scans: stages whose blocks have a recurrence in the place of their second convolution.
        orders: scan orders of the recurrences.
        drop_path: highest rate of stochastic depth.
        polarized: "parallel" or "sequential" for polarized self-attention in every block.
        averaged: whether the shortcuts of strided blocks take means of positions.
    """

    stem_key = "stem.0.0.weight"

    def __init__(
        self,
        num_classes: int = 10,
        in_chans: int = 3,
        dims: Sequence[int] = (44, 88, 176),
        depths: Sequence[int] = (1, 1, 1),
        stem_stride: int = 2,
        scans: Sequence[int] = (),
        orders: Sequence[str] = ("raster", "raster_reversed"),
        drop_path: float = 0.0,
        polarized: Form | None = None,
        averaged: bool = False,
    ) -> None:
        super().__init__()
        if stem_stride not in (1, 2, 4):
            raise ConfigError(f"stem_stride must be 1, 2 or 4, got {stem_stride}")
        check_stages(dims, depths)
        if any(not 0 <= stage < len(dims) for stage in scans):
            raise ConfigError(f"scans must name stages from 0 to {len(dims) - 1}, got {scans}")
        self.in_chans, self.min_size = check_positive("in_chans", in_chans), 1
        self.num_features, self.channels = dims[-1], list(dims)
        self.reductions = [stem_stride * 2**i for i in range(len(dims))]
        self.stem = nn.Sequential(_conv(in_chans, dims[0], 3, min(stem_stride, 2)), nn.ReLU())
        if stem_stride == 4:
            self.stem.append(nn.MaxPool2d(3, 2, 1))
        rates = iter(path_rates(drop_path, sum(depths)))
        stages, ins = [], dims[0]
        for stage, (width, depth) in enumerate(zip(dims, depths)):
            blocks = []
            for i in range(check_positive("depths", depth)):
                stride = 2 if stage and i == 0 else 1
                own = orders if stage in scans else None
                block = ResidualBlock(ins, width, stride, next(rates), own, polarized, averaged)
                blocks.append(block)
                ins = width
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(stages)
        self.head = head(dims[-1], num_classes)
        self.to(memory_format=torch.channels_last)  # what convolutions on a CPU are fastest with

    def stage_maps(self, x: Tensor) -> list[Tensor]:
        """Returns the map of every stage."""
        self.check_images(x)
        x, maps = self.stem(x.contiguous(memory_format=torch.channels_last)), []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps
