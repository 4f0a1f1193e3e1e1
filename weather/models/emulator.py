"""The emulator: a history of predictors to a field a year, through any mixer of the core."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from longseq.core.backbone import Backbone
from longseq.core.checks import check_choice, check_positive
from longseq.core.errors import ConfigError
from longseq.core.mixers import State
from longseq.core.ops.linear_scan import linear_scan

Linear = Literal["auto", "lps", "lagged", "learned", "none"]


class FieldEmulator(nn.Module):
    """Predictors (B, T, K) to fields (B, T, Y, X): year t sees the predictors of years up to t.

        field_t = W x_t + c  +  Patterns · head(backbone(embed(x))_t)

    The first two terms are linear pattern scaling; the rest is what the history adds, spread over
    ``rank`` spatial patterns that are learnt. With ``linear="lagged"`` or "auto" x is joined by its
    exponential filters f_t = k f_{t-1} + (1 - k) x_t, k = exp(-1 / lag), f_0 = x_0, so that the
    linear part has a memory too.

    Args:
        height: rows of the grid Y.
        width: columns of the grid X.
        predictors: K.
        d_model: width D of the backbone.
        n_layers: layers.
        mixer: a mixer's name or a pattern of names.
        mixer_kwargs: the mixer's hyper-parameters.
        mlp_ratio: hidden width of the MLPs as a multiple of D; 0 for none.
        dropout: on residual branches and before the head.
        rank: number of spatial patterns of the non-linear part.
        linear: "lps" keeps W and c as least squares gave them, "lagged" likewise on the predictors
            and their filters, "auto" has the regressors of "lagged" and is one or the other by
            what ``set_linear`` is given, "learned" trains them, "none" leaves them out.
        lags: time constants of the filters in years.
    """

    weight: Tensor
    bias: Tensor

    def __init__(
        self,
        height: int,
        width: int,
        predictors: int = 1,
        d_model: int = 32,
        n_layers: int = 2,
        mixer: str | Sequence[str | Sequence[Any]] = "s5",
        mixer_kwargs: Mapping[str, Any] | None = None,
        mlp_ratio: float = 2.0,
        dropout: float = 0.0,
        rank: int = 8,
        linear: Linear = "lps",
        lags: Sequence[float] = (5.0, 50.0),
    ) -> None:
        super().__init__()
        sizes = {"height": height, "width": width, "predictors": predictors, "rank": rank}
        for name, value in sizes.items():
            check_positive(name, value)
        check_choice("linear", linear, Linear)
        self.lags = tuple(float(lag) for lag in lags) if linear in ("auto", "lagged") else ()
        if any(not lag > 0 for lag in self.lags):
            raise ConfigError(f"lags are years above zero, got {list(lags)}")
        self.height, self.width, self.predictors, self.linear = height, width, predictors, linear
        self.embed = nn.Linear(predictors, d_model)
        self.backbone = Backbone(d_model, n_layers, mixer, mixer_kwargs, mlp_ratio, "rms", dropout)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(d_model, rank)
        self.patterns = nn.Linear(rank, height * width, bias=linear == "none")
        nn.init.normal_(self.patterns.weight, std=rank**-0.5)
        if linear != "none":
            # The network starts as pattern scaling alone.
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)
        columns = predictors * (1 + len(self.lags))
        start = {
            "weight": torch.zeros(height * width, columns),
            "bias": torch.zeros(height * width),
        }
        for part, zeros in start.items():
            if linear == "learned":
                self.register_parameter(part, nn.Parameter(zeros))
            else:
                self.register_buffer(part, zeros)

    def set_linear(self, weight: Tensor, bias: Tensor) -> None:
        """Sets the linear part.

        Args:
            weight: slopes (Y·X, K) of the predictors alone, or (Y·X, K · (1 + number of lags)).
            bias: intercepts (Y·X).
        """
        with torch.no_grad():
            self.weight.zero_()[:, : weight.shape[1]].copy_(weight)
            self.bias.copy_(bias)

    def forward(self, x: Tensor, states: list[State] | None = None) -> tuple[Tensor, list[State]]:
        """Maps a history, or the next part of one.

        Args:
            x: predictors (B, T, K).
            states: from the part before; None at the start.

        Returns:
            Fields (B, T, Y, X) and the states after the last year.
        """
        own, inner = None, states
        if self.lags and states is not None:
            own, inner = states[-1]["filters"], states[:-1]
        z, after = self.backbone(self.embed(x), inner)
        y = self.patterns(self.head(self.dropout(z)))
        if self.linear != "none":
            regressors, own = self.with_lags(x, own)
            y = y + nn.functional.linear(regressors, self.weight, self.bias)
        if self.lags:
            after = [*after, {"filters": own}]
        return y.unflatten(-1, (self.height, self.width)), after

    def with_lags(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Returns predictors beside their exponential filters, and the filters' last values.

        Args:
            x: predictors (B, T, K).
            state: the filters before x (B, K · number of lags); None starts from x's first values.
        """
        if not self.lags:
            return x, None
        every = x.repeat(1, 1, len(self.lags))
        lags = torch.tensor(self.lags, dtype=x.dtype, device=x.device)
        keep = torch.exp(-1 / lags).repeat_interleave(x.shape[-1])
        before = every[:, 0] if state is None else state
        filtered, _ = linear_scan(keep.expand_as(every), (1 - keep) * every, before)
        return torch.cat([x, filtered], -1), filtered[:, -1]
