"""Gated linear attention: a matrix state that forgets each key channel at its own, data-dependent
pace."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from longseq.core.checks import check_divisible, check_positive
from longseq.core.errors import ConfigError
from longseq.core.mixers._gated_norm import GatedRMSNorm
from longseq.core.mixers.base import Mixer, State, recurrent_dtype, register_mixer, segment_resets
from longseq.core.ops.backends import Backend, check_backend
from longseq.core.ops.linear_attention import linear_attention
from longseq.core.ops.linear_maps import mapped


@register_mixer("gla")
class GLA(Mixer):
    """Gated linear attention (arXiv 2312.06635, eq. 3 and section 4.4).

        g_t = logsigmoid(W_2 W_1 x_t + b) / τ
        S_t = diag(exp g_t) S_{t-1} + k_t v_tᵀ,   o_t = S_tᵀ q_t / √K
        y = W_o (RMSNorm(o) · SiLU(W_g x)),   normalised head by head

    Parameters are named and shaped as in flash-linear-attention's layer.

    Args:
        d_model: width D.
        n_heads: number of heads H.
        expand_k: width of queries and keys over ``d_model``.
        expand_v: width of values over ``d_model``.
        gate_low_rank_dim: rank of the map to the decays.
        gate_logit_normalizer: τ, which keeps the decays near 1.
        norm_eps: added to the mean square in the norm.
        chunk_size: positions per chunk of the operator; changes speed only.
        backend: of the operator; see ``longseq.core.ops.backends``.

    Raises:
        ConfigError: if ``n_heads`` does not divide the key or value width or a value is out of
            range.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int = 4,
        expand_k: float = 0.5,
        expand_v: float = 1.0,
        gate_low_rank_dim: int = 16,
        gate_logit_normalizer: float = 16.0,
        norm_eps: float = 1e-5,
        chunk_size: int = 64,
        backend: Backend = "auto",
    ) -> None:
        super().__init__(d_model)
        d_key = check_positive("expand_k · d_model", int(d_model * expand_k))
        d_value = check_positive("expand_v · d_model", int(d_model * expand_v))
        self.n_heads = n_heads
        self.d_key = check_divisible("expand_k · d_model", d_key, "n_heads", n_heads)
        self.d_value = check_divisible("expand_v · d_model", d_value, "n_heads", n_heads)
        if gate_logit_normalizer <= 0:
            raise ConfigError(
                f"gate_logit_normalizer must be above 0, got {gate_logit_normalizer!r}"
            )
        self.gate_logit_normalizer = float(gate_logit_normalizer)
        self.chunk_size = check_positive("chunk_size", chunk_size)
        self.backend = check_backend(backend)
        rank = check_positive("gate_low_rank_dim", gate_low_rank_dim)
        self.q_proj = nn.Linear(d_model, d_key, bias=False)
        self.k_proj = nn.Linear(d_model, d_key, bias=False)
        self.v_proj = nn.Linear(d_model, d_value, bias=False)
        self.g_proj = nn.Linear(d_model, d_value, bias=False)
        self.gk_proj = nn.Sequential(nn.Linear(d_model, rank, bias=False), nn.Linear(rank, d_key))
        self.g_norm_swish_gate = GatedRMSNorm(self.d_value, eps=norm_eps)
        self.o_proj = nn.Linear(d_value, d_model, bias=False)

    def init_state(
        self, batch: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> State:
        """Returns the matrix state (B, H, K, V), at least float32."""
        device, dtype = self._where(device, dtype)
        shape = (batch, self.n_heads, self.d_key, self.d_value)
        return {"kv": torch.zeros(shape, device=device, dtype=recurrent_dtype(dtype))}

    def forward(
        self, x: Tensor, state: State | None = None, segment_ids: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Mixes a whole sequence or the next chunk of one; see ``Mixer.forward``."""
        q, k, v, gate, decay = (
            mapped(projection, x).unflatten(-1, (self.n_heads, -1))
            for projection in (self.q_proj, self.k_proj, self.v_proj, self.g_proj, self.gk_proj)
        )
        log_decay = logsigmoid(decay.to(recurrent_dtype(decay.dtype))) / self.gate_logit_normalizer
        o, kv = linear_attention(
            q,
            k,
            v,
            log_decay,
            initial_state=None if state is None else state["kv"],
            resets=segment_resets(segment_ids),
            chunk_size=self.chunk_size,
            backend=self.backend,
        )
        return mapped(self.o_proj, self.g_norm_swish_gate(o, gate).flatten(2)), {"kv": kv}
