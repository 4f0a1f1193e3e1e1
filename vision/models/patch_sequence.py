"""Images as sequences of patches or single pixels, for any mixer of the core; with attention it is
a ViT."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longseq.core.backbone import Backbone
from longseq.core.checks import check_positive
from longseq.core.errors import ConfigError
from longseq.vision.models.layers import ImageModel, head
from longseq.vision.models.scan2d import scan_order
from longseq.vision.models.vim import PatchEmbed


class PatchSequence(ImageModel):
    """Patches along one scan order, a backbone of any mixer, a pooled position, a linear head.

    With ``patch_size=1`` and no positions it is sequential-image classification (one pixel a step,
    as in Long Range Arena, arXiv 2011.04006); with ``mixer="attention"`` and positions it is a ViT
    (arXiv 2010.11929) with mean pooling.

    Args:
        num_classes: classes of the head; 0 for none.
        in_chans: channels of the images.
        img_size: side in pixels for which positions are stored.
        patch_size: side of a patch; 1 for pixels.
        d_model: width D.
        n_layers: number of layers.
        mixer: a mixer's name or a pattern of names or of pairs [name, hyper-parameters].
        mixer_kwargs: the mixer's hyper-parameters; for a pattern, by name.
        mlp_ratio: hidden width of the MLPs as a multiple of D; 0 for none.
        norm: "rms" or "layer".
        dropout: on residual branches.
        positions: whether positions are learned; without them the order alone tells where a patch
            is.
        order: scan order, see ``scan2d.list_orders``.
        pool: "mean" over all positions, or "last": what a causal mixer knows at the end.
    """

    no_decay_parameters = ("pos_embed",)
    positions_keys = ("pos_embed",)
    head_norms = ("backbone.norm_f",)

    def __init__(
        self,
        num_classes: int = 10,
        in_chans: int = 3,
        img_size: int = 32,
        patch_size: int = 1,
        d_model: int = 128,
        n_layers: int = 4,
        mixer: str | list[Any] = "mamba",
        mixer_kwargs: dict[str, Any] | None = None,
        mlp_ratio: float = 0.0,
        norm: Literal["rms", "layer"] = "rms",
        dropout: float = 0.0,
        positions: bool = False,
        order: str = "raster",
        pool: Literal["mean", "last"] = "mean",
    ) -> None:
        super().__init__()
        if pool not in ("mean", "last"):
            raise ConfigError(f"pool must be 'mean' or 'last', got {pool!r}")
        self.grid = check_positive("img_size", img_size) // check_positive("patch_size", patch_size)
        check_positive("img_size // patch_size", self.grid)
        scan_order(order, 1, 1)  # an unknown name fails here, not at the first batch
        self.in_chans, self.min_size = check_positive("in_chans", in_chans), patch_size
        self.num_features, self.channels, self.reductions = d_model, [d_model], [patch_size]
        self.order, self.pool = order, pool
        self.patch_embed = PatchEmbed(in_chans, d_model, patch_size)
        self.pos_embed = (
            nn.Parameter(torch.zeros(1, d_model, self.grid, self.grid)) if positions else None
        )
        if self.pos_embed is not None:
            nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.backbone = Backbone(d_model, n_layers, mixer, mixer_kwargs, mlp_ratio, norm, dropout)
        self.head = head(d_model, num_classes)

    def _tokens(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Returns the normalised tokens in scan order (B, M, D), and the grid."""
        self.check_images(x)
        patches = self.patch_embed(x)
        grid = (patches.shape[2], patches.shape[3])
        if self.pos_embed is not None:
            where: Tensor = self.pos_embed
            if grid != (self.grid, self.grid):
                where = F.interpolate(
                    where, grid, mode="bicubic", antialias=True, align_corners=False
                )
            patches = patches + where
        tokens = patches.flatten(2).transpose(1, 2)
        if self.order != "raster":
            tokens = tokens[:, torch.from_numpy(scan_order(self.order, *grid)).to(x.device)]
        return self.backbone(tokens, keep_states=False)[0], grid

    def fit_positions(self, positions: Tensor) -> Tensor | None:
        """Returns stored positions (1, D, g, g) at this model's grid."""
        if positions.dim() != 4:
            return None
        size = (self.grid, self.grid)
        return F.interpolate(positions, size, mode="bicubic", antialias=True, align_corners=False)

    def forward_features(self, x: Tensor) -> Tensor:
        """Returns the normalised tokens in scan order, (B, M, D)."""
        return self._tokens(x)[0]

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Pools the tokens and maps them to logits (B, classes)."""
        pooled = features.mean(1) if self.pool == "mean" else features[:, -1]
        return pooled if pre_logits else self.head(pooled)

    def forward_maps(self, x: Tensor, indices: Sequence[int]) -> list[Tensor]:
        """Returns the tokens as a map (B, D, H/p, W/p), once for every index."""
        tokens, grid = self._tokens(x)
        back = torch.from_numpy(scan_order(self.order, *grid)).argsort().to(x.device)
        return [tokens[:, back].transpose(1, 2).unflatten(2, grid) for _ in indices]
