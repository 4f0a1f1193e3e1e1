r"""DiNAT (Hassani and Shi 2022, arXiv 2209.15001): self-attention to the nearest
neighbours, some of them at a distance.

A position attends to k × k others around it, d apart (dilation), so to positions of its own residue
mod d; at the border the window is moved inwards, so that all have k² neighbours:

    y_i = Σ_{j ∈ N_k,d(i)} softmax_j(q_i·k_j / √c + b[(j - i)/d]) v_j
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longseq.core.checks import check_positive
from longseq.core.errors import ArgumentError, ConfigError
from longseq.vision.models.layers import DropPath, add_branch, head, path_rates
from longseq.vision.models.pyramid import (
    IMAGENET,
    ExactMLP,
    ImagePreset,
    Pyramid,
    check_stages,
    initialise,
)


def neighbours(length: int, kernel: int, dilation: int, device: torch.device) -> Tensor:
    """Returns the k neighbours of every position of a line, int64 (length, k), ascending.

    Args:
        length: of the line, at least kernel · dilation.
        kernel: k, odd.
        dilation: d.
        device: of the result.
    """
    where = torch.arange(length, device=device)
    first = where % dilation
    last = first + (length - 1 - first) // dilation * dilation
    start = torch.maximum(where - kernel // 2 * dilation, first)
    start = torch.minimum(start, last - (kernel - 1) * dilation)
    return start[:, None] + dilation * torch.arange(kernel, device=device)


def neighborhood_attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor, dilation: int = 1
) -> Tensor:
    """Returns the attention of every position to its neighbours, (B, heads, H, W, C).

    Args:
        q: queries (B, heads, H, W, C), scaled.
        k: keys, likewise.
        v: values, likewise.
        bias: of relative positions (heads, 2·k - 1, 2·k - 1).
        dilation: distance of neighbours.

    Raises:
        ArgumentError: if a side is shorter than k · dilation.
    """
    height, width = q.shape[2:4]
    kernel = (bias.shape[1] + 1) // 2
    if min(height, width) < kernel * dilation:
        raise ArgumentError(
            f"neighborhood_attention: a map of {height} by {width} is smaller than the "
            f"{kernel * dilation} that {kernel} neighbours {dilation} apart need"
        )
    rows, columns = (neighbours(n, kernel, dilation, q.device) for n in (height, width))

    def windows(x: Tensor) -> Tensor:
        return x[:, :, rows][:, :, :, :, columns].transpose(3, 4).flatten(4, 5)

    across = (rows - torch.arange(height, device=q.device)[:, None]) // dilation + kernel - 1
    along = (columns - torch.arange(width, device=q.device)[:, None]) // dilation + kernel - 1
    relative = bias[:, across][:, :, :, along].transpose(2, 3).flatten(3, 4)  # (heads, H, W, k²)
    scores = (windows(k) @ q.unsqueeze(-1)).squeeze(-1) + relative
    return (scores.softmax(-1).unsqueeze(-2) @ windows(v)).squeeze(-2)


class NeighborhoodAttention(nn.Module):
    """Attention to neighbours on a map, (B, H, W, D); smaller maps are padded with zeros.

    Args:
        d_model: width D.
        n_heads: heads, which divide D.
        kernel: neighbours per side, odd.
        dilation: distance of neighbours.
    """

    def __init__(self, d_model: int, n_heads: int, kernel: int, dilation: int) -> None:
        super().__init__()
        if d_model % check_positive("n_heads", n_heads):
            raise ConfigError(f"{n_heads} heads do not divide a width of {d_model}")
        if kernel % 2 == 0:
            raise ConfigError(f"kernel must be odd, got {kernel}")
        self.n_heads, self.dilation = n_heads, check_positive("dilation", dilation)
        self.window = kernel * dilation
        self.qkv, self.proj = nn.Linear(d_model, 3 * d_model), nn.Linear(d_model, d_model)
        self.rpb = nn.Parameter(torch.zeros(n_heads, 2 * kernel - 1, 2 * kernel - 1))
        nn.init.trunc_normal_(self.rpb, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, H, W, D)."""
        height, width, channels = x.shape[1:]
        below, right = max(0, self.window - height), max(0, self.window - width)
        x = F.pad(x, (0, 0, 0, right, 0, below))
        q, k, v = self.qkv(x).unflatten(3, (3, self.n_heads, -1)).permute(3, 0, 4, 1, 2, 5)
        scale = (channels // self.n_heads) ** -0.5
        y = neighborhood_attention(q * scale, k, v, self.rpb, self.dilation)
        return self.proj(y.permute(0, 2, 3, 1, 4).flatten(3)[:, :height, :width])


class NeighborBlock(nn.Module):
    """x + γ₁ · attention(norm(x)), then x + γ₂ · MLP(norm(x)); (B, H, W, D).

    Args:
        d_model: width D.
        attention: the mixer.
        mlp_ratio: hidden width of the MLP as a multiple of D.
        layer_scale: what γ₁ and γ₂ begin with; None for 1, not learned.
        drop_path: rate of stochastic depth.
    """

    def __init__(
        self,
        d_model: int,
        attention: NeighborhoodAttention,
        mlp_ratio: float,
        layer_scale: float | None,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.attn = attention
        self.mlp = ExactMLP(d_model, int(mlp_ratio * d_model))
        self.gamma1: Tensor | None
        self.gamma2: Tensor | None
        for name in ("gamma1", "gamma2"):
            scale = None if layer_scale is None else torch.full((d_model,), layer_scale)
            self.register_parameter(name, None if scale is None else nn.Parameter(scale))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, H, W, D)."""
        mixed = self.attn(self.norm1(x))
        x = add_branch(x, mixed if self.gamma1 is None else self.gamma1 * mixed, self.drop_path)
        mixed = self.mlp(self.norm2(x))
        return add_branch(x, mixed if self.gamma2 is None else self.gamma2 * mixed, self.drop_path)


class Tokenizer(nn.Module):
    """Two convolutions of stride 2 and a norm: (B, C, H, W) to (B, H/4, W/4, D).

    Args:
        in_chans: channels C.
        d_model: width D.
    """

    def __init__(self, in_chans: int, d_model: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(
            nn.Conv2d(in_chans, d_model // 2, 3, 2, padding=1),
            nn.Conv2d(d_model // 2, d_model, 3, 2, padding=1),
        )
        self.norm = nn.LayerNorm(d_model)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W)."""
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


class Halve(nn.Module):
    """Half the resolution at twice the width, and a norm; (B, H, W, D).

    Args:
        d_model: width before.
    """

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.reduction = nn.Conv2d(d_model, 2 * d_model, 3, 2, padding=1, bias=False)
        self.norm = nn.LayerNorm(2 * d_model)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, H, W, D)."""
        return self.norm(self.reduction(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


class NeighborLevel(nn.Module):
    """The blocks of one resolution, and the step to the next; (B, H, W, D).

    Args:
        blocks: of the level.
        d_model: width D.
        last: whether there is no next level.
    """

    def __init__(self, blocks: Sequence[NeighborBlock], d_model: int, last: bool) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.downsample = nn.Identity() if last else Halve(d_model)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the level's map and the next one's input."""
        x = self.blocks(x)
        return x, self.downsample(x)


class DiNAT(Pyramid):
    """DiNAT at any resolution; published checkpoints load by name.

    Args:
        num_classes: classes of the head; 0 for none.
        in_chans: channels of the images.
        dim: width of the first stage; every further one has twice the width before it.
        depths: blocks of every stage.
        n_heads: of attention, for every stage.
        kernel: neighbours per side.
        dilations: distance of neighbours in every second block, for every stage; 1 in the others.
        mlp_ratio: hidden width of the MLPs as a multiple of the stage's.
        layer_scale: what the residual branches' scales begin with; None for none.
        drop_path: highest rate of stochastic depth.
    """

    stem_key = "patch_embed.proj.0.weight"
    head_norms = ("norm",)

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        dim: int = 64,
        depths: Sequence[int] = (3, 4, 6, 5),
        n_heads: Sequence[int] = (2, 4, 8, 16),
        kernel: int = 7,
        dilations: Sequence[int] = (8, 4, 2, 1),
        mlp_ratio: float = 3.0,
        layer_scale: float | None = None,
        drop_path: float = 0.2,
    ) -> None:
        super().__init__()
        dims = [check_positive("dim", dim) * 2**i for i in range(len(depths))]
        check_stages(dims, depths, n_heads=n_heads, dilations=dilations)
        self.in_chans, self.min_size = check_positive("in_chans", in_chans), 1
        self.num_features, self.channels = dims[-1], dims
        self.reductions = [4 * 2**i for i in range(len(dims))]
        self.patch_embed = Tokenizer(in_chans, dim)
        rates, levels = iter(path_rates(drop_path, sum(depths))), []
        for stage, (width, depth) in enumerate(zip(dims, depths)):
            blocks = []
            for i in range(depth):
                apart = dilations[stage] if i % 2 else 1
                mixer = NeighborhoodAttention(width, n_heads[stage], kernel, apart)
                blocks.append(NeighborBlock(width, mixer, mlp_ratio, layer_scale, next(rates)))
            levels.append(NeighborLevel(blocks, width, stage == len(dims) - 1))
        self.levels = nn.ModuleList(levels)
        self.norm = nn.LayerNorm(dims[-1])
        self.head = head(dims[-1], num_classes)
        self.apply(initialise)

    def stage_maps(self, x: Tensor) -> list[Tensor]:
        """Returns the map of every stage before its downsampling, (B, C_i, H_i, W_i)."""
        self.check_images(x)
        x, maps = self.patch_embed(x), []
        for level in self.levels:
            here, x = level(x)
            maps.append(here.permute(0, 3, 1, 2))
        return maps

    def normalise(self, x: Tensor) -> Tensor:
        """Returns the map (B, C, H, W) after the norm over its channels."""
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _preset(size: str, pixels: int = 224, crop: float = 0.875, **kwargs: object) -> ImagePreset:
    cfg = {**IMAGENET, "img_size": pixels, "crop_ratio": crop}
    return ImagePreset(DiNAT, kwargs, f"DiNAT-{size}, published layout", cfg)


_DEEP = (3, 4, 18, 5)
_LARGE = {"dim": 192, "depths": _DEEP, "n_heads": (6, 12, 24, 48), "mlp_ratio": 2.0}
PRESETS = {
    "dinat_mini": _preset("M"),
    "dinat_tiny": _preset("T", depths=_DEEP),
    "dinat_small": _preset(
        "S", dim=96, depths=_DEEP, n_heads=(3, 6, 12, 24), mlp_ratio=2.0, drop_path=0.3
    ),
    "dinat_base": _preset(
        "B",
        dim=128,
        depths=_DEEP,
        n_heads=(4, 8, 16, 32),
        mlp_ratio=2.0,
        layer_scale=1e-5,
        drop_path=0.5,
    ),
    "dinat_large": _preset("L", drop_path=0.35, **_LARGE),
    "dinat_large_384": _preset("L", 384, 1.0, drop_path=0.35, dilations=(13, 6, 3, 1), **_LARGE),
}
