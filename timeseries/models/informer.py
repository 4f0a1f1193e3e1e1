"""Informer: ProbSparse attention, distilling encoder and one-shot decoder
(https://arxiv.org/abs/2012.07436)."""

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


def _sparse_count(factor: int, length: int) -> int:
    """Returns min(L, factor · ⌈ln L⌉), of one row that one."""
    return min(length, max(1, factor * math.ceil(math.log(length))))


class ProbAttention(HeadProjections):
    """Attention of the queries that stand out; the others get an average of the values.

    A query stands out by M = max_s q·k_s - Σ_s q·k_s / L over a random sample of keys.

    Args:
        d_model: D.
        n_heads: H.
        factor: the number of sampled keys and of chosen queries is factor · ⌈ln L⌉.
        masked: the decoder's: the cumulative sum of the values instead of their mean, and keys up
            to the query. As published, which queries stand out is decided with later keys.
        mix: as published: the heads are laid out along time before the last map.
        compat: draw the sample from torch's global stream, as published; otherwise the lengths fix
            it.
    """

    def __init__(
        self, d_model: int, n_heads: int, factor: int, masked: bool, mix: bool, compat: bool
    ) -> None:
        super().__init__(d_model, n_heads)
        self.factor, self.masked, self.mix, self.compat = factor, masked, mix, compat

    def _sample(self, keys: int, queries: int, count: int) -> Tensor:
        if self.compat:
            return torch.randint(keys, (queries, count))
        return torch.randint(keys, (queries, count), generator=torch.Generator().manual_seed(0))

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        """Returns (B, L, D)."""
        q, k, v = self.heads(x, memory)
        length, keys = q.shape[2], k.shape[2]
        index = self._sample(keys, length, _sparse_count(self.factor, keys)).to(q.device)
        sampled = torch.einsum("bhle,bhlue->bhlu", q, k[:, :, index])
        measure = sampled.amax(-1) - sampled.sum(-1) / keys
        chosen = measure.topk(_sparse_count(self.factor, length), sorted=False).indices.unsqueeze(
            -1
        )
        top = q.gather(2, chosen.expand(-1, -1, -1, q.shape[-1]))
        scores = top @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        if self.masked:
            scores = scores.masked_fill(torch.arange(keys, device=q.device) > chosen, -math.inf)
            rest = v.cumsum(2)
        else:
            rest = v.mean(2, keepdim=True).expand(-1, -1, length, -1)
        out = rest.scatter(2, chosen.expand(-1, -1, -1, v.shape[-1]), scores.softmax(-1) @ v)
        if not self.mix:
            out = out.transpose(1, 2)
        return self.out_projection(out.reshape(x.shape))


class FullAttention(HeadProjections):
    """Exact softmax attention.

    Args:
        d_model: D.
        n_heads: H.
        dropout: on the weights.
        causal: whether a position sees only keys up to its own.
    """

    def __init__(self, d_model: int, n_heads: int, dropout: float, causal: bool) -> None:
        super().__init__(d_model, n_heads)
        self.p, self.causal = dropout, causal

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        """Returns (B, L, D)."""
        q, k, v = self.heads(x, memory)
        p = self.p if self.training else 0.0
        out = F.scaled_dot_product_attention(q, k, v, dropout_p=p, is_causal=self.causal)
        return self.out_projection(out.transpose(1, 2).reshape(x.shape))


class EncoderLayer(FeedForward):
    """norm(x + attention(x)), then norm(x + ff(x))."""

    def __init__(self, attention: nn.Module, d_model: int, d_ff: int, dropout: float) -> None:
        super().__init__(d_model, d_ff, dropout, bias=True)
        self.attention = attention
        self.norm1, self.norm2 = nn.LayerNorm(d_model), nn.LayerNorm(d_model)

    def forward(self, x: Tensor) -> Tensor:
        """Returns (B, L, D)."""
        x = self.norm1(x + self.dropout(self.attention(x, x)))
        return self.norm2(x + self.feed_forward(x))


class DistilLayer(nn.Module):
    """Halves the length: convolution, batch norm, ELU, max-pooling of 3 every 2.

    Args:
        d_model: D.
        compat: the published circular convolution.
    """

    def __init__(self, d_model: int, compat: bool) -> None:
        super().__init__()
        self.downConv = nn.Conv1d(d_model, d_model, 3)
        self.norm = nn.BatchNorm1d(d_model)
        self.compat = compat

    def forward(self, x: Tensor) -> Tensor:
        """Returns (B, ⌈L/2⌉, D)."""
        z = conv3(x, self.downConv.weight, self.downConv.bias, self.compat).transpose(1, 2)
        return F.max_pool1d(F.elu(self.norm(z)), 3, stride=2, padding=1).transpose(1, 2)


class Encoder(nn.Module):
    """Attention layers with, between them, distilling layers."""

    def __init__(self, layers: list[EncoderLayer], distil: list[DistilLayer], d_model: int) -> None:
        super().__init__()
        self.attn_layers = nn.ModuleList(layers)
        self.conv_layers = nn.ModuleList(distil)
        self.norm = nn.LayerNorm(d_model)

    def forward(self, x: Tensor) -> Tensor:
        """Returns (B, L', D)."""
        for i, layer in enumerate(self.attn_layers):
            x = layer(x)
            if i < len(self.conv_layers):
                x = self.conv_layers[i](x)
        return self.norm(x)


class DecoderLayer(FeedForward):
    """Self-attention, attention to the encoder, feed-forward; each added and normalised."""

    def __init__(
        self,
        self_attention: nn.Module,
        cross_attention: nn.Module,
        d_model: int,
        d_ff: int,
        dropout: float,
    ) -> None:
        super().__init__(d_model, d_ff, dropout, bias=True)
        self.self_attention, self.cross_attention = self_attention, cross_attention
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(d_model) for _ in range(3))

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        """Returns (B, L, D)."""
        x = self.norm1(x + self.dropout(self.self_attention(x, x)))
        x = self.norm2(x + self.dropout(self.cross_attention(x, memory)))
        return self.norm3(x + self.feed_forward(x))


class Decoder(nn.Module):
    """Decoder layers and a norm."""

    def __init__(self, layers: list[DecoderLayer], d_model: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(d_model)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        """Returns (B, L, D)."""
        for layer in self.layers:
            x = layer(x, memory)
        return self.norm(x)


class Informer(nn.Module):
    """Context (B, L, C) and calendars to forecast (B, h, C).

    The decoder reads the last ``label`` rows of the context and zeros for the horizon. By default a
    row of the decoder sees no later row, no convolution wraps round, the decoder's self-attention
    is exact, and the sample of keys is fixed: the same input gives the same forecast, whatever else
    is in the batch (in training the distilling layers' batch norms still share statistics).

    ``compat=True`` is the published model: circular convolutions, masked ProbSparse attention whose
    heads are then laid out along time, and samples from torch's global random stream, in evaluation
    too. The state dict is the published one in both cases.

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
        factor: see ``ProbAttention``.
        dropout: everywhere.
        distil: whether the encoder halves the length between its layers.
        compat: the published behaviour.

    Raises:
        ConfigError: for sizes that do not fit.
    """

    def __init__(
        self,
        channels: int,
        context: int = 96,
        horizon: int = 24,
        label: int = 48,
        features: int = 4,
        d_model: int = 512,
        n_heads: int = 8,
        e_layers: int = 2,
        d_layers: int = 1,
        d_ff: int = 2048,
        factor: int = 5,
        dropout: float = 0.05,
        distil: bool = True,
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
        ):
            check_positive(name, value)
        check_lengths(context, label, horizon)
        check_calendar(features)
        self.horizon, self.label = horizon, label

        def embedding() -> DataEmbedding:
            return DataEmbedding(
                channels, features, d_model, dropout, positions=True, bias=True, compat=compat
            )

        def sparse(masked: bool) -> ProbAttention:
            return ProbAttention(d_model, n_heads, factor, masked, mix=masked, compat=compat)

        def full(causal: bool) -> FullAttention:
            return FullAttention(d_model, n_heads, dropout, causal)

        self.enc_embedding, self.dec_embedding = embedding(), embedding()
        encoders = [EncoderLayer(sparse(False), d_model, d_ff, dropout) for _ in range(e_layers)]
        distils = [DistilLayer(d_model, compat) for _ in range(e_layers - 1)] if distil else []
        self.encoder = Encoder(encoders, distils, d_model)
        decoders = [
            DecoderLayer(
                sparse(True) if compat else full(True), full(False), d_model, d_ff, dropout
            )
            for _ in range(d_layers)
        ]
        self.decoder = Decoder(decoders, d_model)
        self.projection = nn.Linear(d_model, channels)

    def forward(self, x: Tensor, x_mark: Tensor, y_mark: Tensor) -> Tensor:
        """Returns the forecast (B, h, C).

        Args:
            x: context (B, L, C).
            x_mark: its calendar features (B, L, F).
            y_mark: those of the horizon (B, h, F).
        """
        memory = self.encoder(self.enc_embedding(x, x_mark))
        known = x[:, -self.label :]
        start = torch.cat([known, known.new_zeros(len(x), self.horizon, x.shape[2])], dim=1)
        mark = torch.cat([x_mark[:, -self.label :], y_mark], dim=1)
        out = self.projection(self.decoder(self.dec_embedding(start, mark), memory))
        return out[:, -self.horizon :]
