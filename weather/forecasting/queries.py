"""The field at any place and time from observations at others: attention over differences."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longseq.core.checks import check_divisible, check_number, check_positive
from longseq.core.errors import ArgumentError, ConfigError


class Attention(nn.Module):
    """Multi-head attention whose logits have a part from the differences of the coordinates.

    Args:
        width: channels D.
        heads: H.
        pair: channels of a pair's features.
    """

    def __init__(self, width: int, heads: int, pair: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_x, self.norm_y = nn.RMSNorm(width), nn.RMSNorm(width)
        self.q, self.kv = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.bias = nn.Linear(pair, heads)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.RMSNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor, y: Tensor, pair: Tensor) -> Tensor:
        """Returns x (B, M, D) with what it took from y (B, N, D).

        Args:
            x: that asks.
            y: that is asked.
            pair: features of the differences (B, M, N, P).
        """

        def split(z: Tensor) -> Tensor:
            return z.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        key, value = self.kv(self.norm_y(y)).chunk(2, -1)
        bias = self.bias(pair).permute(0, 3, 1, 2)
        made = F.scaled_dot_product_attention(
            split(self.q(self.norm_x(x))), split(key), split(value), attn_mask=bias
        )
        x = x + self.out(made.transpose(1, 2).flatten(2))
        return x + self.mlp(x)


class QueryModel(nn.Module):
    """Observations (value, place, time) and questions (place, time) to values.

    Observations attend to each other and questions to observations, in every layer; coordinates
    enter only as Fourier features of the differences between two points, round the domain. So
    predictions do not depend on the order of the observations, nor on where the domain and the
    clock begin (a transformer neural process, arXiv 2207.04179, translation-equivariant as in
    2406.12409).

    Args:
        channels: C of a value.
        width: channels inside.
        n_layers: layers.
        heads: of the attention.
        waves: wavenumbers of the Fourier features along either axis.
        duration: time in frames that is 1 in the features.
    """

    def __init__(
        self,
        channels: int = 2,
        width: int = 48,
        n_layers: int = 2,
        heads: int = 8,
        waves: int = 8,
        duration: float = 8.0,
    ) -> None:
        super().__init__()
        sizes = {"channels": channels, "width": width, "n_layers": n_layers}
        for name, value in {**sizes, "heads": heads, "waves": waves}.items():
            check_positive(name, value)
        check_divisible("width", width, "heads", heads)
        if not check_number("duration", duration) > 0:
            raise ConfigError(f"duration must be above zero, got {duration}")
        self.channels, self.waves, self.duration = channels, waves, duration
        pair = 32
        self.pair = nn.Sequential(
            nn.Linear(4 * waves + 2, pair), nn.GELU(), nn.Linear(pair, pair), nn.GELU()
        )
        self.stem = nn.Linear(channels, width)
        self.ask = nn.Parameter(torch.randn(width))
        self.among = nn.ModuleList(Attention(width, heads, pair) for _ in range(n_layers - 1))
        self.across = nn.ModuleList(Attention(width, heads, pair) for _ in range(n_layers))
        self.head = nn.Sequential(nn.RMSNorm(width), nn.Linear(width, channels))

    def _pairs(self, of: Tensor, to: Tensor) -> Tensor:
        """Returns the features of differences (B, M, N, P)."""
        gap = to[:, None] - of[:, :, None]
        number = torch.arange(1, self.waves + 1, dtype=gap.dtype, device=gap.device)
        turn = (2 * math.pi * gap[..., :2, None] * number).flatten(-2)
        time = gap[..., 2:] / self.duration
        features = torch.cat([turn.sin(), turn.cos(), time, time.square()], -1)
        # Coordinates may be finer than the parameters: of bfloat16, 8 frames have steps of 1/16.
        made = self.pair(features.to(self.ask.dtype))
        assert isinstance(made, Tensor)
        return made

    def forward(self, values: Tensor, where: Tensor, ask: Tensor) -> Tensor:
        """Predicts values.

        Args:
            values: observed (B, N, C), N ≥ 1.
            where: their rows and columns in sides of the domain, and times in frames (B, N, 3).
            ask: likewise for the questions (B, Q, 3).

        Returns:
            (B, Q, C).

        Raises:
            ArgumentError: without observations, or for shapes that do not fit, or values that are
                not finite.
        """
        if values.dim() == 3 and values.shape[1] == 0:
            raise ArgumentError("no observations: there must be one at least")
        fits = values.dim() == 3 and values.shape[2] == self.channels
        fits = fits and where.shape == (*values.shape[:2], 3)
        if not fits or ask.dim() != 3 or ask.shape[0] != len(values) or ask.shape[2] != 3:
            raise ArgumentError(
                f"values must be (B, N, {self.channels}), where (B, N, 3) and ask (B, Q, 3), got "
                f"{tuple(values.shape)}, {tuple(where.shape)} and {tuple(ask.shape)}"
            )
        if not all(bool(one.isfinite().all()) for one in (values, where, ask)):
            raise ArgumentError("observations and questions must be finite: leave out what is not")
        among = self._pairs(where, where) if len(self.among) else None
        across = self._pairs(ask, where)
        x, asked = self.stem(values), self.ask.expand(*ask.shape[:2], -1)
        for i, layer in enumerate(self.across):
            asked = layer(asked, x, across)
            if i < len(self.among):
                x = self.among[i](x, x, among)
        return self.head(asked)
