"""The state of every base with respect to genes, from an encoder that reads both strands."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from longseq.core.checks import check_positive
from longseq.genomics.data.gene_labels import OTHER_STRAND, STATES
from longseq.genomics.models.language_model import DNALanguageModel
from longseq.genomics.models.sequence_model import reverse_complement_rows


class GeneLabeller(nn.Module):
    """Logits of the states of every base, see ``longseq.genomics.data.gene_labels``.

    With f and b the encoder's vectors at a base when its strand and when the other one is read, rc
    the exchange of the strands' states, and g a perceptron of one hidden layer,

        y = g(f, b) + rc g(b, f)

    so that the reverse complement of a sequence gets the same answer for the other strand exactly,
    and a causal encoder knows both sides of a base.

    Args:
        encoder: arguments of ``DNALanguageModel``.
        hidden: width of g.
        dropout: on the hidden layer.
    """

    def __init__(self, encoder: Mapping[str, Any], hidden: int = 64, dropout: float = 0.0) -> None:
        super().__init__()
        self.encoder = DNALanguageModel(**encoder)
        # The words of the language model are not asked for: its head takes no part.
        self.encoder.lm_head = nn.Identity()  # type: ignore[assignment]
        width = self.encoder.backbone.d_model
        self.head = nn.Sequential(
            nn.Linear(2 * width, check_positive("hidden", hidden)),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, STATES),
        )
        self.exchange: Tensor
        self.register_buffer("exchange", torch.tensor(OTHER_STRAND), persistent=False)

    def forward(self, input_ids: Tensor, lengths: Tensor) -> Tensor:
        """Returns logits (B, L, 7) of sequences (B, L) with their lengths (B,)."""
        at = lengths[:, None] - 1 - torch.arange(input_ids.shape[1], device=input_ids.device)
        back = self._hidden(reverse_complement_rows(input_ids, lengths), lengths)
        rows = torch.arange(len(back), device=back.device)[:, None]
        return self.read(self._hidden(input_ids, lengths), back[rows, at.clamp(min=0)])

    def _hidden(self, input_ids: Tensor, lengths: Tensor) -> Tensor:
        ragged = bool((lengths != input_ids.shape[1]).any())
        given = lengths if ragged and not self.encoder.backbone.causal else None
        return self.encoder.hidden(input_ids, keep_states=False, lengths=given)[0]

    def read(self, forward: Tensor, backward: Tensor) -> Tensor:
        """Returns logits (..., 7) of the encoder's vectors (..., D) of both readings."""
        turned = self.head(torch.cat([backward, forward], -1))[..., self.exchange]
        return self.head(torch.cat([forward, backward], -1)) + turned
