r"""ViR (Hatamizadeh et al. 2023, arXiv 2310.19731): a ViT whose attention is retention.

Block:  x ← x + W gelu(norm(concat_h o_h)),  x ← x + MLP(norm(x))

o_t = Σ_{s ≤ t} γ_h^{t-s} (q_tᵀ k_s) v_s / √K,   γ_h = 1 - 2^{-5-h}

or, position after position,  S_t = γ S_{t-1} + k_t v_tᵀ,  o_t = S_tᵀ q_t / √K. The class token
stands at the end of the sequence, the only place that sees all patches. So an image may also come
in bands of rows, from top to bottom, with a state of one matrix per head between them.

The authors published no code: this follows the paper's equations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longseq.core.checks import check_choice, check_divisible, check_positive
from longseq.core.errors import ArgumentError
from longseq.core.ops.linear_attention import linear_attention
from longseq.core.ops.linear_maps import mapped
from longseq.core.registry import Preset
from longseq.vision.models.layers import DropPath, ImageModel, add_branch, head, path_rates
from longseq.vision.models.pyramid import ExactMLP, initialise
from longseq.vision.models.vim import PatchEmbed

Pool = Literal["token", "mean"]


class VisionRetention(nn.Module):
    """Retention of several decays, normalised together: (B, L, D) to the same shape.

    Args:
        d_model: width D.
        n_heads: heads, which divide D.
    """

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        check_divisible("d_model", d_model, "n_heads", n_heads)
        self.n_heads = n_heads
        self.qkv = nn.Linear(d_model, 3 * d_model)
        self.norm = nn.LayerNorm(d_model)
        self.proj = nn.Linear(d_model, d_model)

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mixes a sequence, or the next part of one.

        Args:
            x: (B, L, D).
            state: of the positions before, (B, H, K, K).

        Returns:
            (B, L, D), and the state after it.
        """
        q, k, v = mapped(self.qkv, x).unflatten(2, (3, self.n_heads, -1)).unbind(2)
        dtype = torch.promote_types(q.dtype, torch.float32)
        heads = torch.arange(self.n_heads, device=x.device, dtype=dtype)
        decay = torch.log1p(-torch.exp2(-5.0 - heads))
        rows = decay.expand(x.shape[0], x.shape[1], -1)
        o, state = linear_attention(q, k, v, rows, initial_state=state)
        return self.proj(F.gelu(self.norm(o.flatten(2)))), state


class RetentionBlock(nn.Module):
    """Retention and MLP, each beside a shortcut; (B, L, D).

    Args:
        d_model: width D.
        n_heads: heads of retention.
        mlp_ratio: hidden width of the MLP as a multiple of D.
        drop_path: rate of stochastic depth.
    """

    def __init__(self, d_model: int, n_heads: int, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.ret = VisionRetention(d_model, n_heads)
        self.mlp = ExactMLP(d_model, int(mlp_ratio * d_model))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x: (B, L, D); see ``VisionRetention.forward``."""
        y, state = self.ret(self.norm1(x), state)
        x = add_branch(x, y, self.drop_path)
        return add_branch(x, self.mlp(self.norm2(x)), self.drop_path), state


class ViR(ImageModel):
    """Vision Retention at any resolution: positions are resized bicubically.

    Args:
        num_classes: classes of the head; 0 for none.
        in_chans: channels of the images.
        img_size: side in pixels for which positions are stored.
        patch_size: side of a patch.
        d_model: width D.
        depth: number of blocks.
        n_heads: heads of retention.
        mlp_ratio: hidden width of the MLPs as a multiple of D.
        pool: what the head sees: the class token at the end, or the mean over the patches (then
            there is no token).
        drop_path: highest rate of stochastic depth.
        stages: maps that ``features_only`` offers, after equal parts of the blocks.
    """

    cls_token: Tensor | None
    cls_position: Tensor | None
    no_decay_parameters = ("cls_token", "pos_embed", "cls_position")
    positions_keys = ("pos_embed",)
    head_norms = ("norm",)

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        img_size: int = 224,
        patch_size: int = 16,
        d_model: int = 384,
        depth: int = 12,
        n_heads: int = 6,
        mlp_ratio: float = 4.0,
        pool: Pool = "token",
        drop_path: float = 0.1,
        stages: int = 4,
    ) -> None:
        super().__init__()
        check_positive("depth", depth)
        self.patch_size, self.pool = check_positive("patch_size", patch_size), pool
        check_choice("pool", pool, Pool)
        self.in_chans, self.min_size = check_positive("in_chans", in_chans), patch_size
        side = check_positive("img_size // patch_size", img_size // patch_size)
        self.num_features = d_model
        self.patch_embed = PatchEmbed(in_chans, d_model, patch_size, patch_size)
        self.pos_embed = nn.Parameter(torch.zeros(1, side * side, d_model))
        self.blocks = nn.ModuleList(
            RetentionBlock(d_model, n_heads, mlp_ratio, rate)
            for rate in path_rates(drop_path, depth)
        )
        self.norm = nn.LayerNorm(d_model)
        self.head = head(d_model, num_classes)
        for name in ("cls_token", "cls_position"):
            start = nn.Parameter(torch.zeros(1, 1, d_model)) if pool == "token" else None
            self.register_parameter(name, start)
            if start is not None:
                nn.init.trunc_normal_(start, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.apply(initialise)
        stages = min(stages, depth)
        self._ends = [round((i + 1) * depth / stages) for i in range(stages)]
        self.channels, self.reductions = [d_model] * stages, [patch_size] * stages

    def _grid(self, positions: Tensor, height: int, width: int) -> Tensor:
        """Returns positions (1, g², D) at a grid, (1, H·W, D)."""
        side = math.isqrt(positions.shape[1])
        if (height, width) == (side, side):
            return positions
        grid = positions.transpose(1, 2).unflatten(2, (side, side))
        size = (height, width)
        grid = F.interpolate(grid, size, mode="bicubic", antialias=True, align_corners=False)
        return grid.flatten(2).transpose(1, 2)

    def fit_positions(self, positions: Tensor) -> Tensor | None:
        """Returns stored positions (1, g², D) at this model's grid."""
        side = math.isqrt(positions.shape[1])
        if side * side != positions.shape[1]:
            return None
        own = math.isqrt(self.pos_embed.shape[1])
        return self._grid(positions, own, own)

    def _token(self, batch: int) -> list[Tensor]:
        """Returns the class token at its position, (B, 1, D), if there is one."""
        if self.cls_token is None or self.cls_position is None:
            return []
        return [(self.cls_token + self.cls_position).expand(batch, -1, -1)]

    def _run(self, x: Tensor, ends: Sequence[int] = ()) -> tuple[Tensor, list[Tensor]]:
        """Returns the normalised tokens (B, M + 1, D), and maps after ``ends`` blocks each."""
        self.check_images(x)
        patches = self.patch_embed(x)
        height, width = patches.shape[2:]
        h = patches.flatten(2).transpose(1, 2) + self._grid(self.pos_embed, height, width)
        h = torch.cat([h, *self._token(x.shape[0])], 1)
        maps = []
        for i, block in enumerate(self.blocks):
            h, _ = block(h)
            if i + 1 in ends:
                maps.append(h[:, : height * width].transpose(1, 2).unflatten(2, (height, width)))
        return self.norm(h), maps

    def forward_features(self, x: Tensor) -> Tensor:
        """Returns the normalised tokens (B, M + 1, D), the class token last."""
        return self._run(x)[0]

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Takes the class token, or the mean, and maps it to logits (B, classes)."""
        pooled = features[:, -1] if self.pool == "token" else features.mean(1)
        return pooled if pre_logits else self.head(pooled)

    def forward_maps(self, x: Tensor, indices: Sequence[int]) -> list[Tensor]:
        """Returns the patches of the residual stream as maps (B, D, H/p, W/p)."""
        ends = [self._ends[i] for i in indices]
        maps = dict(zip(sorted(set(ends)), self._run(x, ends)[1]))
        return [maps[end] for end in ends]

    def forward_recurrent(self, x: Tensor, rows: int = 1) -> Tensor:
        """Returns the logits of ``forward`` by the recurrent form: band after band from the top.

        Memory beside the image is that of one band and one state per block, whatever the height.

        Args:
            x: images (B, C, H, W).
            rows: rows of patches per band.
        """
        self.check_images(x)
        check_positive("rows", rows)
        if self.training:
            raise ArgumentError("forward_recurrent is for evaluation: call model.eval()")
        high, wide = (side // self.patch_size for side in x.shape[2:])
        positions = self._grid(self.pos_embed, high, wide)
        states: list[Tensor | None] = [None] * len(self.blocks)

        def step(h: Tensor) -> Tensor:
            for i, block in enumerate(self.blocks):
                h, states[i] = block(h, states[i])
            return self.norm(h)

        total = x.new_zeros(x.shape[0], self.num_features)
        for top in range(0, high, rows):
            last = min(top + rows, high)
            band = self.patch_embed(x[:, :, top * self.patch_size : last * self.patch_size])
            h = band.flatten(2).transpose(1, 2) + positions[:, top * wide : last * wide]
            total = total + step(h).sum(1)
        if self.pool == "token":
            return self.head(step(self._token(x.shape[0])[0])[:, -1])
        return self.head(total / (high * wide))


def _preset(size: str, **kwargs: object) -> Preset:
    return Preset(ViR, kwargs, f"ViR-{size}, 224 px; no weights are published")


PRESETS = {
    "vir_tiny": _preset("T", d_model=192, n_heads=3),
    "vir_small": _preset("S"),
    "vir_base": _preset("B", d_model=768, n_heads=12),
    "vir_nano": Preset(
        ViR,
        {"num_classes": 10, "img_size": 32, "patch_size": 4, "d_model": 128, "n_heads": 4}
        | {"depth": 6, "drop_path": 0.05},
        "ViR for 28 to 64 px, patches of 4",
    ),
}
