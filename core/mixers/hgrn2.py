"""HGRN2: a gated linear recurrence whose state is widened by outer products."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, silu

from longseq.core.checks import check_divisible, check_positive
from longseq.core.errors import ConfigError
from longseq.core.mixers.base import Mixer, State, recurrent_dtype, register_mixer, segment_resets
from longseq.core.ops.backends import Backend, check_backend
from longseq.core.ops.linear_attention import linear_attention
from longseq.core.ops.precision import bounded


@register_mixer("hgrn2")
class HGRN2(Mixer):
    """Hierarchically gated recurrence with state expansion (arXiv 2404.07904, eq. 7).

        f_t = β + (1 - β) σ(W_f x_t)
        S_t = diag(f_t) S_{t-1} + (1 - f_t) i_tᵀ,   i_t = W_i x_t
        y_t = W_o RMSNorm(S_tᵀ q_t / √K),           q_t = SiLU(W_q x_t)

    The input gate is what the forget gate leaves. The lower bound β of the forget gates grows with
    depth in the published models, so that upper layers remember longer. Parameters are named and
    shaped as in flash-linear-attention's layer.

    Args:
        d_model: width D.
        n_heads: number of heads H; a head's keys and values are D / H wide.
        lower_bound: β, of all forget gates; at least 0 and below 1.
        norm_eps: added to the mean square in the norm.
        chunk_size: positions per chunk of the operator; changes speed only.
        backend: of the operator; see ``longseq.core.ops.backends``.

    Raises:
        ConfigError: if ``n_heads`` does not divide the width or a value is out of range.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int = 4,
        lower_bound: float = 0.0,
        norm_eps: float = 1e-5,
        chunk_size: int = 64,
        backend: Backend = "auto",
    ) -> None:
        super().__init__(d_model)
        self.d_head = check_divisible("d_model", d_model, "n_heads", n_heads)
        if not 0 <= lower_bound < 1:
            raise ConfigError(f"lower_bound must be at least 0 and below 1, got {lower_bound!r}")
        self.n_heads, self.lower_bound = n_heads, float(lower_bound)
        self.chunk_size = check_positive("chunk_size", chunk_size)
        self.backend = check_backend(backend)
        self.q_proj = nn.Linear(d_model, d_model, bias=False)
        self.f_proj = nn.Linear(d_model, d_model, bias=False)
        self.i_proj = nn.Linear(d_model, d_model, bias=False)
        self.g_norm = nn.RMSNorm(d_model, eps=norm_eps)
        self.o_proj = nn.Linear(d_model, d_model, bias=False)

    def init_state(
        self, batch: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> State:
        """Returns the matrix state (B, H, K, V), at least float32."""
        device, dtype = self._where(device, dtype)
        shape = (batch, self.n_heads, self.d_head, self.d_head)
        return {"kv": torch.zeros(shape, device=device, dtype=recurrent_dtype(dtype))}

    def forward(
        self, x: Tensor, state: State | None = None, segment_ids: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Mixes a whole sequence or the next chunk of one; see ``Mixer.forward``."""
        shape = (self.n_heads, self.d_head)
        gate = self.f_proj(x)
        gate = gate.to(recurrent_dtype(gate.dtype)).unflatten(-1, shape)
        bound = self.lower_bound
        # 1 - f without the cancellation of taking f from 1, and log f without that of 1 + small.
        kept = (1 - bound) * torch.sigmoid(-gate)
        log_forget = torch.log1p(-kept) if bound else logsigmoid(gate)
        o, kv = linear_attention(
            silu(self.q_proj(x)).unflatten(-1, shape),
            kept.to(x.dtype),
            self.i_proj(x).unflatten(-1, shape),
            log_forget,
            initial_state=None if state is None else state["kv"],
            resets=segment_resets(segment_ids),
            chunk_size=self.chunk_size,
            backend=self.backend,
        )
        o = bounded(o.flatten(2).to(self.g_norm.weight.dtype))
        return self.o_proj(self.g_norm(o)), {"kv": kv}
