"""Softmax attention with grouped heads and rotary positions: causal with a cache, or
bidirectional."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from longseq.core.errors import ConfigError
from longseq.core.mixers._attention import AttentionBase, positions_in_pack
from longseq.core.mixers.base import State, register_mixer, segment_resets
from longseq.core.ops.linear_maps import mapped

# Queries that share one explicit mask: bounds the mask's memory by 1024 keys-wide rows instead of
# L.
_QUERY_BLOCK = 1024


@register_mixer("attention")
class Attention(AttentionBase):
    """Multi-head attention (arXiv 1706.03762, eq. 1), rotary (2104.09864), with grouped heads
    (2305.13245).

        y = W_o · concat_h softmax(q_h k_hᵀ / √P) v_h,   causal unless ``bidirectional``

    The state is the rotated keys and the values of all positions so far, (B, T, H_kv, P) each,
    right-aligned; after a pack whose last sequences differ in length, ``seen`` (B,) tells how many
    are the row's own.

    Args:
        d_model: width D.
        n_heads: number of query heads H.
        n_kv_heads: number of key and value heads, a divisor of ``n_heads``; None for as many as
            query heads.
        d_head: width of a head P; None for D / H.
        rope_base: base of the rotary frequencies; None for no rotary positions.
        bias: whether the query, key and value projections have a bias.
        dropout: probability of dropping an attention weight in training.
        bidirectional: whether every position sees the whole sequence; there is no state then.
        rope_fraction: part of a head's features that is turned, the first ones.
        out_bias: whether the output projection has a bias.
        scale: of the products of queries and keys; None for 1/√P.

    Raises:
        ConfigError: if the widths do not divide, or a value is out of range.
    """

    finite_state = False

    def __init__(
        self,
        d_model: int,
        n_heads: int = 8,
        n_kv_heads: int | None = None,
        d_head: int | None = None,
        rope_base: float | None = 10_000.0,
        bias: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        rope_fraction: float = 1.0,
        out_bias: bool = False,
        scale: float | None = None,
    ) -> None:
        heads = (n_heads, n_kv_heads, d_head)
        super().__init__(d_model, *heads, rope_base, bias, dropout, rope_fraction, out_bias, scale)
        self.causal = not bidirectional

    def state_size(self, length: int) -> int:
        """Returns the number of values that one row carries after ``length`` positions."""
        return 2 * length * self.n_kv_heads * self.d_head if self.causal else 0

    def init_state(
        self, batch: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> State:
        """Returns an empty cache; nothing at all if the mixer is bidirectional."""
        if not self.causal:
            return {}
        device, dtype = self._where(device, dtype)
        empty = torch.zeros(batch, 0, self.n_kv_heads, self.d_head, device=device, dtype=dtype)
        return {"k": empty, "v": empty.clone()}

    def join_states(self, states: Sequence[State]) -> State:
        """See ``Mixer.join_states``: ``seen`` tells how many positions are a row's own."""
        seen = [
            s["seen"]
            if "seen" in s
            else s["k"].new_full((len(s["k"]),), s["k"].shape[1], dtype=torch.long)
            for s in states
        ]
        joined = super().join_states([{n: v for n, v in s.items() if n != "seen"} for s in states])
        alike = all("seen" not in s and s["k"].shape[1] == joined["k"].shape[1] for s in states)
        return joined if alike else {**joined, "seen": torch.cat(seen)}

    def forward(
        self, x: Tensor, state: State | None = None, segment_ids: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Mixes a whole sequence or the next chunk of one; see ``Mixer.forward``.

        Raises:
            ConfigError: if a state is given to a bidirectional mixer.
        """
        resets = segment_resets(segment_ids)
        if not self.causal:
            if state is not None:
                raise ConfigError(
                    "bidirectional attention sees the whole sequence at once: it takes no state"
                )
            return self._both_ways(x, resets), {}
        q, k, v = self.project(x)
        batch, length = x.shape[:2]
        past = 0 if state is None else state["k"].shape[1]
        seen = None if state is None else state.get("seen")
        positions = torch.arange(past, past + length, device=x.device)
        if resets is not None or seen is not None:
            seen = torch.full((batch,), past, device=x.device) if seen is None else seen
            positions = positions_in_pack(resets, seen, length)
        q, k = self.rotate(q, positions), self.rotate(k, positions)
        if state is not None:
            k = torch.cat([state["k"].to(k.dtype), k], 1)
            v = torch.cat([state["v"].to(v.dtype), v], 1)
        if positions.dim() == 1 and (past == 0 or length == 1):
            y = self.attend(q, k, v, None, is_causal=past == 0)
        else:
            y = self._masked(q, k, v, past, positions)
        after: State = {"k": k, "v": v}
        if positions.dim() == 2:
            kept = positions[:, -1] + 1
            fewest, most = (int(bound) for bound in kept.aminmax())
            after = {"k": k[:, -most:], "v": v[:, -most:]}
            if fewest < most:
                after["seen"] = kept
        return mapped(self.o_proj, y.flatten(2)), after

    def _masked(self, q: Tensor, k: Tensor, v: Tensor, past: int, positions: Tensor) -> Tensor:
        """Attends by blocks of queries, each to as many earlier keys as its position in its
        sequence."""
        outputs = []
        for lo in range(0, q.shape[1], _QUERY_BLOCK):
            hi = min(lo + _QUERY_BLOCK, q.shape[1])
            queries = torch.arange(past + lo, past + hi, device=q.device)
            distance = queries[:, None] - torch.arange(past + hi, device=q.device)
            mask = (distance >= 0) & (distance <= positions[..., lo:hi, None])
            mask = mask if mask.dim() == 2 else mask.unsqueeze(1)
            outputs.append(self.attend(q[:, lo:hi], k[:, : past + hi], v[:, : past + hi], mask))
        return torch.cat(outputs, 1)

    def _both_ways(self, x: Tensor, resets: Tensor | None) -> Tensor:
        q, k, v = self.project(x)
        positions = torch.arange(x.shape[1], device=x.device)
        q, k = self.rotate(q, positions), self.rotate(k, positions)
        if resets is None:
            return mapped(self.o_proj, self.attend(q, k, v, None).flatten(2))
        sequence = resets.cumsum(1)
        outputs = []
        for lo in range(0, x.shape[1], _QUERY_BLOCK):
            mine = sequence[:, lo : lo + _QUERY_BLOCK]
            mask = (mine[:, :, None] == sequence[:, None, :]).unsqueeze(1)
            outputs.append(self.attend(q[:, lo : lo + _QUERY_BLOCK], k, v, mask))
        return mapped(self.o_proj, torch.cat(outputs, 1).flatten(2))
