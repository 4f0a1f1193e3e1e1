"""Mega: a damped moving average in several dimensions, and gated attention inside chunks of it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from longseq.core.mixers._attention import chunk_attention, positions_in_pack
from longseq.core.mixers._averaged import Averaged
from longseq.core.mixers.base import State, register_mixer, segment_resets


@register_mixer("mega")
class Mega(Averaged):
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

    def __init__(
        self,
        d_model: int,
        d_attention: int = 64,
        d_value: int | None = None,
        d_ema: int = 16,
        window: int = 128,
    ) -> None:
        super().__init__(d_model, d_attention, d_value, d_ema, window)
        self.v_proj = nn.Linear(d_model, self.d_value)
        # Rows: φ, Z, γ, Ĥ.
        self.mx_proj = nn.Linear(d_model, 2 * d_model + d_attention + self.d_value)
        self.h_proj = nn.Linear(self.d_value, d_model)
        self._make_attention()

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
