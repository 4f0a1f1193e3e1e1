"""What a whole sequence is: a DNA encoder, a pooled vector, and a linear map of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from longseq.core.errors import ConfigError, did_you_mean
from longseq.genomics.data.tokenizer import PAD, A, C, G, T
from longseq.genomics.models.language_model import DNALanguageModel

Pooling = Literal["mean", "max", "last", "center"]


def reverse_complement_rows(input_ids: Tensor, lengths: Tensor) -> Tensor:
    """Returns each row's opposite strand, padding at its right again.

    Args:
        input_ids: (B, L).
        lengths: (B,), the row's own positions.
    """
    table = torch.arange(256, device=input_ids.device)
    table[[A, C, G, T]] = torch.tensor([T, G, C, A], device=input_ids.device)
    at = lengths[:, None] - 1 - torch.arange(input_ids.shape[1], device=input_ids.device)
    turned = table[input_ids].gather(1, at.clamp(min=0))
    return torch.where(at >= 0, turned, PAD)


class SequenceModel(nn.Module):
    """A linear map of the pooled output of a DNA encoder.

        f(x) = W·pool(encoder(x)) + b;   with both strands (f(x) + f(rc(x))) / 2

    so that a sequence and its reverse complement get the same answer exactly (post-hoc symmetry,
    arXiv 2403.03234, section 4.2).

    Args:
        encoder: arguments of ``DNALanguageModel``.
        outputs: numbers per sequence.
        pool: "mean" or "max" over the positions, the "last" one, or the "center" one (L // 2 from
            0), which says where something is that stands in the middle of every sequence.
        both_strands: see above.
        dropout: on the pooled vector.

    Raises:
        ConfigError: for an unknown pool.
    """

    def __init__(
        self,
        encoder: Mapping[str, Any],
        outputs: int,
        pool: Pooling = "mean",
        both_strands: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if pool not in get_args(Pooling):
            raise ConfigError(f"no pool named {pool!r}; {did_you_mean(pool, get_args(Pooling))}")
        self.encoder = DNALanguageModel(**encoder)
        # The words of the language model are not asked for: its head takes no part.
        self.encoder.lm_head = nn.Identity()  # type: ignore[assignment]
        self.pool, self.both_strands = pool, both_strands
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(self.encoder.backbone.d_model, outputs)

    def forward(self, input_ids: Tensor, lengths: Tensor) -> Tensor:
        """Returns (B, outputs) of sequences (B, L) with their lengths (B,)."""
        once = self._one(input_ids, lengths)
        if not self.both_strands:
            return once
        return (once + self._one(reverse_complement_rows(input_ids, lengths), lengths)) / 2

    def _one(self, input_ids: Tensor, lengths: Tensor) -> Tensor:
        ragged = bool((lengths != input_ids.shape[1]).any())
        given = lengths if ragged and not self.encoder.backbone.causal else None
        x = self.encoder.hidden(input_ids, keep_states=False, lengths=given)[0]
        if self.pool in ("last", "center"):
            at = lengths - 1 if self.pool == "last" else lengths // 2
            pooled = x[torch.arange(len(x), device=x.device), at]
        else:
            inside = torch.arange(x.shape[1], device=x.device) < lengths[:, None]
            if self.pool == "mean":
                pooled = (x * inside[..., None]).sum(1) / lengths[:, None]
            else:
                pooled = x.masked_fill(~inside[..., None], -torch.inf).amax(1)
        return self.output(self.dropout(pooled))
