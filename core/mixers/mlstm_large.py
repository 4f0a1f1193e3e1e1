"""mLSTM as in xLSTM-7B: the matrix memory at the model's own width, with capped gates and an output
gate."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from longseq.core.checks import check_divisible, check_positive
from longseq.core.errors import ConfigError
from longseq.core.mixers.base import Mixer, State, recurrent_dtype, register_mixer, segment_resets
from longseq.core.ops.backends import Backend, check_backend
from longseq.core.ops.linear_maps import mapped
from longseq.core.ops.mlstm import mlstm
from longseq.core.ops.precision import bounded


class _HeadNorm(nn.Module):
    """Layer norm of every head on its own, (..., H, V) to (..., H·V), in float32 at least."""

    def __init__(self, width: int, eps: float, bias: bool) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, h: Tensor) -> Tensor:
        h = bounded(h.to(recurrent_dtype(h.dtype)))
        y = layer_norm(h, h.shape[-1:], eps=self.eps).flatten(-2) * self.weight
        return y if self.bias is None else y + self.bias


@register_mixer("mlstm_large")
class MLSTMLarge(Mixer):
    """The mLSTM layer of xLSTM-7B (arXiv 2503.13427, section 3).

        q, k, v, o = W_q x, W_k x, W_v x, σ(W_o x);   ĩ, f̃ = c·tanh((W_i x + b_i)/c), likewise f̃
        h = mLSTM(q, k, v, ĩ, f̃)    (``longseq.core.ops.mlstm``)
        y = W_out (o · LayerNorm(h)),   normalised head by head

    Parameters are named and shaped as in the published model with separate ("single") weights.

    Args:
        d_model: width D.
        n_heads: number of heads H.
        qk_dim_factor: width of queries and keys over ``d_model``.
        v_dim_factor: width of values over ``d_model``.
        gate_soft_cap: c, the bound of the gates before their nonlinearities.
        norm_eps: added to the variance in the norm.
        bias: whether the projections beside the gates, and the norm, have a bias.
        chunk_size: positions per chunk of the operator; changes speed only.
        backend: of the operator; see ``longseq.core.ops.backends``.

    Raises:
        ConfigError: if ``n_heads`` does not divide a width, or a value is out of range.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int = 8,
        qk_dim_factor: float = 0.5,
        v_dim_factor: float = 1.0,
        gate_soft_cap: float = 15.0,
        norm_eps: float = 1e-6,
        bias: bool = False,
        chunk_size: int = 64,
        backend: Backend = "auto",
    ) -> None:
        super().__init__(d_model)
        d_key = check_positive("qk_dim_factor · d_model", int(d_model * qk_dim_factor))
        d_value = check_positive("v_dim_factor · d_model", int(d_model * v_dim_factor))
        self.d_key = check_divisible("qk_dim_factor · d_model", d_key, "n_heads", n_heads)
        self.d_value = check_divisible("v_dim_factor · d_model", d_value, "n_heads", n_heads)
        if gate_soft_cap <= 0:
            raise ConfigError(f"gate_soft_cap must be above 0, got {gate_soft_cap!r}")
        self.n_heads, self.gate_soft_cap = n_heads, float(gate_soft_cap)
        self.chunk_size = check_positive("chunk_size", chunk_size)
        self.backend = check_backend(backend)
        self.q = nn.Linear(d_model, d_key, bias=bias)
        self.k = nn.Linear(d_model, d_key, bias=bias)
        self.v = nn.Linear(d_model, d_value, bias=bias)
        self.ogate_preact = nn.Linear(d_model, d_value, bias=bias)
        self.igate_preact = nn.Linear(d_model, n_heads)
        self.fgate_preact = nn.Linear(d_model, n_heads)
        self.multihead_norm = _HeadNorm(d_value, norm_eps, bias)
        self.out_proj = nn.Linear(d_value, d_model, bias=bias)
        for gate in (self.igate_preact, self.fgate_preact):  # independent of the input at first
            nn.init.zeros_(gate.weight)
        nn.init.constant_(self.igate_preact.bias, -10.0)
        with torch.no_grad():
            self.fgate_preact.bias.copy_(torch.linspace(3.0, 6.0, n_heads))

    def init_state(
        self, batch: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> State:
        """Returns C (B, H, K, V), n (B, H, K) and m = -inf (B, H), at least float32."""
        device, dtype = self._where(device, dtype)
        heads, kept = self.n_heads, recurrent_dtype(dtype)
        return {
            "c": torch.zeros(batch, heads, self.d_key, self.d_value, device=device, dtype=kept),
            "n": torch.zeros(batch, heads, self.d_key, device=device, dtype=kept),
            "m": torch.full((batch, heads), -math.inf, device=device, dtype=kept),
        }

    def _gate(self, gate: nn.Module, x: Tensor) -> Tensor:
        value = gate(x)
        value = value.to(recurrent_dtype(value.dtype))
        return self.gate_soft_cap * torch.tanh(value / self.gate_soft_cap)

    def forward(
        self, x: Tensor, state: State | None = None, segment_ids: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Mixes a whole sequence or the next chunk of one; see ``Mixer.forward``."""
        q, k, v = (
            mapped(projection, x).unflatten(-1, (self.n_heads, -1))
            for projection in (self.q, self.k, self.v)
        )
        h, (c, n, m) = mlstm(
            q,
            k,
            v,
            self._gate(self.igate_preact, x),
            self._gate(self.fgate_preact, x),
            None if state is None else (state["c"], state["n"], state["m"]),
            segment_resets(segment_ids),
            self.chunk_size,
            backend=self.backend,
        )
        gate = torch.sigmoid(self.ogate_preact(x))
        out = mapped(self.out_proj, (gate * self.multihead_norm(h)).to(gate.dtype))
        return out, {"c": c, "n": n, "m": m}
