r"""Vision Mamba (Zhu et al. 2024, arXiv 2401.09417): a bidirectional Mamba over a sequence of
patches.

Patches in raster order, a class token in their middle, learned positions, then layers of

r   ← r + h                                 (the residual stream, float32)
h   = W_out · ½ (→(x) + ←(x)) ⊙ silu(z),    x, z = split(W_in norm(r))

where → is convolution, silu and selective scan, and ← the same with its own weights from the other
end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longseq.core.checks import check_positive
from longseq.core.ops.linear_maps import mapped
from longseq.core.ops.mamba_inner import Way, mamba_inner
from longseq.core.ops.rms_norm import add_rms_norm, rms_norm
from longseq.vision.models.layers import DropPath, ImageModel, head, path_rates, step_size_bias

EPS = 1e-5
"""Added to the mean square in every norm."""


class BidirectionalMamba(nn.Module):
    """The mixer of Vim: (B, L, D) to (B, L, D); parameter names and shapes of the published
    checkpoints.

    Args:
        d_model: width D.
        d_state: states per channel N.
        d_conv: taps of the short convolutions.
        expand: inner width as a multiple of D.
    """

    ssm_parameters: ClassVar[tuple[str, ...]] = (
        "A_log",
        "D",
        "dt_proj.bias",
        "A_b_log",
        "D_b",
        "dt_proj_b.bias",
    )

    def __init__(self, d_model: int, d_state: int = 16, d_conv: int = 4, expand: int = 2) -> None:
        super().__init__()
        self.d_inner = check_positive("expand", expand) * check_positive("d_model", d_model)
        self.d_state = check_positive("d_state", d_state)
        self.dt_rank = math.ceil(d_model / 16)
        decays = torch.arange(1, d_state + 1).float().log().repeat(self.d_inner, 1)

        self.in_proj = nn.Linear(d_model, 2 * self.d_inner, bias=False)
        self.conv1d, self.conv1d_b = (
            nn.Conv1d(self.d_inner, self.d_inner, d_conv, groups=self.d_inner) for _ in range(2)
        )
        self.x_proj, self.x_proj_b = (
            nn.Linear(self.d_inner, self.dt_rank + 2 * d_state, bias=False) for _ in range(2)
        )
        self.dt_proj, self.dt_proj_b = (nn.Linear(self.dt_rank, self.d_inner) for _ in range(2))
        self.A_log, self.A_b_log = (nn.Parameter(decays.clone()) for _ in range(2))
        self.D, self.D_b = (nn.Parameter(torch.ones(self.d_inner)) for _ in range(2))
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=False)
        for layer in (self.dt_proj, self.dt_proj_b):
            nn.init.uniform_(layer.weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5)
            with torch.no_grad():
                layer.bias.copy_(step_size_bias((self.d_inner,)))

    def _ways(self) -> tuple[Way, Way]:
        """Returns both directions."""
        there = Way(
            self.conv1d.weight,
            self.conv1d.bias,
            self.x_proj,
            self.dt_proj,
            self.A_log,
            self.D,
        )
        back = Way(
            self.conv1d_b.weight,
            self.conv1d_b.bias,
            self.x_proj_b,
            self.dt_proj_b,
            self.A_b_log,
            self.D_b,
            reverse=True,
        )
        return there, back

    def forward(self, x: Tensor) -> Tensor:
        """Mixes a whole sequence; every position sees all others."""
        y = mamba_inner(mapped(self.in_proj, x), self._ways(), scale=0.5)
        return mapped(self.out_proj, y)


class VimLayer(nn.Module):
    """Adds to the residual stream, then norm and mixer: the order of Vim's (and Mamba's) blocks.

    Args:
        d_model: width D.
        drop_path: rate of stochastic depth on what is added.
        d_state: states per channel.
        d_conv: taps of the short convolutions.
        expand: inner width as a multiple of D.
    """

    def __init__(
        self, d_model: int, drop_path: float, d_state: int, d_conv: int, expand: int
    ) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(d_model, eps=EPS)
        self.mixer = BidirectionalMamba(d_model, d_state, d_conv, expand)
        self.drop_path = DropPath(drop_path)

    def forward(self, h: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        """Returns the mixer's output and the residual stream (float32 or float64), both (B, L,
        D)."""
        weight = self.norm.weight
        if residual is None:
            residual = h.to(torch.promote_types(h.dtype, torch.float32))
            normed = rms_norm(residual, weight, EPS)
        else:
            normed, residual = add_rms_norm(self.drop_path(h), residual, weight, EPS)
        return self.mixer(normed), residual


class PatchEmbed(nn.Module):
    """Patches as vectors: (B, C, H, W) to (B, D, H/s, W/s), partial patches left out.

    Args:
        in_chans: channels C.
        d_model: width D.
        patch_size: side p in pixels.
        stride: pixels from one patch to the next; ``patch_size`` if None.
    """

    def __init__(
        self, in_chans: int, d_model: int, patch_size: int, stride: int | None = None
    ) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, d_model, patch_size, stride=stride or patch_size)
        nn.init.normal_(self.proj.weight, std=(in_chans * patch_size**2) ** -0.5)
        if self.proj.bias is not None:
            nn.init.zeros_(self.proj.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W)."""
        return self.proj(x)


def resize_positions(positions: Tensor, side: int, height: int, width: int) -> Tensor:
    """Returns positions (1, side² + 1, D) at another grid, bicubically, (1, H·W + 1, D).

    The class token's, in the middle, stays in the middle.
    """
    middle = side * side // 2
    own = positions[:, middle : middle + 1]
    patches = torch.cat([positions[:, :middle], positions[:, middle + 1 :]], 1)
    grid = patches.transpose(1, 2).unflatten(2, (side, side))
    grid = F.interpolate(grid, (height, width), mode="bicubic", antialias=True, align_corners=False)
    patches, middle = grid.flatten(2).transpose(1, 2), height * width // 2
    return torch.cat([patches[:, :middle], own, patches[:, middle:]], 1)


class Vim(ImageModel):
    """Vision Mamba with the class token in the middle; published checkpoints load by name.

    Any resolution: the learned positions of the patches are resized bicubically, and the class
    token, which lies at index M // 2 of the M patches, keeps its own. (The published code takes
    index 0 for it there.)

    Args:
        num_classes: classes of the head; 0 for none.
        in_chans: channels of the images.
        img_size: side in pixels for which positions are stored.
        patch_size: side of a patch.
        stride: pixels from one patch to the next, 8 in "Vim-T+"; ``patch_size`` if None.
        d_model: width D.
        depth: number of layers.
        d_state: states per channel.
        d_conv: taps of the short convolutions.
        expand: inner width as a multiple of D.
        drop_rate: dropout after the positions are added.
        drop_path: highest rate of stochastic depth.
        stages: maps that ``features_only`` offers, after equal parts of the layers.
    """

    no_decay_parameters = ("cls_token", "pos_embed")
    positions_keys = ("pos_embed",)
    head_norms = ("norm_f",)

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        img_size: int = 224,
        patch_size: int = 16,
        stride: int | None = None,
        d_model: int = 192,
        depth: int = 24,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        drop_rate: float = 0.0,
        drop_path: float = 0.1,
        stages: int = 4,
    ) -> None:
        super().__init__()
        check_positive("depth", depth)
        self.in_chans, self.min_size = check_positive("in_chans", in_chans), patch_size
        step = check_positive("patch_size", patch_size)
        step = step if stride is None else check_positive("stride", stride)
        side = (check_positive("img_size", img_size) - patch_size) // step + 1
        self.grid, self.num_features = check_positive("patches per side", side), d_model
        self.patch_embed = PatchEmbed(in_chans, d_model, patch_size, step)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, d_model))
        self.pos_embed = nn.Parameter(torch.zeros(1, side * side + 1, d_model))
        self.pos_drop = nn.Dropout(drop_rate)
        # The published code shifts the rates by one layer: what layer i adds was made by layer i-1.
        rates = [0.0, *path_rates(drop_path, depth)]
        self.layers = nn.ModuleList(
            VimLayer(d_model, rates[i], d_state, d_conv, expand) for i in range(depth)
        )
        self.drop_path = DropPath(drop_path)
        self.norm_f = nn.RMSNorm(d_model, eps=EPS)
        self.head = head(d_model, num_classes)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for (
            name,
            parameter,
        ) in self.layers.named_parameters():  # as published: uniform, divided by √depth
            if name.endswith("out_proj.weight"):
                with torch.no_grad():
                    nn.init.kaiming_uniform_(parameter, a=math.sqrt(5)).div_(depth**0.5)
        stages = min(stages, depth)
        self._ends = [round((i + 1) * depth / stages) for i in range(stages)]
        self.channels, self.reductions = [d_model] * stages, [step] * stages

    def _positions(self, height: int, width: int) -> Tensor:
        """Returns the positions (1, H·W + 1, D) of a grid, the class token's at H·W // 2."""
        if (height, width) == (self.grid, self.grid):
            return self.pos_embed
        return resize_positions(self.pos_embed, self.grid, height, width)

    def fit_positions(self, positions: Tensor) -> Tensor | None:
        """Returns stored positions (1, g·g + 1, D) at this model's grid."""
        side = math.isqrt(positions.shape[1] - 1)
        if side * side + 1 != positions.shape[1]:
            return None
        return resize_positions(positions, side, self.grid, self.grid)

    def _run(self, x: Tensor, ends: Sequence[int] = ()) -> tuple[Tensor, list[Tensor]]:
        """Returns the normalised tokens (B, M + 1, D), and maps after ``ends`` layers each."""
        self.check_images(x)
        patches = self.patch_embed(x)
        height, width = patches.shape[2:]
        middle = height * width // 2
        h = patches.flatten(2).transpose(1, 2)
        h = torch.cat([h[:, :middle], self.cls_token.expand(h.shape[0], -1, -1), h[:, middle:]], 1)
        h = self.pos_drop(h + self._positions(height, width))
        residual, maps = None, []
        for i, layer in enumerate(self.layers):
            h, residual = layer(h, residual)
            if i + 1 in ends:
                tokens = residual + h
                tokens = torch.cat([tokens[:, :middle], tokens[:, middle + 1 :]], 1)
                maps.append(tokens.transpose(1, 2).unflatten(2, (height, width)))
        assert residual is not None
        return add_rms_norm(self.drop_path(h), residual, self.norm_f.weight, EPS)[0], maps

    def forward_features(self, x: Tensor) -> Tensor:
        """Returns the normalised tokens (B, M + 1, D), the class token at index M // 2."""
        return self._run(x)[0]

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Takes the class token and maps it to logits (B, classes)."""
        pooled = features[:, (features.shape[1] - 1) // 2]
        return pooled if pre_logits else self.head(pooled)

    def forward_maps(self, x: Tensor, indices: Sequence[int]) -> list[Tensor]:
        """Returns the residual stream's patches as maps (B, D, H/p, W/p)."""
        ends = [self._ends[i] for i in indices]
        maps = dict(zip(sorted(set(ends)), self._run(x, ends)[1]))
        return [maps[end] for end in ends]
