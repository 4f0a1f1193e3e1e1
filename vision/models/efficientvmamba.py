r"""EfficientVMamba (Pei, Huang and Xu 2024, arXiv 2403.09977): atrous scans beside convolutions.

The first two stages:  x ← x + g ⊙ scan(u) + g' ⊙ conv(u),  u = norm(x)

where the scan reads every second row and column (four grids of a quarter of the positions, one for
each direction, so no position is read twice), and g, g' weigh the channels of a branch by its mean.
The other two stages are inverted residual convolutions: where maps are small, they cost less.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longseq.core.checks import check_positive
from longseq.core.errors import ConfigError
from longseq.vision.models.layers import DropPath, add_branch, path_rates
from longseq.vision.models.pyramid import (
    IMAGENET,
    ExactMLP,
    ImagePreset,
    PatchMerging,
    Pyramid,
    check_stages,
    initialise,
)
from longseq.vision.models.vmamba import SS2D, Classifier

_GRIDS = ((0, 0, False), (1, 0, True), (0, 1, False), (1, 1, True))
"""First row and first column of each lane's grid, and whether it is read column by column."""


class AtrousScan(SS2D):
    """The 2-D selective scan of four grids, each of every second row and column: (B, H, W, D).

    Maps of odd sides are padded with zeros, which are scanned too, as in the published code.

    Args:
        d_model: width D.
        d_state: states per channel.
        ratio: inner width as a multiple of D.
    """

    def __init__(self, d_model: int, d_state: int = 16, ratio: float = 2.0) -> None:
        super().__init__(d_model, d_state, ratio, conv_bias=True, gate=True)

    def scan(self, x: Tensor) -> Tensor:
        """Returns the normalised scans over a map, (B, H, W, D') to the same shape."""
        batch, height, width, inner = x.shape
        x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
        rows, columns = x.shape[1] // 2, x.shape[2] // 2
        grid = x.reshape(batch, rows, 2, columns, 2, inner)
        lanes = []
        for row, column, turned in _GRIDS:
            lane = grid[:, :, row, :, column]
            lanes.append((lane.transpose(1, 2) if turned else lane).flatten(1, 2))
        xs = torch.stack(lanes, 2)
        y = self.scan_lanes(xs, self.project(xs))
        maps = []
        for k, (_, _, turned) in enumerate(_GRIDS):
            lane = y[:, :, k].unflatten(1, (columns, rows) if turned else (rows, columns))
            maps.append(lane.transpose(1, 2) if turned else lane)
        pairs = [torch.stack(pair, 3) for pair in ((maps[0], maps[2]), (maps[1], maps[3]))]
        whole = torch.stack(pairs, 2).reshape(batch, 2 * rows, 2 * columns, inner)
        return self.out_norm(whole[:, :height, :width])


class ChannelGate(nn.Module):
    """Weighs the channels of a map (B, H, W, C) by the mean of the normalised map.

    Args:
        channels: C, at least 8.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = check_positive("channels // 8", channels // 8)
        self.norm = nn.LayerNorm(channels)
        self.global_reduce = nn.Linear(channels, inner)
        self.channel_select = nn.Linear(inner, channels)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, H, W, C)."""
        mean = self.norm(x).mean((1, 2), keepdim=True)
        return x * self.channel_select(F.gelu(self.global_reduce(mean))).sigmoid()


class EfficientBlock(nn.Module):
    """The atrous scan and a convolution side by side, then perhaps an MLP; (B, H, W, D).

    Args:
        d_model: width D.
        d_state: states per channel of the scan.
        ratio: inner width of the scan as a multiple of D.
        mlp_ratio: hidden width of the MLP likewise; 0 for none.
        drop_path: rate of stochastic depth.
    """

    def __init__(
        self, d_model: int, d_state: int, ratio: float, mlp_ratio: float, drop_path: float
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(d_model)
        self.op = AtrousScan(d_model, d_state, ratio)
        self.conv_branch = nn.Sequential(
            nn.Conv2d(d_model, d_model, 3, padding=1, groups=d_model),
            nn.BatchNorm2d(d_model),
            nn.GELU(),
            nn.Conv2d(d_model, d_model, 1),
        )
        self.se = ChannelGate(d_model)
        self.drop_path = DropPath(drop_path)
        self.mlp: nn.Module | None = None
        if mlp_ratio > 0:
            self.norm2 = nn.LayerNorm(d_model)
            self.mlp = ExactMLP(d_model, int(mlp_ratio * d_model))

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, H, W, D)."""
        u = self.norm(x)
        near = self.conv_branch(u.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        x = add_branch(x, self.se(self.op(u)) + self.se(near), self.drop_path)
        return x if self.mlp is None else add_branch(x, self.mlp(self.norm2(x)), self.drop_path)


class Excite(nn.Module):
    """Channels weighted by the mean over the map (arXiv 1709.01507); (B, C, H, W).

    Args:
        channels: C.
        inner: width between.
    """

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.conv_reduce = nn.Conv2d(channels, inner, 1)
        self.conv_expand = nn.Conv2d(inner, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W)."""
        mean = x.mean((2, 3), keepdim=True)
        return x * self.conv_expand(torch.relu(self.conv_reduce(mean))).sigmoid()


class InvertedResidual(nn.Module):
    """MobileNetV2's block (arXiv 1801.04381), its channels weighed; (B, C, H, W).

    Args:
        channels: C.
        drop_path: rate of stochastic depth.
    """

    def __init__(self, channels: int, drop_path: float) -> None:
        super().__init__()
        wide = 4 * channels
        self.conv_pw = nn.Sequential(
            nn.Conv2d(channels, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU()
        )
        self.conv_dw = nn.Sequential(
            nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU(),
        )
        self.se = Excite(wide, max(1, wide // 8))
        self.conv_pw2 = nn.Sequential(
            nn.Conv2d(wide, channels, 1, bias=False), nn.BatchNorm2d(channels)
        )
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W)."""
        return add_branch(x, self.conv_pw2(self.se(self.conv_dw(self.conv_pw(x)))), self.drop_path)


class ScanStage(nn.Module):
    """Blocks of a resolution, and the step to the next; (B, H, W, C).

    Args:
        blocks: of this stage.
        downsample: to the next one's map.
    """

    def __init__(self, blocks: Sequence[nn.Module], downsample: nn.Module) -> None:
        super().__init__()
        self.blocks, self.downsample = nn.Sequential(*blocks), downsample

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the stage's map and the next stage's input."""
        x = self.blocks(x)
        return x, self.downsample(x)


class ConvStage(nn.Sequential):
    """Convolutional blocks of a resolution, and the step to the next; (B, H, W, C).

    Args:
        blocks: of this stage, for (B, C, H, W).
        downsample: to the next one's map.
    """

    def __init__(self, blocks: Sequence[nn.Module], downsample: nn.Module) -> None:
        # The published names count two changes of layout.
        super().__init__(nn.Identity(), *blocks, nn.Identity(), downsample)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Returns the stage's map and the next stage's input."""
        x = x.permute(0, 3, 1, 2)
        *blocks, downsample = self
        for block in blocks:
            x = block(x)
        x = x.permute(0, 2, 3, 1)
        return x, downsample(x)


class EfficientVMamba(Pyramid):
    """EfficientVMamba at any resolution; published checkpoints load by name.

    Args:
        num_classes: classes of the head; 0 for none.
        in_chans: channels of the images.
        dims: width of every stage.
        depths: blocks of every stage.
        d_state: states per channel of the scans.
        ratio: inner width of the scans as a multiple of the stage's.
        mlp_ratio: hidden width of the MLPs after the scans, likewise; 0 for none.
        scans: how many stages scan, from the first.
        drop_path: highest rate of stochastic depth.
    """

    stem_key = "patch_embed.0.weight"
    head_key = "classifier.head"
    head_norms = ("classifier.norm",)

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        dims: Sequence[int] = (48, 96, 192, 384),
        depths: Sequence[int] = (2, 2, 4, 2),
        d_state: int = 16,
        ratio: float = 2.0,
        mlp_ratio: float = 0.0,
        scans: int = 2,
        drop_path: float = 0.2,
    ) -> None:
        super().__init__()
        check_stages(dims, depths)
        if not 0 <= scans <= len(dims):
            raise ConfigError(f"scans must lie between 0 and {len(dims)} stages, got {scans}")
        self.in_chans, self.min_size = check_positive("in_chans", in_chans), 4
        self.num_features, self.channels = dims[-1], list(dims)
        self.reductions = [4 * 2**i for i in range(len(dims))]
        self.patch_embed = nn.Sequential(  # number 1 changes the layout in the published code
            nn.Conv2d(in_chans, dims[0], 4, stride=4), nn.Identity(), nn.LayerNorm(dims[0])
        )
        rates = iter(path_rates(drop_path, sum(depths)))
        self.layers = nn.ModuleList()
        for i, (width, depth) in enumerate(zip(dims, depths)):
            last = i + 1 == len(dims)
            step = nn.Identity() if last else PatchMerging(width, dims[i + 1])
            if i < scans:
                blocks: list[nn.Module] = [
                    EfficientBlock(width, d_state, ratio, mlp_ratio, next(rates))
                    for _ in range(depth)
                ]
                self.layers.append(ScanStage(blocks, step))
            else:
                blocks = [InvertedResidual(width, next(rates)) for _ in range(depth)]
                self.layers.append(ConvStage(blocks, step))
        self.classifier = Classifier(dims[-1], num_classes)
        self.apply(initialise)

    def stage_maps(self, x: Tensor) -> list[Tensor]:
        """Returns the map of every stage before its downsampling, (B, C_i, H_i, W_i)."""
        self.check_images(x)
        x = self.patch_embed[2](self.patch_embed[0](x).permute(0, 2, 3, 1))
        maps = []
        for layer in self.layers:
            here, x = layer(x)
            maps.append(here.permute(0, 3, 1, 2))
        return maps

    def normalise(self, x: Tensor) -> Tensor:
        """Returns the map (B, C, H, W) after the norm over its channels."""
        return self.classifier.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def classify(self, pooled: Tensor) -> Tensor:
        """Maps pooled features to logits (B, classes)."""
        return self.classifier.head(pooled)


def _preset(size: str, **kwargs: object) -> ImagePreset:
    return ImagePreset(
        EfficientVMamba, kwargs, f"EfficientVMamba-{size}, published layout", IMAGENET
    )


# The published configuration file of S has the widths of B (24.8 M parameters); 64 gives the 11 M
# that its table names.
PRESETS = {
    "efficientvmamba_tiny": _preset("T"),
    "efficientvmamba_small": _preset("S", dims=(64, 128, 256, 512)),
    "efficientvmamba_base": _preset("B", dims=(96, 192, 384, 768), depths=(2, 2, 9, 2)),
}
