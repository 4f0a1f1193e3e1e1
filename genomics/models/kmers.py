"""Embeddings of the last k bases, read whole, in chunks, or a base at a time."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from longseq.core.checks import check_positive
from longseq.core.errors import ConfigError
from longseq.core.mixers import State
from longseq.core.mixers.base import segment_resets
from longseq.genomics.data.tokenizer import PAD, A, T

MOST = 8  # a table of 4^8 rows


class KmerEmbedding(nn.Module):
    """A table with a row for each word of k bases, and one for words with anything else in them.

    Args:
        k: length of a word, 1 … 8.
        d_model: width D.

    Raises:
        ConfigError: if k is out of range.
    """

    def __init__(self, k: int, d_model: int) -> None:
        super().__init__()
        self.k = check_positive("kmer", k)
        if k > MOST:
            raise ConfigError(f"kmer={k}: at most {MOST}, which is a table of {4**MOST:,} rows")
        self.table = nn.Embedding(4**k + 1, d_model)
        nn.init.normal_(self.table.weight, std=0.02)

    def init_state(self, batch: int) -> State:
        """Returns the tokens before the first one: none."""
        device = self.table.weight.device
        return {"tokens": torch.full((batch, self.k - 1), PAD, device=device)}

    def forward(
        self, input_ids: Tensor, state: State | None = None, segment_ids: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Embeds the word that ends at each position.

        Args:
            input_ids: token ids (B, L).
            state: of the previous chunk; None at the start.
            segment_ids: see ``Mixer.forward``; words do not reach over a change of it.

        Returns:
            The embeddings (B, L, D) and the last k - 1 tokens.
        """
        batch, length = input_ids.shape
        before = (self.init_state(batch) if state is None else state)["tokens"]
        ids = torch.cat([before, input_ids], 1)
        known, digits = (ids >= A) & (ids <= T), (ids - A).clamp(0, 3)
        code = torch.zeros_like(input_ids)
        whole = torch.ones_like(input_ids, dtype=torch.bool)
        resets = segment_resets(segment_ids)
        for back in range(self.k):
            low = self.k - 1 - back
            code = code + (digits[:, low : low + length] << 2 * back)
            whole = whole & known[:, low : low + length]
        if resets is not None:
            for _ in range(1, self.k):  # a reset at t - k + 2 … t cuts the word
                whole = whole & ~resets
                resets = nn.functional.pad(resets[:, :-1], (1, 0), value=False)
        code = torch.where(whole, code, 4**self.k)
        tokens = ids[:, ids.shape[1] - (self.k - 1) :]
        if segment_ids is not None and self.k > 1:
            same = nn.functional.pad(segment_ids, (self.k - 1, 0), mode="replicate")
            changed = segment_resets(same)
            assert changed is not None
            later = changed.long().cumsum(1)
            kept = (later == later[:, -1:])[:, -(self.k - 1) :]
            tokens = torch.where(kept, tokens, PAD)
        return self.table(code), {"tokens": tokens}
