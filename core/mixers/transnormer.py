"""TransNormer: Lightning attention, a normalised linear attention with a fixed decay per head; or
attention inside blocks."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm, silu

from longseq.core.checks import check_divisible, check_positive
from longseq.core.errors import ConfigError
from longseq.core.mixers._attention import chunk_attention, positions_in_pack
from longseq.core.mixers.base import Mixer, State, recurrent_dtype, register_mixer, segment_resets
from longseq.core.ops.backends import Backend, check_backend
from longseq.core.ops.linear_attention import linear_attention
from longseq.core.ops.precision import bounded


@register_mixer("transnormer")
class TransNormer(Mixer):
    """Gated linear attention of TransNormerLLM (arXiv 2307.14995, eq. 5-8; Lightning attention-2,
    2401.04658), and NormAttention of TransNormer (2210.10340, eq. 14) without decay and gate.

        S_t = λ_h S_{t-1} + k_t v_tᵀ,   q = SiLU(W_q x),  k = SiLU(W_k x),  v = W_v x
        y_t = W_o (RMSNorm(S_tᵀ q_t) · W_u x_t),    λ_h = exp(-8 h / H · (1 - depth))

    There is no denominator: dividing by the sum of the scores makes the gradients of linear
    attention unbounded, and a norm without weights takes its place.

    Args:
        d_model: width D.
        n_heads: number of heads H.
        depth: place of the layer in its stack, from 0 for the first to 1 for the last: upper layers
            forget less.
        decay: whether the state decays; False for NormAttention.
        gate: whether the output is gated.
        block: positions of a block, for DiagAttention; None for linear attention.
        norm_eps: added to the mean square in the norm.
        chunk_size: positions per chunk of the operator; changes speed only.
        backend: of the operator; see ``longseq.core.ops.backends``.

    Raises:
        ConfigError: if ``n_heads`` does not divide the width or a value is out of range.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int = 8,
        depth: float = 0.0,
        decay: bool = True,
        gate: bool = True,
        block: int | None = None,
        norm_eps: float = 1e-6,
        chunk_size: int = 64,
        backend: Backend = "auto",
    ) -> None:
        super().__init__(d_model)
        self.d_head = check_divisible("d_model", d_model, "n_heads", n_heads)
        if not 0 <= depth <= 1:
            raise ConfigError(f"depth must lie between 0 and 1, got {depth!r}")
        self.n_heads, self.depth, self.decay = n_heads, float(depth), decay
        self.block = None if block is None else check_positive("block", block)
        self.norm_eps = norm_eps
        self.chunk_size = check_positive("chunk_size", chunk_size)
        self.backend = check_backend(backend)
        self.q_proj = nn.Linear(d_model, d_model, bias=False)
        self.k_proj = nn.Linear(d_model, d_model, bias=False)
        self.v_proj = nn.Linear(d_model, d_model, bias=False)
        self.u_proj = nn.Linear(d_model, d_model, bias=False) if gate else None
        self.o_proj = nn.Linear(d_model, d_model, bias=False)

    def init_state(
        self, batch: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> State:
        """Returns the matrix state (B, H, K, V), at least float32; with ``block``, the last
        ``block`` - 1 keys and values (B, block - 1, D) and how many there have been (B,)."""
        device, dtype = self._where(device, dtype)
        if self.block is not None:
            k = torch.zeros(
                batch, self.block - 1, self.d_model, device=device, dtype=recurrent_dtype(dtype)
            )
            seen = torch.zeros(batch, device=device, dtype=torch.long)
            return {"k": k, "v": k.clone(), "seen": seen}
        shape = (batch, self.n_heads, self.d_head, self.d_head)
        return {"kv": torch.zeros(shape, device=device, dtype=recurrent_dtype(dtype))}

    def forward(
        self, x: Tensor, state: State | None = None, segment_ids: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Mixes a whole sequence or the next chunk of one; see ``Mixer.forward``."""
        if self.block is not None:
            return self._diagonal(x, state, segment_resets(segment_ids), self.block)
        shape = (self.n_heads, self.d_head)
        q, k = silu(self.q_proj(x)).unflatten(-1, shape), silu(self.k_proj(x)).unflatten(-1, shape)
        log_decay = None
        if self.decay:
            dtype = recurrent_dtype(q.dtype)
            heads = torch.arange(self.n_heads, device=x.device, dtype=dtype)
            rate = 8.0 / self.n_heads * (1 - self.depth) * heads
            log_decay = -rate.expand(*x.shape[:2], -1)
        o, kv = linear_attention(
            q,
            k,
            self.v_proj(x).unflatten(-1, shape),
            log_decay,
            initial_state=None if state is None else state["kv"],
            resets=segment_resets(segment_ids),
            chunk_size=self.chunk_size,
            backend=self.backend,
        )
        y = rms_norm(bounded(o.flatten(2)), (self.d_model,), eps=self.norm_eps)
        return self.o_proj(y if self.u_proj is None else y * self.u_proj(x)), {"kv": kv}

    def _diagonal(
        self, x: Tensor, state: State | None, resets: Tensor | None, block: int
    ) -> tuple[Tensor, State]:
        """Attends inside blocks of so many positions."""
        state = self.init_state(len(x), x.device, x.dtype) if state is None else state
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        k = torch.cat([state["k"].to(k.dtype), k], 1)
        v = torch.cat([state["v"].to(v.dtype), v], 1)
        positions = positions_in_pack(resets, state["seen"], x.shape[1]) % block
        # Heads one below the other: torch 2.11 exports no four dimensions with open lengths.
        q, k_heads, v_heads = (torch.cat(t.chunk(self.n_heads, -1)) for t in (q, k, v))
        o = chunk_attention(q, k_heads, v_heads, positions.repeat(self.n_heads, 1))
        y = torch.cat(o.chunk(self.n_heads), -1)
        kept = k.shape[1] - (block - 1)
        after = {
            "k": k[:, kept:].to(state["k"].dtype),
            "v": v[:, kept:].to(state["v"].dtype),
            "seen": (positions[:, -1] + 1) % block,
        }
        return self.o_proj(y if self.u_proj is None else y * self.u_proj(x)), after
