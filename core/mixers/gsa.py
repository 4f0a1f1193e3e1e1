"""Gated slot attention: softmax attention to a fixed number of slots that gates write."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, silu

from longseq.core.checks import check_divisible, check_positive
from longseq.core.errors import ConfigError
from longseq.core.mixers.base import Mixer, State, recurrent_dtype, register_mixer, segment_resets
from longseq.core.ops.backends import Backend, check_backend
from longseq.core.ops.chunking import (
    by_blocks,
    chunk_length,
    from_chunks,
    pass_states,
    run_blocks,
    span_sums,
    to_chunks,
)
from longseq.core.ops.exported import exported, is_open
from longseq.core.ops.linear_attention import linear_attention
from longseq.core.ops.precision import autocast_off, bounded


@register_mixer("gsa")
class GatedSlotAttention(Mixer):
    """Gated slot attention (arXiv 2409.07146, eq. 7-9).

        α_t = σ(W_α x_t)^{1/τ},  q, k, v = SiLU(W_q x), SiLU(W_k x), SiLU(W_v x)
        K_t = K_{t-1} diag(α_t) + k_t (1 - α_t)ᵀ,   V_t = diag(α_t) V_{t-1} + (1 - α_t) v_tᵀ
        o_t = V_tᵀ softmax(K_tᵀ q_t),               y_t = W_o RMSNorm(SiLU(o_t))

    K_t and V_t hold M slots per head: a bounded memory whose content is chosen by a softmax. Two
    passes of gated linear attention compute it, the first with a decay per column of its values.
    Parameters are named and shaped as in flash-linear-attention's layer.

    Args:
        d_model: width D.
        n_heads: number of heads H; a head's keys and values are D / H wide.
        n_slots: slots M of a head; None for D / H.
        gate_logit_normalizer: τ, which keeps the decays near 1.
        norm_eps: added to the mean square in the norm.
        chunk_size: positions per chunk of the operators; changes speed only.
        backend: of the second pass; see ``longseq.core.ops.backends``.

    Raises:
        ConfigError: if ``n_heads`` does not divide the width or a value is out of range.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int = 4,
        n_slots: int | None = None,
        gate_logit_normalizer: float = 8.0,
        norm_eps: float = 1e-5,
        chunk_size: int = 64,
        backend: Backend = "auto",
    ) -> None:
        super().__init__(d_model)
        self.d_head = check_divisible("d_model", d_model, "n_heads", n_heads)
        self.n_heads = n_heads
        self.n_slots = check_positive("n_slots", self.d_head if n_slots is None else n_slots)
        if gate_logit_normalizer <= 0:
            raise ConfigError(
                f"gate_logit_normalizer must be above 0, got {gate_logit_normalizer!r}"
            )
        self.gate_logit_normalizer = float(gate_logit_normalizer)
        self.chunk_size = check_positive("chunk_size", chunk_size)
        self.backend = check_backend(backend)
        self.q_proj = nn.Linear(d_model, d_model, bias=False)
        self.k_proj = nn.Linear(d_model, d_model, bias=False)
        self.v_proj = nn.Linear(d_model, d_model, bias=False)
        self.f_proj = nn.Linear(d_model, n_heads * self.n_slots, bias=False)
        self.g_norm = nn.RMSNorm(d_model, eps=norm_eps)
        self.o_proj = nn.Linear(d_model, d_model, bias=False)

    def init_state(
        self, batch: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> State:
        """Returns the slots' keys (B, H, K, M) and values (B, H, M, V), at least float32."""
        device, dtype = self._where(device, dtype)
        shape, dtype = (batch, self.n_heads, self.d_head, self.n_slots), recurrent_dtype(dtype)
        k = torch.zeros(shape, device=device, dtype=dtype)
        return {"k": k, "v": k.mT.contiguous()}

    def forward(
        self, x: Tensor, state: State | None = None, segment_ids: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Mixes a whole sequence or the next chunk of one; see ``Mixer.forward``."""
        state = self.init_state(len(x), x.device, x.dtype) if state is None else state
        resets = segment_resets(segment_ids)
        q, k, v, gate = (
            projection(x).unflatten(-1, (self.n_heads, -1))
            for projection in (self.q_proj, self.k_proj, self.v_proj, self.f_proj)
        )
        log_decay = logsigmoid(gate.to(recurrent_dtype(gate.dtype))) / self.gate_logit_normalizer
        written = -torch.expm1(log_decay)
        scores, keys = _slot_scores(
            silu(q), silu(k), written, log_decay, state["k"], resets, self.chunk_size
        )
        o, values = linear_attention(
            torch.softmax(scores, -1).to(v.dtype),
            written.to(v.dtype),
            silu(v),
            log_decay,
            scale=1.0,
            initial_state=state["v"],
            resets=resets,
            chunk_size=self.chunk_size,
            backend=self.backend,
        )
        normed = self.g_norm(bounded(silu(o.flatten(2)).to(self.g_norm.weight.dtype)))
        return self.o_proj(normed), {"k": keys, "v": values}


class _Scores(NamedTuple):
    q: Tensor
    k: Tensor
    written: Tensor
    log_decay: Tensor
    state: Tensor
    resets: Tensor | None
    chunk_size: int


def _empty(call: _Scores) -> tuple[Tensor, Tensor]:
    return torch.empty_like(call.log_decay), torch.empty_like(call.state)


_OPEN = exported("longseq::slot_scores", _Scores, _empty, lambda call: _slot_scores(*call))


def _slot_scores(
    q: Tensor,
    k: Tensor,
    written: Tensor,
    log_decay: Tensor,
    state: Tensor,
    resets: Tensor | None,
    chunk_size: int,
) -> tuple[Tensor, Tensor]:
    """Runs K_t = K_{t-1} diag(exp g_t) + k_t w_tᵀ and returns K_tᵀ q_t, in chunks.

    Every exponent is a sum of log-decays over a real span, measured from the cuts of halves,
    quarters, … of a chunk, so that nothing overflows.

    Args:
        q: queries (B, L, H, K).
        k: keys (B, L, H, K).
        written: w, the part of each key that a slot takes (B, L, H, M).
        log_decay: g ≤ 0 (B, L, H, M), float32 at least.
        state: K before position 0 (B, H, K, M).
        resets: bool (B, L), true where a new sequence begins; or None.
        chunk_size: positions per chunk.

    Returns:
        The scores (B, L, H, M) in the dtype of g, and the last K.
    """
    if is_open(q.shape[1]):
        y, last = _OPEN(q, k, written, log_decay, state, resets, chunk_size)
        return y, last

    def run(
        q: Tensor, k: Tensor, w: Tensor, g: Tensor, resets: Tensor | None, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        if resets is not None:
            g = g.masked_fill(resets[..., None, None], -torch.inf)
        return _scores_of_block(q.to(g.dtype), k.to(g.dtype), w, g, state.to(g.dtype), chunk_size)

    with autocast_off(q):
        if by_blocks(q.shape[1]):
            return run_blocks(run, (q, k, written, log_decay, resets), state)
        return run(q, k, written, log_decay, resets, state)


def _scores_of_block(
    q: Tensor, k: Tensor, w: Tensor, g: Tensor, state: Tensor, chunk_size: int
) -> tuple[Tensor, Tensor]:
    length = q.shape[1]
    chunk = chunk_length(chunk_size, length)
    q, k, w, g = (to_chunks(t, chunk) for t in (q, k, w, g))  # (B, H, C, T, …)
    spans = span_sums(g)
    products = q @ k.mT
    y = products.diagonal(dim1=-2, dim2=-1).unsqueeze(-1) * w
    for through, behind in spans[:-1]:
        blocks = through.shape[-3:-1]
        early = w.unflatten(-2, blocks)[..., 0::2, :, :] * behind[..., 0::2, :, :].exp()
        pairs = products.unflatten(-1, blocks).unflatten(-3, blocks)[..., 1::2, :, 0::2, :]
        late = pairs.diagonal(dim1=-4, dim2=-2).movedim(-1, -3) @ early
        late = late * through[..., 1::2, :, :].exp()
        y = y + torch.stack([torch.zeros_like(late), late], -3).flatten(-4, -2)
    through, behind = (t.squeeze(-3).exp() for t in spans[-1])
    carried, last = pass_states(state, k.mT @ (w * behind), through[..., -1:, :])
    return from_chunks(y + (q @ carried) * through, length), last
