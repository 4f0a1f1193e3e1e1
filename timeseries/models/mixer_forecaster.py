"""A channel-independent forecaster around any mixer of the core."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from longseq.core.backbone import Backbone
from longseq.core.checks import check_positive
from longseq.core.errors import ConfigError

Normalise = Literal["revin", "last", "none"]
_EPS = 1e-5


class Beside(nn.Module):
    """What covariates change: the embeddings of patches, and every row of the forecast.

    Args:
        counts: covariates of the future Q, of the past P, and static ones S.
        patch: rows of a patch.
        d_model: width D.
        outputs: numbers K a forecast value.
    """

    def __init__(self, counts: tuple[int, ...], patch: int, d_model: int, outputs: int = 1) -> None:
        super().__init__()
        future, past, static = counts
        moving = future + past
        self.rows = nn.Linear(moving * patch, d_model, bias=False) if moving else None
        self.static = nn.Linear(static, d_model, bias=False) if static else None
        self.state = nn.Linear(d_model + static, 2 * d_model)
        self.known = nn.Linear(future, 2 * d_model, bias=False) if future else None
        self.out = nn.Linear(2 * d_model, outputs)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def embed(self, e: Tensor, cut: Tensor, static: Tensor) -> Tensor:
        """Returns embeddings (B, N, D) with those of covariates (B, N, (Q + P) · patch), (B, S)."""
        if self.rows is not None:
            e = e + self.rows(cut)
        return e if self.static is None else e + self.static(static).unsqueeze(1)

    def forward(self, state: Tensor, known: Tensor, static: Tensor) -> Tensor:
        """Returns corrections (B, h, K) after states (B, D), for rows (B, h, Q)."""
        about = self.state(torch.cat([state, static], -1)).unsqueeze(1)
        about = about.expand(-1, known.shape[1], -1)
        hidden = about if self.known is None else about + self.known(known)
        return self.out(nn.functional.gelu(hidden))


class MixerForecaster(nn.Module):
    """Context (B, L, C) to forecast (B, h, C); every series goes through the same network on its
    own.

    1. The context is taken relative to its own level: less its mean and divided by its standard
       deviation ("revin", reversible instance normalisation without the affine map,
       https://openreview.net/forum?id=cGDAkQo1C0p), less its last value ("last"), or as it is. The
       forecast is put back on that level.
    2. It is cut into patches of ``patch`` rows every ``stride`` rows, the last of which ends at the
       cutoff; each is embedded by a linear map (with ``patch = stride = 1`` every row is a
       position).
    3. The backbone, and a linear map from its last position ("last") or from all positions
        ("flatten").
    4. With ``linear_skip`` a linear map from the context to the horizon is added: the network then
       learns what the best linear baseline leaves.
    5. Covariates, if there are any, enter the patches' embeddings, and every forecast row is
       corrected by a small network that sees what the series' state is and what is known of that
       row; it begins with no correction.

    Args:
        context: L.
        horizon: h.
        d_model: width D.
        n_layers: number of layers.
        mixer: a mixer's name or a pattern of names or of pairs [name, hyper-parameters].
        mixer_kwargs: the mixer's hyper-parameters.
        mlp_ratio: hidden width of the MLPs as a multiple of D; 0 for none.
        norm: "rms" or "layer".
        dropout: on residual branches and before the head.
        normalise: "revin", "last" or "none".
        patch: rows of a patch.
        stride: rows between patches.
        head: "last" or "flatten".
        linear_skip: whether the linear map from context to horizon is there.
        covariates: numbers of covariates of the future Q, of the past P, and static ones S.
        outputs: numbers K a forecast value: its place, and what else a likelihood needs.

    Raises:
        ConfigError: for sizes that do not fit.
    """

    def __init__(
        self,
        context: int,
        horizon: int,
        d_model: int = 64,
        n_layers: int = 2,
        mixer: str | list[Any] = "mamba",
        mixer_kwargs: Mapping[str, Any] | None = None,
        mlp_ratio: float = 2.0,
        norm: Literal["rms", "layer"] = "rms",
        dropout: float = 0.1,
        normalise: Normalise = "revin",
        patch: int = 16,
        stride: int = 8,
        head: Literal["last", "flatten"] = "flatten",
        linear_skip: bool = True,
        covariates: tuple[int, ...] = (0, 0, 0),
        outputs: int = 1,
    ) -> None:
        super().__init__()
        for name, value in (
            ("context", context),
            ("horizon", horizon),
            ("patch", patch),
            ("stride", stride),
        ):
            check_positive(name, value)
        if patch > context:
            raise ConfigError(f"patch ({patch}) must not exceed the context ({context})")
        if normalise not in ("revin", "last", "none") or head not in ("last", "flatten"):
            raise ConfigError("normalise is revin, last or none, and head is last or flatten")
        self.context, self.horizon, self.normalise = context, horizon, normalise
        self.patch, self.stride, self.head_kind = patch, stride, head
        self.positions = (context - patch) // stride + 1
        self.embed = nn.Linear(patch, d_model)
        self.backbone = Backbone(d_model, n_layers, mixer, mixer_kwargs, mlp_ratio, norm, dropout)
        self.covariates = covariates
        self.beside = Beside(covariates, patch, d_model, outputs) if any(covariates) else None
        self.dropout = nn.Dropout(dropout)
        self.outputs = check_positive("outputs", outputs)
        width = d_model * (self.positions if head == "flatten" else 1)
        self.head = nn.Linear(width, horizon * outputs)
        self.linear_skip = nn.Linear(context, horizon) if linear_skip else None
        if self.linear_skip is not None:
            # The average of the context, then corrections of both branches from there.
            nn.init.constant_(self.linear_skip.weight, 1.0 / context)
            nn.init.zeros_(self.linear_skip.bias)
            nn.init.zeros_(self.head.bias)
            with torch.no_grad():
                self.head.weight.mul_(0.1)

    def forward(
        self,
        x: Tensor,
        x_cov: Tensor | None = None,
        y_cov: Tensor | None = None,
        static: Tensor | None = None,
    ) -> Tensor:
        """Maps a context (B, L, C) to a forecast (B, h, C); see ``parameters_of``."""
        return self.parameters_of(x, x_cov, y_cov, static)[0]

    def parameters_of(
        self,
        x: Tensor,
        x_cov: Tensor | None = None,
        y_cov: Tensor | None = None,
        static: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Maps a context (B, L, C) to places (B, h, C), what else is put out (B, h, C, K - 1), and
        the contexts' deviations (B, 1, C).

        Args:
            x: context; C is 1 where there are covariates.
            x_cov: covariates of the future and of the past over the context (B, L, Q + P).
            y_cov: those of the future over the horizon (B, h, Q).
            static: static ones (B, S).
        """
        batch, length, channels = x.shape
        if length != self.context:
            raise ConfigError(f"the model takes a context of {self.context} rows, got {length}")
        u = x.transpose(1, 2).reshape(batch * channels, length)
        level, spread = self._level(u)
        u = (u - level) / spread
        # The last patch ends at the cutoff; what the stride leaves over falls off at the far end.
        used = (self.positions - 1) * self.stride + self.patch
        patches = u[:, length - used :].unfold(1, self.patch, self.stride)
        e = self.embed(patches)
        if self.beside is not None:
            if x_cov is None or y_cov is None or static is None or channels != 1:
                raise ConfigError("the model takes windows of one series, with their covariates")
            cut = x_cov[:, length - used :].unfold(1, self.patch, self.stride).flatten(2)
            e = self.beside.embed(e, cut, static)
        z, _ = self.backbone(e, keep_states=False)
        last = z[:, -1]
        z = z.flatten(1) if self.head_kind == "flatten" else last
        y = self.head(self.dropout(z)).unflatten(1, (self.horizon, self.outputs))
        if self.beside is not None:
            y = y + self.beside(last, y_cov, static)
        place = y[..., 0]
        if self.linear_skip is not None:
            place = place + self.linear_skip(u)
        place = (place * spread + level).unflatten(0, (batch, channels)).transpose(1, 2)
        rest = y[..., 1:].unflatten(0, (batch, channels)).transpose(1, 2)
        own = (u.var(dim=1, correction=0) + _EPS).sqrt() * spread[:, 0]
        return place, rest, own.unflatten(0, (batch, 1, channels))

    def _level(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Returns what is subtracted from the rows (N, L) and what they are divided by, (N, 1)
        each."""
        one = torch.ones_like(u[:, :1])
        if self.normalise == "none":
            return torch.zeros_like(one), one
        if self.normalise == "last":
            return u[:, -1:].detach(), one
        spread = (u.var(dim=1, keepdim=True, correction=0) + _EPS).sqrt()
        return u.mean(dim=1, keepdim=True), spread
