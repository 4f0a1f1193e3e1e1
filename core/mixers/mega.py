"""Mega: a damped moving average in several dimensions, and gated attention inside chunks of it."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from longseq.core.checks import check_positive
from longseq.core.mixers._attention import chunk_attention, positions_in_pack
from longseq.core.mixers.base import Mixer, State, recurrent_dtype, register_mixer, segment_resets
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


@register_mixer("mega")
class Mega(Mixer):
    """Moving average equipped gated attention, in chunks (arXiv 2209.10655, eq. 5-13 and section
    3.5).

        X' = EMA(X),  Z = SiLU(W_z X'),  Q, K = κ_q Z + μ_q, κ_k Z + μ_k,  V = SiLU(W_v X)
        O = softmax(Q Kᵀ / √z + b_{t-s}) V over the earlier positions of the chunk
        Ĥ = SiLU(W_h X' + U_h (SiLU(W_γ X') · O)),  φ = σ(W_φ X'),   Y = φ Ĥ + (1 - φ) X

    A sequence is cut into chunks from its start, and attention stays inside them: its cost grows
    with L, and what is older comes through the moving average. The state is the average's and the
    keys and values of the chunk so far.

    Args:
        d_model: width D.
        d_attention: width z of queries and keys.
        d_value: width of values; None for 2 D.
        d_ema: dimensions n of the average per channel.
        window: positions in a chunk.

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
        self,
        d_model: int,
        d_attention: int = 64,
        d_value: int | None = None,
        d_ema: int = 16,
        window: int = 128,
    ) -> None:
        super().__init__(d_model)
        self.d_attention = check_positive("d_attention", d_attention)
        self.d_value = check_positive("d_value", 2 * d_model if d_value is None else d_value)
        self.window = check_positive("window", window)
        self.ema = MovingAverage(d_model, check_positive("d_ema", d_ema))
        self.v_proj = nn.Linear(d_model, self.d_value)
        # Rows: φ, Z, γ, Ĥ.
        self.mx_proj = nn.Linear(d_model, 2 * d_model + d_attention + self.d_value)
        self.h_proj = nn.Linear(self.d_value, d_model)
        self.kappa = nn.Parameter(1 + 0.02 * torch.randn(2, d_attention))
        self.mu = nn.Parameter(0.02 * torch.randn(2, d_attention))
        self.relative = nn.Parameter(0.02 * torch.randn(window))  # b by distance

    def init_state(
        self, batch: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> State:
        """Returns h (B, D, n), the last ``window`` - 1 keys (B, window - 1, z) and values, and how
        many positions of the chunk have been (B,)."""
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

    def forward(
        self, x: Tensor, state: State | None = None, segment_ids: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Mixes a whole sequence or the next chunk of one; see ``Mixer.forward``."""
        resets = segment_resets(segment_ids)
        state = self.init_state(len(x), x.device, x.dtype) if state is None else state
        averaged, carried = self._average(x, state, resets)
        v = silu(self.v_proj(x))
        update, z, gate, own = self.mx_proj(averaged).split(
            [self.d_model, self.d_attention, self.d_value, self.d_model], -1
        )
        z = silu(z)
        q, k = (z * kappa + mu for kappa, mu in zip(self.kappa.unbind(), self.mu.unbind()))
        before = self.window - 1
        k = torch.cat([state["k"].to(k.dtype), k], 1)
        v = torch.cat([state["v"].to(v.dtype), v], 1)
        positions = positions_in_pack(resets, state["seen"], x.shape[1]) % self.window
        read = chunk_attention(q, k, v, positions, self.relative)
        h = silu(own + self.h_proj(silu(gate) * read))
        mixed = torch.sigmoid(update)
        after: State = {
            **carried,
            "k": k[:, k.shape[1] - before :].to(state["k"].dtype),
            "v": v[:, v.shape[1] - before :].to(state["v"].dtype),
            "seen": (positions[:, -1] + 1) % self.window,
        }
        return mixed * h + (1 - mixed) * x, after

    def _average(self, x: Tensor, state: State, resets: Tensor | None) -> tuple[Tensor, State]:
        """Returns what stands for the past at every position (B, L, D), and its state."""
        averaged, last = self.ema(x, state["ema"], resets)
        return averaged, {"ema": last.to(state["ema"].dtype)}
