r"""MambaVision (Hatamizadeh and Kautz 2025, arXiv 2407.08083): convolutions first, then scans, then
attention.

The first two stages are residual convolutions. In the other two, square windows of the map are
sequences, and of every stage's blocks the first half mixes by

x, z = split(W_in u);   y = W_out concat(scan(silu(conv(x))), silu(conv(z)))

with symmetric convolutions, and the second half by self-attention.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longseq.core.checks import check_positive
from longseq.core.errors import ConfigError
from longseq.core.ops.linear_maps import mapped
from longseq.core.ops.selective_scan import selective_scan
from longseq.vision.models.layers import DropPath, add_branch, head, path_rates
from longseq.vision.models.pyramid import (
    IMAGENET,
    ExactMLP,
    ImagePreset,
    Pyramid,
    by_windows,
    check_stages,
    initialise,
)


class MambaVisionMixer(nn.Module):
    """The scan beside a branch of convolution alone: (B, L, D) to (B, L, D).

    The bias of ``dt_proj`` is added twice, as in the published code, whose weights were trained so.

    Args:
        d_model: width D, even.
        d_state: states per channel N.
        d_conv: taps of the convolutions, odd.
    """

    ssm_parameters: ClassVar[tuple[str, ...]] = ("A_log", "D", "dt_proj.bias")

    def __init__(self, d_model: int, d_state: int = 8, d_conv: int = 3) -> None:
        super().__init__()
        if d_model % 2:
            raise ConfigError(f"the width of a MambaVision mixer must be even, got {d_model}")
        half = check_positive("d_model", d_model) // 2
        self.half, self.d_state = half, check_positive("d_state", d_state)
        self.dt_rank = math.ceil(d_model / 16)
        self.in_proj = nn.Linear(d_model, d_model, bias=False)
        self.x_proj = nn.Linear(half, self.dt_rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, half)
        self.A_log = nn.Parameter(torch.arange(1, d_state + 1).float().log().repeat(half, 1))
        self.D = nn.Parameter(torch.ones(half))
        self.out_proj = nn.Linear(d_model, d_model, bias=False)
        self.conv1d_x, self.conv1d_z = (
            nn.Conv1d(half, half, d_conv, padding="same", groups=half, bias=False) for _ in range(2)
        )

    def forward(self, u: Tensor) -> Tensor:
        """u: (B, L, D)."""
        x, z = mapped(self.in_proj, u).transpose(1, 2).split(self.half, dim=1)
        x = F.silu(self.conv1d_x(x)).transpose(1, 2)
        z = F.silu(self.conv1d_z(z)).transpose(1, 2)
        dt, B, C = self.x_proj(x).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        logs = self.A_log
        decay = -torch.exp(logs if logs.dtype == torch.float64 else logs.float())
        y, _ = selective_scan(
            x,
            self.dt_proj(dt),
            decay,
            B,
            C,
            self.D,
            None,
            self.dt_proj.bias,
            delta_softplus=True,
        )
        return mapped(self.out_proj, torch.cat([y, z], -1))


class WindowAttention(nn.Module):
    """Self-attention of all positions of a window: (B, L, D) to (B, L, D).

    Args:
        d_model: width D.
        n_heads: heads, which divide D.
    """

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        if d_model % check_positive("n_heads", n_heads):
            raise ConfigError(f"{n_heads} heads do not divide a width of {d_model}")
        self.n_heads = n_heads
        self.qkv = nn.Linear(d_model, 3 * d_model)
        self.proj = nn.Linear(d_model, d_model)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, L, D)."""
        q, k, v = mapped(self.qkv, x).unflatten(2, (3, self.n_heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class MixerBlock(nn.Module):
    """x + γ₁ · mix(norm(x)), then x + γ₂ · MLP(norm(x)); (B, L, D).

    Args:
        d_model: width D.
        mixer: a scan or attention.
        mlp_ratio: hidden width of the MLP as a multiple of D.
        layer_scale: what γ₁ and γ₂ begin with; None for 1, not learned.
        drop_path: rate of stochastic depth.
    """

    def __init__(
        self,
        d_model: int,
        mixer: nn.Module,
        mlp_ratio: float,
        layer_scale: float | None,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.mixer = mixer
        self.mlp = ExactMLP(d_model, int(mlp_ratio * d_model))
        self.gamma_1: Tensor | None
        self.gamma_2: Tensor | None
        for name in ("gamma_1", "gamma_2"):
            scale = None if layer_scale is None else torch.full((d_model,), layer_scale)
            self.register_parameter(name, None if scale is None else nn.Parameter(scale))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, L, D)."""
        mixed = self.mixer(self.norm1(x))
        x = add_branch(x, mixed if self.gamma_1 is None else self.gamma_1 * mixed, self.drop_path)
        mixed = self.mlp(self.norm2(x))
        return add_branch(
            x, mixed if self.gamma_2 is None else self.gamma_2 * mixed, self.drop_path
        )


class ConvBlock(nn.Module):
    """Two convolutions beside a shortcut; (B, C, H, W).

    Args:
        channels: C.
        drop_path: rate of stochastic depth.
    """

    fusable = (("conv1", "norm1"), ("conv2", "norm2"))

    def __init__(self, channels: int, drop_path: float) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.norm1, self.norm2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W)."""
        inner = F.gelu(self.norm1(self.conv1(x)), approximate="tanh")
        return add_branch(x, self.norm2(self.conv2(inner)), self.drop_path)


class Downsample(nn.Module):
    """Half the resolution at twice the width.

    Args:
        channels: before.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduction = nn.Sequential(
            nn.Conv2d(channels, 2 * channels, 3, 2, padding=1, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W)."""
        return self.reduction(x)


class Level(nn.Module):
    """The blocks of one resolution, and the step to the next.

    Args:
        blocks: convolutions of maps, or mixers of sequences.
        window: side of the windows that are sequences; None for convolutions.
        channels: of the map.
        last: whether there is no next level.
    """

    def __init__(
        self, blocks: Sequence[nn.Module], window: int | None, channels: int, last: bool
    ) -> None:
        super().__init__()
        self.blocks, self.window = nn.Sequential(*blocks), window
        self.downsample = nn.Identity() if last else Downsample(channels)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the level's map and the next one's input, (B, C, H, W)."""
        x = self.blocks(x) if self.window is None else by_windows(x, self.window, self.blocks)
        return x, self.downsample(x)


class ConvStem(nn.Module):
    """Two convolutions of stride 2: (B, C, H, W) to (B, D, H/4, W/4).

    Args:
        in_chans: channels C.
        hidden: channels between.
        channels: D.
    """

    def __init__(self, in_chans: int, hidden: int, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for ins, outs in ((in_chans, hidden), (hidden, channels)):
            layers += [nn.Conv2d(ins, outs, 3, 2, 1, bias=False), nn.BatchNorm2d(outs, eps=1e-4)]
            layers.append(nn.ReLU())
        self.conv_down = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W)."""
        return self.conv_down(x)


class MambaVision(Pyramid):
    """MambaVision at any resolution; published checkpoints load by name.

    Args:
        num_classes: classes of the head; 0 for none.
        in_chans: channels of the images.
        dim: width of the first stage; every further one has twice the width before it.
        stem_dim: width in the stem.
        depths: blocks of every stage.
        n_heads: of attention, for every stage.
        windows: sides of the windows, for every stage; the first two, of convolutions, have none.
        mlp_ratio: hidden width of the MLPs as a multiple of the stage's.
        d_state: states per channel of the scans.
        layer_scale: what the residual branches' scales begin with; None for none.
        drop_path: highest rate of stochastic depth.
    """

    stem_key = "patch_embed.conv_down.0.weight"
    head_norms = ("norm",)

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        dim: int = 80,
        stem_dim: int = 32,
        depths: Sequence[int] = (1, 3, 8, 4),
        n_heads: Sequence[int] = (2, 4, 8, 16),
        windows: Sequence[int] = (8, 8, 14, 7),
        mlp_ratio: float = 4.0,
        d_state: int = 8,
        layer_scale: float | None = None,
        drop_path: float = 0.2,
    ) -> None:
        super().__init__()
        dims = [check_positive("dim", dim) * 2**i for i in range(len(depths))]
        check_stages(dims, depths, n_heads=n_heads, windows=windows)
        self.in_chans, self.min_size = check_positive("in_chans", in_chans), 1
        self.num_features, self.channels = dims[-1], dims
        self.reductions = [4 * 2**i for i in range(len(dims))]
        self.patch_embed = ConvStem(in_chans, stem_dim, dim)
        rates, levels = iter(path_rates(drop_path, sum(depths))), []
        for stage, (width, depth) in enumerate(zip(dims, depths)):
            blocks: list[nn.Module] = []
            for i in range(depth):
                if stage < 2:
                    blocks.append(ConvBlock(width, next(rates)))
                    continue
                first = i < (depth + 1) // 2
                mixer = (
                    MambaVisionMixer(width, d_state)
                    if first
                    else WindowAttention(width, n_heads[stage])
                )
                blocks.append(MixerBlock(width, mixer, mlp_ratio, layer_scale, next(rates)))
            window = None if stage < 2 else check_positive("windows", windows[stage])
            levels.append(Level(blocks, window, width, stage == len(dims) - 1))
        self.levels = nn.ModuleList(levels)
        self.norm = nn.BatchNorm2d(dims[-1])
        self.head = head(dims[-1], num_classes)
        self.apply(initialise)

    def stage_maps(self, x: Tensor) -> list[Tensor]:
        """Returns the map of every stage before its downsampling, (B, C_i, H_i, W_i)."""
        self.check_images(x)
        x, maps = self.patch_embed(x), []
        for level in self.levels:
            here, x = level(x)
            maps.append(here)
        return maps

    def normalise(self, x: Tensor) -> Tensor:
        """Returns the map after batch norm."""
        return self.norm(x)


def _preset(size: str, cfg: dict[str, object], **kwargs: object) -> ImagePreset:
    return ImagePreset(
        MambaVision, kwargs, f"MambaVision-{size}, published layout", {**IMAGENET, **cfg}
    )


_LARGE = {"n_heads": (4, 8, 16, 32), "stem_dim": 64, "layer_scale": 1e-5, "drop_path": 0.3}
_WHOLE, _WIDE = {"crop_ratio": 1.0}, {"crop_ratio": 0.93, "img_size": 512}
PRESETS = {
    "mambavision_tiny": _preset("T", _WHOLE),
    "mambavision_tiny2": _preset("T2", {"crop_ratio": 0.98}, depths=(1, 3, 11, 4)),
    "mambavision_small": _preset(
        "S", {"crop_ratio": 0.93}, dim=96, stem_dim=64, depths=(3, 3, 7, 5)
    ),
    "mambavision_base": _preset(
        "B",
        _WHOLE,
        dim=128,
        stem_dim=64,
        depths=(3, 3, 10, 5),
        layer_scale=1e-5,
        drop_path=0.3,
    ),
    "mambavision_large": _preset("L", _WHOLE, dim=196, depths=(3, 3, 10, 5), **_LARGE),
    "mambavision_large2": _preset("L2", _WHOLE, dim=196, depths=(3, 3, 12, 5), **_LARGE),
    "mambavision_large2_512": _preset(
        "L2 at 512 px", _WIDE, dim=196, depths=(3, 3, 12, 5), windows=(8, 8, 32, 16), **_LARGE
    ),
    "mambavision_large3_256": _preset(
        "L3 at 256 px",
        {"crop_ratio": 1.0, "img_size": 256},
        dim=256,
        depths=(3, 3, 20, 10),
        windows=(8, 8, 16, 8),
        **{**_LARGE, "drop_path": 0.5},
    ),
    "mambavision_large3_512": _preset(
        "L3 at 512 px",
        _WIDE,
        dim=256,
        depths=(3, 3, 20, 10),
        windows=(8, 8, 32, 16),
        **{**_LARGE, "drop_path": 0.5},
    ),
}
