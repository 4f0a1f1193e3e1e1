"""Autoformer: auto-correlation and decomposition into season and trend
(https://arxiv.org/abs/2106.13008)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longseq.core.checks import check_positive
from longseq.timeseries.models._parts import (
    DataEmbedding,
    FeedForward,
    HeadProjections,
    check_calendar,
    check_lengths,
    conv3,
)


def decompose(x: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """Returns what a centred moving average along L leaves, and the average, (B, L, D) each.

    The first and last values are repeated at the ends; an even window reaches one row further
    ahead.
    """
    before, after = (window - 1) // 2, window // 2
    padded = torch.cat([x[:, :1].expand(-1, before, -1), x, x[:, -1:].expand(-1, after, -1)], dim=1)
    trend = F.avg_pool1d(padded.transpose(1, 2), window, 1).transpose(1, 2)
    return x - trend, trend


class SeasonalNorm(nn.Module):
    """Layer norm, less its mean over time."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.layernorm = nn.LayerNorm(d_model)

    def forward(self, x: Tensor) -> Tensor:
        """Returns (B, L, D)."""
        z = self.layernorm(x)
        return z - z.mean(1, keepdim=True)


class AutoCorrelation(HeadProjections):
    """Sums the values at the few delays at which queries and keys correlate most.

    corr_τ = Σ_t q_{t+τ} k_t, averaged over heads and channels; the ⌊factor · ln L⌋ largest, through
    a softmax, weigh the delayed values.

    Args:
        d_model: D.
        n_heads: H.
        factor: see above.
        compat: as published: correlation and delays are circular, the value τ rows *ahead* is
            taken, and in training the whole batch shares the delays of its mean. Otherwise nothing
            wraps round, the value τ rows back is taken (0 where there is none), and every row of
            the batch has its own delays.
    """

    def __init__(self, d_model: int, n_heads: int, factor: int, compat: bool) -> None:
        super().__init__(d_model, n_heads)
        self.factor, self.compat = factor, compat

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        """Returns (B, L, D); the memory is cut, or padded with zeros, to L rows."""
        q, k, v = (z.transpose(2, 3) for z in self.heads(x, memory))  # (B, H, E, L)
        length = q.shape[-1]
        k, v = (F.pad(z[..., :length], (0, max(0, length - z.shape[-1]))) for z in (k, v))
        points = length if self.compat else 2 * length
        spectrum = torch.fft.rfft(q, points) * torch.fft.rfft(k, points).conj()
        corr = torch.fft.irfft(spectrum, points)[..., :length].mean((1, 2))  # (B, L)
        count = max(1, int(self.factor * math.log(length)))
        if self.compat and self.training:
            delays = corr.mean(0).topk(count).indices.expand(len(corr), -1)
            weights = corr.gather(1, delays)
        else:
            weights, delays = corr.topk(count, dim=-1)
        weights = weights.softmax(-1)
        at = torch.arange(length, device=x.device)
        out = torch.zeros_like(v)
        for i in range(count):
            delay = delays[:, i : i + 1]
            place = (at + delay) % length if self.compat else at - delay
            index = place.clamp(min=0)[:, None, None].expand_as(v)
            weight = (weights[:, i : i + 1] * (place >= 0))[:, None, None]
            out = out + weight * v.gather(-1, index)
        return self.out_projection(out.permute(0, 3, 1, 2).reshape(x.shape))


class EncoderLayer(FeedForward):
    """Auto-correlation and feed-forward; after each only the season is kept."""

    def __init__(
        self, attention: nn.Module, d_model: int, d_ff: int, window: int, dropout: float
    ) -> None:
        super().__init__(d_model, d_ff, dropout, bias=False)
        self.attention, self.window = attention, window

    def forward(self, x: Tensor) -> Tensor:
        """Returns (B, L, D)."""
        x, _ = decompose(x + self.dropout(self.attention(x, x)), self.window)
        return decompose(x + self.feed_forward(x), self.window)[0]


class Encoder(nn.Module):
    """Encoder layers and a norm."""

    def __init__(self, layers: list[EncoderLayer], d_model: int) -> None:
        super().__init__()
        self.attn_layers = nn.ModuleList(layers)
        self.norm = SeasonalNorm(d_model)

    def forward(self, x: Tensor) -> Tensor:
        """Returns (B, L, D)."""
        for layer in self.attn_layers:
            x = layer(x)
        return self.norm(x)


class DecoderLayer(FeedForward):
    """As the encoder's, with attention to the encoder; the trends that fall off are returned."""

    def __init__(
        self,
        self_attention: nn.Module,
        cross_attention: nn.Module,
        d_model: int,
        channels: int,
        d_ff: int,
        window: int,
        dropout: float,
        compat: bool,
    ) -> None:
        super().__init__(d_model, d_ff, dropout, bias=False)
        self.self_attention, self.cross_attention = self_attention, cross_attention
        self.projection = nn.Conv1d(d_model, channels, 3, bias=False)
        self.window, self.compat = window, compat

    def forward(self, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the season (B, L, D) and the trend (B, L, C)."""
        x, trend1 = decompose(x + self.dropout(self.self_attention(x, x)), self.window)
        x, trend2 = decompose(x + self.dropout(self.cross_attention(x, memory)), self.window)
        x, trend3 = decompose(x + self.feed_forward(x), self.window)
        return x, conv3(trend1 + trend2 + trend3, self.projection.weight, None, self.compat)


class Decoder(nn.Module):
    """Decoder layers, a norm and the map to the series; trends add up."""

    def __init__(self, layers: list[DecoderLayer], d_model: int, channels: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = SeasonalNorm(d_model)
        self.projection = nn.Linear(d_model, channels)

    def forward(self, x: Tensor, memory: Tensor, trend: Tensor) -> Tensor:
        """Returns season plus trend (B, L, C)."""
        for layer in self.layers:
            x, more = layer(x, memory)
            trend = trend + more
        return trend + self.projection(self.norm(x))


class Autoformer(nn.Module):
    """Context (B, L, C) and calendars to forecast (B, h, C).

    The decoder starts from the season of the last ``label`` rows and zeros for the horizon, and
    from the trend of these rows and the mean of the context. Within the horizon it sees the whole
    calendar, which is known beforehand; nothing after the cutoff but the calendar enters.

    ``compat=True`` is the published model (see ``AutoCorrelation``; its convolutions are circular
    too). The state dict is the published one in both cases.

    Args:
        channels: C, number of series.
        context: L.
        horizon: h.
        label: rows of the context that the decoder reads.
        features: F, number of calendar features: 4 for hourly rows, 5 below an hour, 3 for days.
        d_model: width D.
        n_heads: heads.
        e_layers: encoder layers.
        d_layers: decoder layers.
        d_ff: hidden width of the feed-forward pairs.
        moving_average: rows of the moving average.
        factor: see ``AutoCorrelation``.
        dropout: everywhere.
        compat: the published behaviour.

    Raises:
        ConfigError: for sizes that do not fit.
    """

    def __init__(
        self,
        channels: int,
        context: int = 96,
        horizon: int = 96,
        label: int = 48,
        features: int = 4,
        d_model: int = 512,
        n_heads: int = 8,
        e_layers: int = 2,
        d_layers: int = 1,
        d_ff: int = 2048,
        moving_average: int = 25,
        factor: int = 3,
        dropout: float = 0.05,
        compat: bool = False,
    ) -> None:
        super().__init__()
        for name, value in (
            ("channels", channels),
            ("context", context),
            ("horizon", horizon),
            ("e_layers", e_layers),
            ("d_layers", d_layers),
            ("factor", factor),
            ("moving_average", moving_average),
        ):
            check_positive(name, value)
        check_lengths(context, label, horizon)
        check_calendar(features)
        self.horizon, self.label, self.window = horizon, label, moving_average

        def embedding() -> DataEmbedding:
            return DataEmbedding(
                channels, features, d_model, dropout, positions=False, bias=False, compat=compat
            )

        def correlation() -> AutoCorrelation:
            return AutoCorrelation(d_model, n_heads, factor, compat)

        self.enc_embedding, self.dec_embedding = embedding(), embedding()
        encoders = [
            EncoderLayer(correlation(), d_model, d_ff, moving_average, dropout)
            for _ in range(e_layers)
        ]
        self.encoder = Encoder(encoders, d_model)
        decoders = [
            DecoderLayer(
                correlation(),
                correlation(),
                d_model,
                channels,
                d_ff,
                moving_average,
                dropout,
                compat,
            )
            for _ in range(d_layers)
        ]
        self.decoder = Decoder(decoders, d_model, channels)

    def forward(self, x: Tensor, x_mark: Tensor, y_mark: Tensor) -> Tensor:
        """Returns the forecast (B, h, C).

        Args:
            x: context (B, L, C).
            x_mark: its calendar features (B, L, F).
            y_mark: those of the horizon (B, h, F).
        """
        season, trend = decompose(x, self.window)
        mean = x.mean(1, keepdim=True).expand(-1, self.horizon, -1)
        trend = torch.cat([trend[:, -self.label :], mean], dim=1)
        season = torch.cat([season[:, -self.label :], torch.zeros_like(mean)], dim=1)
        mark = torch.cat([x_mark[:, -self.label :], y_mark], dim=1)
        memory = self.encoder(self.enc_embedding(x, x_mark))
        return self.decoder(self.dec_embedding(season, mark), memory, trend)[:, -self.horizon :]
