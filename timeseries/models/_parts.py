"""Parts that Informer and Autoformer share: embeddings, feed-forward pair, projections of heads."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longseq.core.checks import check_divisible, check_positive
from longseq.core.errors import ConfigError

MAX_POSITIONS = 5000


def conv3(x: Tensor, weight: Tensor, bias: Tensor | None, circular: bool) -> Tensor:
    """Convolves (B, L, D) along L with a kernel of 3.

    Args:
        x: input (B, L, D).
        weight: (D', D, 3).
        bias: (D',) or None.
        circular: as published: the first position sees the last one, and each its right neighbour.
            Otherwise a position sees itself and the two before it, with the first value repeated in
            front.
    """
    u = x.transpose(1, 2)
    u = F.pad(u, (1, 1), mode="circular") if circular else F.pad(u, (2, 0), mode="replicate")
    return F.conv1d(u, weight, bias).transpose(1, 2)


class TokenEmbedding(nn.Module):
    """A convolution of the values, (B, L, C) to (B, L, D).

    Args:
        channels: C.
        d_model: D.
        bias: whether it has one.
        compat: the published circular padding.
    """

    def __init__(self, channels: int, d_model: int, bias: bool, compat: bool) -> None:
        super().__init__()
        self.tokenConv = nn.Conv1d(channels, d_model, 3, bias=bias)
        nn.init.kaiming_normal_(self.tokenConv.weight, mode="fan_in", nonlinearity="leaky_relu")
        self.compat = compat

    def forward(self, x: Tensor) -> Tensor:
        """Returns (B, L, D)."""
        return conv3(x, self.tokenConv.weight, self.tokenConv.bias, self.compat)


class PositionTable(nn.Module):
    """Sines and cosines of the position, a buffer (1, 5000, D)."""

    pe: Tensor

    def __init__(self, d_model: int) -> None:
        super().__init__()
        position = torch.arange(MAX_POSITIONS).float().unsqueeze(1)
        rates = (torch.arange(0, d_model, 2).float() * -(math.log(10000.0) / d_model)).exp()
        table = torch.zeros(MAX_POSITIONS, d_model)
        table[:, 0::2] = torch.sin(position * rates)
        table[:, 1::2] = torch.cos(position * rates)
        self.register_buffer("pe", table.unsqueeze(0))


class TimeEmbedding(nn.Module):
    """A linear map of the calendar features, (B, L, F) to (B, L, D)."""

    def __init__(self, features: int, d_model: int, bias: bool) -> None:
        super().__init__()
        self.embed = nn.Linear(features, d_model, bias=bias)


class DataEmbedding(nn.Module):
    """Values plus calendar plus, where asked, position: (B, L, C) and (B, L, F) to (B, L, D).

    Args:
        channels: C.
        features: F.
        d_model: D.
        dropout: on the sum.
        positions: whether the position is added; its table is in the checkpoint either way.
        bias: whether the convolution and the linear map have one.
        compat: see ``TokenEmbedding``.
    """

    def __init__(
        self,
        channels: int,
        features: int,
        d_model: int,
        dropout: float,
        positions: bool,
        bias: bool,
        compat: bool,
    ) -> None:
        super().__init__()
        self.value_embedding = TokenEmbedding(channels, d_model, bias, compat)
        self.position_embedding = PositionTable(d_model)
        self.temporal_embedding = TimeEmbedding(features, d_model, bias)
        self.positions, self.dropout = positions, nn.Dropout(dropout)

    def forward(self, x: Tensor, mark: Tensor) -> Tensor:
        """Returns (B, L, D)."""
        z = self.value_embedding(x) + self.temporal_embedding.embed(mark)
        if self.positions:
            z = z + self.position_embedding.pe[:, : x.shape[1]]
        return self.dropout(z)


class HeadProjections(nn.Module):
    """Queries, keys and values of H heads, and the map back: what every attention layer has.

    Args:
        d_model: D.
        n_heads: H, a divisor of D.
    """

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        check_divisible("d_model", d_model, "n_heads", n_heads)
        self.n_heads = n_heads
        self.query_projection = nn.Linear(d_model, d_model)
        self.key_projection = nn.Linear(d_model, d_model)
        self.value_projection = nn.Linear(d_model, d_model)
        self.out_projection = nn.Linear(d_model, d_model)

    def heads(self, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns queries of x (B, H, L, E), and keys and values of memory (B, H, S, E)."""
        maps = (
            (self.query_projection, x),
            (self.key_projection, memory),
            (self.value_projection, memory),
        )
        q, k, v = (one(z).unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for one, z in maps)
        return q, k, v


class FeedForward(nn.Module):
    """Mixin of the pointwise pair ``conv1`` and ``conv2``, stored as convolutions of width 1.

    Args:
        d_model: D.
        d_ff: hidden width.
        dropout: after each map.
        bias: whether the maps have one.
    """

    def __init__(self, d_model: int, d_ff: int, dropout: float, bias: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(d_model, d_ff, 1, bias=bias)
        self.conv2 = nn.Conv1d(d_ff, d_model, 1, bias=bias)
        self.dropout = nn.Dropout(dropout)

    def feed_forward(self, x: Tensor) -> Tensor:
        """Maps every position on its own."""
        hidden = F.gelu(F.linear(x, self.conv1.weight.squeeze(-1), self.conv1.bias))
        return self.dropout(
            F.linear(self.dropout(hidden), self.conv2.weight.squeeze(-1), self.conv2.bias)
        )


def check_lengths(context: int, label: int, horizon: int) -> None:
    """Checks the lengths of an encoder-decoder forecaster.

    Raises:
        ConfigError: for a label longer than the context, or more positions than the table has.
    """
    if not 1 <= label <= context:
        raise ConfigError(f"label ({label}) must lie between 1 and the context ({context})")
    if max(context, label + horizon) > MAX_POSITIONS:
        raise ConfigError(f"context and label + horizon must not exceed {MAX_POSITIONS} rows")


def check_calendar(features: int) -> None:
    """Checks the number of calendar features of a forecaster that cannot do without them.

    Raises:
        ConfigError: for none, as of times that are whole numbers.
    """
    if features == 0:
        raise ConfigError(
            "the model reads the calendar, and the times are whole numbers: give dates, or take a "
            "model that needs none (mixer_forecaster)"
        )
    check_positive("features", features)
