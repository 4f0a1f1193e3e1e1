"""What mixers of attention over a moving average share: the average, keys and values, the state."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from longseq.core.checks import check_positive
from longseq.core.mixers.base import Mixer, State, recurrent_dtype
from longseq.core.ops.lti import lti_scan


class MovingAverage(nn.Module):
    """Multi-dimensional damped exponential moving average (arXiv 2209.10655, eq. 2-3).

        h_t = p β x_t + (1 - p a) h_{t-1},   y_t = γᵀ h_t / √n + ω x_t,   p, a = σ(δ), σ(α)

    for every channel by itself, h_t of n dimensions.

    Args:
        width: channels D.
        dimensions: n.
    """

    def __init__(self, width: int, dimensions: int) -> None:
        super().__init__()
        shape = (width, dimensions)
        self.delta = nn.Parameter(0.2 * torch.randn(shape))
        self.alpha = nn.Parameter(0.2 * torch.randn(shape))
        signs = torch.ones(dimensions)
        signs[1::2] = -1  # so that the dimensions do not begin alike
        self.beta = nn.Parameter(signs + 0.02 * torch.randn(shape))
        self.gamma = nn.Parameter(torch.randn(shape))
        self.omega = nn.Parameter(torch.randn(width))

    def forward(
        self, x: Tensor, state: Tensor | None, resets: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Returns SiLU of the averages (B, L, D) and the last h (B, D, n).

        Args:
            x: (B, L, D).
            state: h before position 0 (B, D, n); zero if None.
            resets: bool (B, L), true where a new sequence begins; or None.
        """
        p = torch.sigmoid(self.delta.double())
        keep = 1 - p * torch.sigmoid(self.alpha.double())
        scale = 1 / math.sqrt(self.delta.shape[1])
        y, last = lti_scan(x, keep, p * self.beta, scale * self.gamma.double(), state, resets)
        return silu(y + self.omega * x).to(x.dtype), last


class Averaged(Mixer):
    """A moving average X' of the input, of which queries and keys κ Z + μ are made.

    Args:
        d_model: width D.
        d_attention: width z of queries and keys.
        d_value: width of values; None for 2 D.
        d_ema: dimensions n of the average per channel.
        window: positions W that see each other.

    Raises:
        ConfigError: if a value is out of range.
    """

    ssm_parameters: ClassVar[tuple[str, ...]] = (
        "ema.delta",
        "ema.alpha",
        "ema.beta",
        "ema.gamma",
        "ema.omega",
    )

    def __init__(
        self, d_model: int, d_attention: int, d_value: int | None, d_ema: int, window: int
    ) -> None:
        super().__init__(d_model)
        self.d_attention = check_positive("d_attention", d_attention)
        self.d_value = check_positive("d_value", 2 * d_model if d_value is None else d_value)
        self.window = check_positive("window", window)
        self.ema = MovingAverage(d_model, check_positive("d_ema", d_ema))

    def _make_attention(self) -> None:
        """Makes κ, μ and b; last, as the random numbers of the projections come first."""
        self.kappa = nn.Parameter(1 + 0.02 * torch.randn(2, self.d_attention))
        self.mu = nn.Parameter(0.02 * torch.randn(2, self.d_attention))
        self.relative = nn.Parameter(0.02 * torch.randn(self.window))  # b by distance

    def init_state(
        self, batch: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> State:
        """Returns h (B, D, n), the last W - 1 keys (B, W - 1, z) and values (B, W - 1, V), and
        how many of them are of this sequence or chunk (B,)."""
        device, dtype = self._where(device, dtype)
        shape = (batch, *self.ema.delta.shape)
        ema = torch.zeros(shape, device=device, dtype=recurrent_dtype(dtype))
        return {"ema": ema, **self._chunk_state(batch, device, dtype)}

    def _chunk_state(self, batch: int, device: torch.device | str, dtype: torch.dtype) -> State:
        """Returns no keys and values yet, and that there are none."""
        dtype, before = recurrent_dtype(dtype), self.window - 1
        return {
            "k": torch.zeros(batch, before, self.d_attention, device=device, dtype=dtype),
            "v": torch.zeros(batch, before, self.d_value, device=device, dtype=dtype),
            "seen": torch.zeros(batch, device=device, dtype=torch.long),
        }
