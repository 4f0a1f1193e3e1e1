"""MemMamba: a Mamba layer that takes notes of what matters and reads them again."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longseq.core.checks import check_positive
from longseq.core.mixers._attention import attention, positions_in_pack
from longseq.core.mixers.base import State, recurrent_dtype, register_mixer, segment_resets
from longseq.core.mixers.mamba import Mamba
from longseq.core.ops.exported import is_open


@register_mixer("memmamba")
class MemMamba(Mamba):
    """Mamba with state summaries (arXiv 2510.03279: note block and cross-token attention).

        z_t = Mamba(x)_t
        i_t = σ(w_i x_t + b_i);   where i_t > ½ the note n_t = i_t W_n x_t joins the pool
        y_t = z_t + σ(w_r z_t + b_r) W_o Σ_s a_s W_v n_s over the last P notes,
        a = softmax_s((W_q z_t)ᵀ W_k n_s / √d) over them and an empty note

    What a state that decays has lost is read from the notes; what is noted is learned through i.
    Cost grows with L · P. The published model reads its pool before the state space, where a second
    threshold asks for it, and every few layers the pools of the layers below too. A layer behind
    our contract sees its own input alone, which carries what lower layers recalled; and reading
    behind the state space, by a gate without threshold, computes all positions at once.

    Args:
        d_model: width D.
        notes: P, the pool's size.
        d_note: width d of a note.
        d_state: size N of the state per channel.
        d_conv: width of the causal convolution.
        expand: the inner width is ``expand · d_model``.
        mamba: further hyper-parameters of ``mamba``; None for none.

    Raises:
        ConfigError: if a value is out of range.
    """

    def __init__(
        self,
        d_model: int,
        notes: int = 32,
        d_note: int = 64,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        mamba: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(d_model, d_state=d_state, d_conv=d_conv, expand=expand, **(mamba or {}))
        self.notes = check_positive("notes", notes)
        self.d_note = check_positive("d_note", d_note)
        self.importance_proj = nn.Linear(d_model, 1)
        self.note_proj = nn.Linear(d_model, d_note, bias=False)
        self.recall_proj = nn.Linear(d_model, 1)
        self.q_proj = nn.Linear(d_model, d_note, bias=False)
        self.kv_proj = nn.Linear(d_note, 2 * d_note, bias=False)
        self.o_proj = nn.Linear(d_note, d_model, bias=False)

    def init_state(
        self, batch: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> State:
        """Returns Mamba's state, the pool (B, P, d) and how many notes are of this sequence
        (B,)."""
        state = super().init_state(batch, device, dtype)
        device, dtype = self._where(device, dtype)
        pool = torch.zeros(
            batch, self.notes, self.d_note, device=device, dtype=recurrent_dtype(dtype)
        )
        seen = torch.zeros(batch, device=device, dtype=torch.long)
        return {**state, "notes": pool, "taken": seen}

    def forward(
        self, x: Tensor, state: State | None = None, segment_ids: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Mixes a whole sequence or the next chunk of one; see ``Mixer.forward``."""
        state = self.init_state(len(x), x.device, x.dtype) if state is None else state
        z, after = super().forward(x, state, segment_ids)
        read, pool, taken = self._recall(x, z, state, segment_resets(segment_ids))
        y = z + torch.sigmoid(self.recall_proj(z)) * self.o_proj(read)
        return y, {**after, "notes": pool.to(state["notes"].dtype), "taken": taken}

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        """See ``Mixer.step``."""
        y, state = self(x_t.unsqueeze(1), state)
        return y.squeeze(1), state

    def _recall(
        self, x: Tensor, z: Tensor, state: State, resets: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns what every position reads from the notes up to it (B, L, d), the pool behind the
        last position, and how many notes of it are of the last sequence."""
        length, size = x.shape[1], self.notes
        logit = self.importance_proj(x)
        noted = logit.squeeze(-1) > 0
        notes = torch.sigmoid(logit) * self.note_proj(x)
        order = (~noted).long().argsort(dim=1, stable=True)  # what is noted lies in front
        notes = notes.gather(1, order.unsqueeze(-1).expand(-1, -1, self.d_note))
        notes = torch.cat([state["notes"].to(notes.dtype), notes], 1)  # (B, P + L, d)
        count = noted.long().cumsum(1)  # up to each position
        mine = state["taken"].unsqueeze(1) + count
        if resets is not None:
            place = torch.arange(length, device=x.device)
            start = place - positions_in_pack(resets, place.new_zeros(len(x)), length)
            before = F.pad(count, (1, 0)).gather(1, start)  # noted before the sequence began
            mine = torch.where(resets.cumsum(1) > 0, count - before, mine)
        mine = mine.clamp(max=size)
        block = length if is_open(length) else min(size, length)
        spare = 0 if is_open(length) else -length % block
        q, here, mine_padded = (
            F.pad(t, (0, 0, 0, spare))
            for t in (self.q_proj(z), *(c.unsqueeze(-1) for c in (count, mine)))
        )
        if is_open(length):
            q, here, mine_padded = (t.unsqueeze(1) for t in (q, here, mine_padded))
        else:
            q, here, mine_padded = (t.unflatten(1, (-1, block)) for t in (q, here, mine_padded))
        # A block's queries see the pool as it was before the block, and at most a note each since.
        base = (
            F.pad(count, (1, spare))[:, :length:block] if not is_open(length) else count[:, :1] * 0
        )
        index = base.unsqueeze(-1) + torch.arange(size + block, device=x.device)
        index = index.clamp(max=notes.shape[1] - 1)
        picked = notes.gather(1, index.flatten(1).unsqueeze(-1).expand(-1, -1, self.d_note))
        k, v = self.kv_proj(picked.unflatten(1, index.shape[1:])).chunk(2, -1)
        end = size + here - base[:, :, None, None]
        at = torch.arange(size + block, device=x.device)
        hidden = (at >= end) | (at < end - mine_padded)
        # An empty note, so that there is something to read where nothing has been noted.
        k, v = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1))
        bias = q.new_zeros(()).expand(hidden.shape).masked_fill(hidden, -torch.inf)
        read = attention(q, k, v, F.pad(bias, (0, 1)))
        last = count[:, -1:] + torch.arange(size, device=x.device)
        pool = notes.gather(1, last.unsqueeze(-1).expand(-1, -1, self.d_note))
        return read.flatten(1, 2)[:, :length], pool, mine[:, -1]
