"""Forgetting attention: softmax attention whose scores fade by data-dependent forget gates."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from longseq.core.mixers._attention import positions_in_pack, rotate
from longseq.core.mixers.attention import Attention
from longseq.core.mixers.base import State, recurrent_dtype, register_mixer, segment_resets
from longseq.core.ops.linear_scan import linear_scan

# Biases made at a time, in float64: 128 MiB.
_BIASES = 1 << 24


@register_mixer("forgetting_attention")
class ForgettingAttention(Attention):
    """Attention with a forget gate (FoX, arXiv 2503.02130, eq. 5-7).

        f_t = σ(W_f x_t + b)
        y_t = W_o · concat_h Σ_{s ≤ t} softmax_s(q_t k_sᵀ / √P + Σ_{s < l ≤ t} log f_l) v_s

    The gate takes the place of position information. Parameters are named and shaped as in
    flash-linear-attention's layer. The state is the keys and values of all positions so far,
    (B, T, H_kv, P) each, and the log-forget gates between each of them and the last one, (B, T, H);
    after a pack whose last sequences differ in length, ``seen`` (B,) tells how many are the row's
    own.

    Args:
        d_model: width D.
        n_heads: number of query heads H.
        n_kv_heads: number of key and value heads, a divisor of ``n_heads``; None for as many as
            query heads.
        d_head: width of a head P; None for D / H.
        rope_base: base of rotary frequencies; None for none, as published.
        bias: whether the query, key and value projections have a bias.
        dropout: probability of dropping an attention weight in training.

    Raises:
        ConfigError: if the widths do not divide, or a value is out of range.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int = 8,
        n_kv_heads: int | None = None,
        d_head: int | None = None,
        rope_base: float | None = None,
        bias: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(d_model, n_heads, n_kv_heads, d_head, rope_base, bias, dropout)
        self.f_proj = nn.Linear(d_model, n_heads)

    def state_size(self, length: int) -> int:
        """Returns the number of values that one row carries after ``length`` positions."""
        return length * (2 * self.n_kv_heads * self.d_head + self.n_heads)

    def init_state(
        self, batch: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> State:
        """Returns an empty cache."""
        device, dtype = self._where(device, dtype)
        empty = torch.zeros(batch, 0, self.n_kv_heads, self.d_head, device=device, dtype=dtype)
        gates = torch.zeros(batch, 0, self.n_heads, device=device, dtype=recurrent_dtype(dtype))
        return {"k": empty, "v": empty.clone(), "f": gates}

    def forward(
        self, x: Tensor, state: State | None = None, segment_ids: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Mixes a whole sequence or the next chunk of one; see ``Mixer.forward``."""
        resets = segment_resets(segment_ids)
        state = self.init_state(len(x), x.device, x.dtype) if state is None else state
        q, k, v = self.project(x)
        batch, length, past = len(x), x.shape[1], state["k"].shape[1]
        seen = state.get("seen", torch.full((batch,), past, device=x.device))
        positions = positions_in_pack(resets, seen, length)
        q, k = rotate(q, positions, self.rope_base), rotate(k, positions, self.rope_base)
        k = torch.cat([state["k"].to(k.dtype), k], 1)
        v = torch.cat([state["v"].to(v.dtype), v], 1)
        gates = self.f_proj(x)
        total = self._totals(logsigmoid(gates.to(recurrent_dtype(gates.dtype))), resets)
        # Totals of the past, as seen from before position 0: what has faded since counts down.
        totals = torch.cat([-state["f"].to(total.dtype), total], 1)
        y = self._attend(q, k, v, totals, positions)
        faded = (total[:, -1:] - totals).to(state["f"].dtype)
        after: State = {"k": k, "v": v, "f": faded}
        if resets is not None or "seen" in state:
            kept = positions[:, -1] + 1
            fewest, most = (int(bound) for bound in kept.aminmax())
            after = {name: value[:, -most:] for name, value in after.items()}
            if fewest < most:
                after["seen"] = kept
        return self.o_proj(y.flatten(2)), after

    def _totals(self, log_forget: Tensor, resets: Tensor | None) -> Tensor:
        """Returns the sums of log-forget gates since the sequence or the chunk began (B, L, H), in
        float64: differences of long sums are wanted."""
        exact = torch.float32 if log_forget.device.type == "mps" else torch.float64
        keep = torch.ones(log_forget.shape[:2], device=log_forget.device, dtype=exact)
        keep = keep if resets is None else (~resets).to(exact)
        return linear_scan(keep[..., None].expand(log_forget.shape), log_forget.to(exact))[0]

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, totals: Tensor, positions: Tensor) -> Tensor:
        """Attends by blocks of queries.

        Args:
            q: (B, L, H, P).
            k: keys of the past and of the chunk (B, T, H_kv, P).
            v: their values (B, T, H_kv, P).
            totals: their log-forget totals (B, T, H).
            positions: how many earlier keys a query may see (B, L).
        """
        length, past = q.shape[1], k.shape[1] - q.shape[1]
        block = max(16, min(length, _BIASES // max(1, totals.numel())))
        totals = totals.transpose(1, 2)
        outputs = []
        for lo in range(0, length, block):
            hi = min(lo + block, length)
            keys = past + hi
            queries = torch.arange(past + lo, keys, device=q.device)
            distance = queries[:, None] - torch.arange(keys, device=q.device)
            mask = (distance >= 0) & (distance <= positions[:, lo:hi, None])
            bias = totals[:, :, past + lo : keys, None] - totals[:, :, None, :keys]
            bias = bias.to(q.dtype).masked_fill(~mask.unsqueeze(1), -torch.inf)
            outputs.append(self.attend(q[:, lo:hi], k[:, :keys], v[:, :keys], bias))
        return torch.cat(outputs, 1)
