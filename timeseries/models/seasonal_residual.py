"""A correction of a linear forecast that changes its shape over a season and never its level."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longseq.core.backbone import Backbone
from longseq.core.checks import check_positive

_EPS = 1e-5


class SeasonalResidual(nn.Module):
    """Contexts (N, L) to corrections (N, h), 0 before training.

    Contexts less their mean and divided by their deviation go in patches of a season through a
    backbone; a head of low rank reads all positions; what comes out loses its mean over every
    season of the horizon, and is put back on the context's deviation.

    Args:
        context: L.
        horizon: h.
        season: rows of a season; with 1 there is no shape to change, and the correction is 0.
        d_model: width D.
        n_layers: number of layers.
        mixer: a mixer's name.
        rank: of the head.
        dropout: on residual branches and before the head.
    """

    def __init__(
        self,
        context: int,
        horizon: int,
        season: int,
        d_model: int = 32,
        n_layers: int = 1,
        mixer: str = "mamba",
        rank: int = 8,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        for name, value in (("context", context), ("horizon", horizon), ("season", season)):
            check_positive(name, value)
        self.context, self.horizon, self.season = context, horizon, season
        self.patch = min(season, context) if season > 1 else min(16, context)
        self.positions = context // self.patch
        self.embed = nn.Linear(self.patch, d_model)
        self.backbone = Backbone(d_model, n_layers, mixer, None, 2.0, "rms", dropout)
        self.dropout = nn.Dropout(dropout)
        self.narrow = nn.Linear(self.positions * d_model, rank, bias=False)
        self.head = nn.Linear(rank, horizon, bias=False)
        nn.init.zeros_(self.head.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the corrections (N, h) after contexts (N, L)."""
        spread = (x.var(1, keepdim=True, correction=0) + _EPS).sqrt()
        u = (x - x.mean(1, keepdim=True)) / spread
        used = self.positions * self.patch
        patches = u[:, self.context - used :].unflatten(1, (self.positions, self.patch))
        z, _ = self.backbone(self.embed(patches), keep_states=False)
        return self.shape(self.head(self.narrow(self.dropout(z.flatten(1))))) * spread

    def shape(self, y: Tensor) -> Tensor:
        """Returns (N, h) less its mean over every season, the last of which may be cut short."""
        over = -self.horizon % self.season
        ones = F.pad(torch.ones_like(y), (0, over)).unflatten(1, (-1, self.season))
        blocks = F.pad(y, (0, over)).unflatten(1, (-1, self.season))
        mean = blocks.sum(-1, keepdim=True) / ones.sum(-1, keepdim=True)
        return (blocks - mean).flatten(1)[:, : self.horizon]
