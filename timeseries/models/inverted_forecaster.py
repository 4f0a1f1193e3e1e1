"""The inverted forecaster: series are the positions, their whole contexts the vectors
(https://arxiv.org/abs/2310.06625)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from longseq.core.backbone import Backbone
from longseq.core.checks import check_positive
from longseq.core.errors import ConfigError

_EPS = 1e-5
MIXER = "attention"
MIXER_KWARGS = {"bidirectional": True, "rope_base": None}
LAYERS = {"mlp_ratio": 2.0, "norm": "layer"}


class InvertedForecaster(nn.Module):
    """iTransformer's layout around any mixer: one position a series.

    1. Every series is taken relative to the mean and deviation of its context.
    2. A linear map embeds the whole context of a series: (B, L, C) to (B, C, D).
    3. The backbone mixes the series. The usual mixer, attention that is not causal, knows no order
       of the series; ``bidirectional`` (a scan from both ends, as S-Mamba's) and causal ones do.
    4. A linear map from each position to the horizon, and back to the series' level.

    Args:
        context: L.
        horizon: h.
        d_model: width D.
        n_layers: number of layers.
        mixer: a mixer's name or a pattern of names; attention that is not causal if None.
        mixer_kwargs: the mixer's hyper-parameters.
        dropout: on the embedding and on residual branches.
        **layers: the remaining arguments of ``Backbone``, MLPs of width 2 D and LayerNorm if not
            given.
    """

    def __init__(
        self,
        context: int,
        horizon: int,
        d_model: int = 128,
        n_layers: int = 2,
        mixer: str | list[Any] | None = None,
        mixer_kwargs: Mapping[str, Any] | None = None,
        dropout: float = 0.1,
        **layers: Any,
    ) -> None:
        super().__init__()
        self.context = check_positive("context", context)
        self.horizon = check_positive("horizon", horizon)
        if mixer is None:
            mixer, mixer_kwargs = MIXER, {**MIXER_KWARGS, **(mixer_kwargs or {})}
        self.embed = nn.Linear(context, d_model)
        self.dropout = nn.Dropout(dropout)
        layers = {**LAYERS, "dropout": dropout, **layers}
        self.backbone = Backbone(d_model, n_layers, mixer, mixer_kwargs, **layers)
        self.head = nn.Linear(d_model, horizon)

    def forward(self, x: Tensor) -> Tensor:
        """Maps a context (B, L, C) to a forecast (B, h, C), for any number of series.

        Raises:
            ConfigError: for a context of another length.
        """
        if x.shape[1] != self.context:
            raise ConfigError(f"the model takes a context of {self.context} rows, got {x.shape[1]}")
        level = x.mean(1, keepdim=True).detach()
        spread = (x.var(1, keepdim=True, correction=0) + _EPS).sqrt()
        e = self.dropout(self.embed(((x - level) / spread).transpose(1, 2)))
        z, _ = self.backbone(e, keep_states=False)
        return self.head(z).transpose(1, 2) * spread + level
