"""Sliding-window attention: each position sees the last W, at a cost of L·W and a state of W - 1
keys."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from longseq.core.checks import check_positive
from longseq.core.errors import ConfigError
from longseq.core.mixers._attention import AttentionBase, positions_in_pack
from longseq.core.mixers.base import State, recurrent_dtype, register_mixer, segment_resets
from longseq.core.ops.exported import is_open


@register_mixer("local_attention")
class LocalAttention(AttentionBase):
    """Causal attention to a window (arXiv 2004.05150, section 3.1, the sliding window) with rotary
    positions.

        y_t = W_o · concat_h softmax(q_t k_sᵀ / √P) v_s  over  t - W < s ≤ t

    Queries are cut into blocks of at most W, and a block attends to its own keys and the W - 1
    before it.

    Args:
        d_model: width D.
        window: positions W that a position sees, itself included; at least 2.
        n_heads: number of query heads H.
        n_kv_heads: number of key and value heads, a divisor of ``n_heads``; None for as many as
            query heads.
        d_head: width of a head P; None for D / H.
        rope_base: base of the rotary frequencies; None for no rotary positions.
        bias: whether the query, key and value projections have a bias.
        dropout: probability of dropping an attention weight in training.
        rope_fraction: part of a head's features that is turned, the first ones.
        out_bias: whether the output projection has a bias.
        scale: of the products of queries and keys; None for 1/√P.

    Raises:
        ConfigError: if the widths do not divide, or a value is out of range.
    """

    def __init__(
        self,
        d_model: int,
        window: int = 128,
        n_heads: int = 8,
        n_kv_heads: int | None = None,
        d_head: int | None = None,
        rope_base: float | None = 10_000.0,
        bias: bool = False,
        dropout: float = 0.0,
        rope_fraction: float = 1.0,
        out_bias: bool = False,
        scale: float | None = None,
    ) -> None:
        heads = (n_heads, n_kv_heads, d_head)
        super().__init__(d_model, *heads, rope_base, bias, dropout, rope_fraction, out_bias, scale)
        if check_positive("window", window) < 2:
            raise ConfigError("window must be at least 2: with 1, a position sees itself only")
        self.window = window

    def init_state(
        self, batch: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> State:
        """Returns the last W - 1 keys and values (B, W - 1, H_kv, P) and how many there are so far
        (B,).

        Keys are kept as projected: they are turned by their place in the window when used, so that
        angles stay small however long the stream.
        """
        device, dtype = self._where(device, dtype)
        k = torch.zeros(
            batch,
            self.window - 1,
            self.n_kv_heads,
            self.d_head,
            device=device,
            dtype=recurrent_dtype(dtype),
        )
        return {"k": k, "v": k.clone(), "seen": torch.zeros(batch, device=device, dtype=torch.long)}

    def forward(
        self, x: Tensor, state: State | None = None, segment_ids: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Mixes a whole sequence or the next chunk of one; see ``Mixer.forward``."""
        batch, length = x.shape[:2]
        state = self.init_state(batch, x.device, x.dtype) if state is None else state
        q, k, v = self.project(x)
        earlier = self.window - 1
        k = torch.cat([state["k"].to(k.dtype), k], 1)
        v = torch.cat([state["v"].to(v.dtype), v], 1)
        positions = positions_in_pack(segment_resets(segment_ids), state["seen"], length)
        reach = positions.clamp(max=earlier)
        after: State = {
            "k": k[:, -earlier:].to(state["k"].dtype),
            "v": v[:, -earlier:].to(state["v"].dtype),
            "seen": (positions[:, -1] + 1).clamp(max=earlier),
        }

        if is_open(length):  # one block of all queries: their number is not known
            place = torch.arange(earlier + length, device=x.device)
            q, k = self.rotate(q, place[earlier:]), self.rotate(k, place)
            distance = place[earlier:, None] - place
            mask = ((distance >= 0) & (distance <= reach[:, :, None])).unsqueeze(1)
            return self.o_proj(self.attend(q, k, v, mask).flatten(2)), after
        block = min(self.window, length)
        blocks = -(-length // block)
        spare = blocks * block - length
        width = block + earlier
        q = F.pad(q, (0, 0, 0, 0, 0, spare)).unflatten(1, (blocks, block)).flatten(0, 1)
        k = _windows(F.pad(k, (0, 0, 0, 0, 0, spare)), width, block)
        v = _windows(F.pad(v, (0, 0, 0, 0, 0, spare)), width, block)
        reach = F.pad(reach, (0, spare)).reshape(batch * blocks, 1, block, 1)

        place = torch.arange(width, device=x.device)
        distance = place[earlier:, None] - place
        mask = (distance >= 0) & (distance <= reach)
        q, k = self.rotate(q, place[earlier:]), self.rotate(k, place)
        y = self.attend(q, k, v, mask).reshape(batch, blocks * block, -1)[:, :length]
        return self.o_proj(y), after


def _windows(x: Tensor, width: int, step: int) -> Tensor:
    """Returns windows (B · n, width, H, P) of x (B, length, H, P), one every ``step`` positions."""
    return x.unfold(1, width, step).movedim(-1, 2).flatten(0, 1)
