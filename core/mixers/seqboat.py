"""SeqBoat: attention that runs only where a gate asks for it, over a bounded working memory."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from longseq.core.mixers._attention import chunk_attention, positions_in_pack
from longseq.core.mixers._averaged import Averaged
from longseq.core.mixers.base import State, register_mixer, segment_resets
from longseq.core.ops.arguments import readable


@register_mixer("seqboat")
class SeqBoat(Averaged):
    """Sparse modular activation of a gated attention unit (arXiv 2306.11197: sparse modular
    activation, SeqBoat's layer, and its working memory).

        X' = EMA(X),   p_t = σ(w X'_t + b),   position t is active where p_t > ½
        Z, R, V = SiLU(W X'),  Q, K = κ_q Z + μ_q, κ_k Z + μ_k                at active positions
        O_t = softmax(Q_t K_sᵀ / √z + b_n) V_s over the last W active positions, n of them between
        Y_t = SiLU(W_x X'_t + p_t [t active] W_h (R_t · O_t) + X_t)

    The moving average runs everywhere; what is active is packed, goes through the attention unit
    and is put back, so that projections and attention cost what is active. The gradient reaches the
    gate through p. The state is the average's and the keys and values of the last W - 1 active
    positions: a working memory that reaches as far back as activations are rare.

    Args:
        d_model: width D.
        d_attention: width z of queries and keys.
        d_value: width of values; None for 2 D.
        d_ema: dimensions n of the average per channel.
        window: active positions W that an active one sees, itself included.

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
        self.gate_proj = nn.Linear(d_model, 1)
        self.mx_proj = nn.Linear(d_model, d_attention + 2 * self.d_value)  # rows: Z, R, V
        self.hx_proj = nn.Linear(d_model, d_model)
        self.h_proj = nn.Linear(self.d_value, d_model)
        self._make_attention()

    def activated(
        self, x: Tensor, state: State | None = None, segment_ids: Tensor | None = None
    ) -> Tensor:
        """Returns where the attention unit runs, bool (B, L): its mean is the share of activated
        positions.

        Args:
            x: input (B, L, D).
            state: what the previous chunk returned, or None.
            segment_ids: integers (B, L), or None.
        """
        state = self.init_state(len(x), x.device, x.dtype) if state is None else state
        averaged, _ = self.ema(x, state["ema"], segment_resets(segment_ids))
        active: Tensor = self.gate_proj(averaged).squeeze(-1) > 0
        return active

    def forward(
        self, x: Tensor, state: State | None = None, segment_ids: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Mixes a whole sequence or the next chunk of one; see ``Mixer.forward``."""
        resets = segment_resets(segment_ids)
        state = self.init_state(len(x), x.device, x.dtype) if state is None else state
        averaged, ema = self.ema(x, state["ema"], resets)
        logit = self.gate_proj(averaged).squeeze(-1)
        active = logit > 0
        number = torch.zeros_like(active, dtype=torch.long)
        number = number if resets is None else resets.cumsum(1)  # of each position's sequence
        memory = (state["k"], state["v"], state["seen"])
        # Short sequences go through the unit whole. Long ones row by row, for how much is active
        # in one row must not change how another is computed.
        if readable(x, active) and x.shape[1] > 2 * self.window:
            counts = active.sum(1).clamp(min=1).tolist()
            rows = []
            for row, count in enumerate(counts):
                one = slice(row, row + 1)
                own = tuple(t[one] for t in memory)
                rows.append(self._attend(averaged[one], active[one], number[one], own, count))
            h, k, v, seen = (torch.cat(parts) for parts in zip(*rows))
        else:
            h, k, v, seen = self._attend(averaged, active, number, memory, x.shape[1])
        mixed = self.hx_proj(averaged) + torch.sigmoid(logit).unsqueeze(-1) * h + x
        after = {
            "ema": ema.to(state["ema"].dtype),
            "k": k.to(state["k"].dtype),
            "v": v.to(state["v"].dtype),
            "seen": seen,
        }
        return silu(mixed), after

    def _attend(
        self,
        averaged: Tensor,
        active: Tensor,
        number: Tensor,
        memory: tuple[Tensor, ...],
        most: int,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Runs the unit over the active positions alone.

        Args:
            averaged: X' (B, L, D).
            active: bool (B, L).
            number: of each position's sequence, 0 for that which goes on (B, L).
            memory: keys, values and their number before position 0.
            most: room for active positions, at least as many as any row has.

        Returns:
            What is added (B, L, D), zero elsewhere; and the memory behind the last position.
        """
        index = (~active).long().argsort(dim=1, stable=True)[:, :most]
        there = active.gather(1, index)
        packed = averaged.gather(1, index.unsqueeze(-1).expand(-1, -1, averaged.shape[2]))
        z, gate, v = silu(self.mx_proj(packed)).split(
            [self.d_attention, self.d_value, self.d_value], -1
        )
        q, k = (z * kappa + mu for kappa, mu in zip(self.kappa.unbind(), self.mu.unbind()))
        keys, values, seen = memory
        k, v = torch.cat([keys.to(k.dtype), k], 1), torch.cat([values.to(v.dtype), v], 1)
        own = number.gather(1, index)
        resets = own != torch.nn.functional.pad(own[:, :-1], (1, 0))
        reach = positions_in_pack(resets, seen, most).clamp(max=self.window - 1)
        h = self.h_proj(gate * chunk_attention(q, k, v, reach, self.relative))
        h = h.masked_fill(~there.unsqueeze(-1), 0.0)
        room = h.new_zeros(*averaged.shape[:2], h.shape[2])
        placed = room.scatter(1, index.unsqueeze(-1).expand(-1, -1, h.shape[2]), h)
        # The packed ones that are not active lie behind those that are.
        last = active.sum(1, keepdim=True) + torch.arange(self.window - 1, device=h.device)
        k, v = (t.gather(1, last.unsqueeze(-1).expand(-1, -1, t.shape[2])) for t in (k, v))
        end = number[:, -1:]
        more = (active & (number == end)).sum(1) + seen * (end.squeeze(1) == 0)
        return placed, k, v, more.clamp(max=self.window - 1)
