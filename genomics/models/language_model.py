"""A DNA language model: base embedding, the core's backbone, and a head over the vocabulary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from longseq.core.backbone import Backbone
from longseq.core.mixers import State
from longseq.genomics.data.tokenizer import BASES, PADDED_VOCAB_SIZE
from longseq.genomics.models.kmers import KmerEmbedding


class DNALanguageModel(nn.Module):
    """Predicts every next base from all bases before it; a single base at a time, in chunks, or
    whole.

    Args:
        d_model: width D.
        n_layers: number of layers.
        mixer: a mixer's name or a pattern of names, see ``Backbone``.
        mixer_kwargs: the mixer's hyper-parameters.
        mlp_ratio: hidden width of the MLPs as a multiple of D, or one for each mixer; 0 for none.
        norm: "rms", "layer" or "layer_nobias".
        dropout: on residual branches.
        tie_embeddings: whether the head shares the embedding's weights.
        vocab_size: tokens, padding included.
        mlp: "gelu" or "geglu", see ``Backbone``.
        kmer: add an embedding of the last k bases to that of the base; 0 for none.
        only_bases: give tokens other than A, C, G and T no probability.
    """

    def __init__(
        self,
        d_model: int = 128,
        n_layers: int = 4,
        mixer: str | Sequence[str | Sequence[Any]] = "mamba",
        mixer_kwargs: Mapping[str, Any] | None = None,
        mlp_ratio: float | Mapping[str, float] = 0.0,
        norm: Literal["rms", "layer", "layer_nobias"] = "rms",
        dropout: float = 0.0,
        tie_embeddings: bool = True,
        vocab_size: int = PADDED_VOCAB_SIZE,
        mlp: Literal["gelu", "geglu"] = "gelu",
        kmer: int = 0,
        only_bases: bool = False,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, d_model)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.kmers = KmerEmbedding(kmer, d_model) if kmer else None
        self.backbone = Backbone(
            d_model, n_layers, mixer, mixer_kwargs, mlp_ratio, norm, dropout, mlp
        )
        self.mask: Tensor | None
        mask = torch.full((vocab_size,), -1e4)  # e^-10000 is 0, and no gradient is NaN
        mask[list(BASES)] = 0.0
        self.register_buffer("mask", mask if only_bases else None, persistent=False)
        self.lm_head = nn.Linear(d_model, vocab_size, bias=False)
        if tie_embeddings:
            self.lm_head.weight = self.embedding.weight

    def forward(
        self,
        input_ids: Tensor,
        states: list[State] | None = None,
        segment_ids: Tensor | None = None,
        keep_states: bool = True,
    ) -> tuple[Tensor, list[State]]:
        """Runs a whole sequence or the next chunk of one.

        Args:
            input_ids: token ids (B, L).
            states: from the previous chunk; None at the start.
            segment_ids: see ``Mixer.forward``.
            keep_states: whether states are returned; those of long convolutions are as long as the
                input.

        Returns:
            Logits of the next token (B, L, V) and the states after the last position (none without
            ``keep_states``).
        """
        x, words = self.embedding(input_ids), None
        if self.kmers is not None:
            own = None if states is None else states[-1]
            states = None if states is None else states[:-1]
            added, words = self.kmers(input_ids, own, segment_ids)
            x = x + added
        x, states = self.backbone(x, states, segment_ids, keep_states)
        return self._head(x), states if words is None or not keep_states else [*states, words]

    def _head(self, x: Tensor) -> Tensor:
        logits = self.lm_head(x)
        return logits if self.mask is None else logits + self.mask

    def step(self, input_ids: Tensor, states: list[State]) -> tuple[Tensor, list[State]]:
        """Runs one position: input_ids (B,) to logits (B, V)."""
        x = self.embedding(input_ids)
        if self.kmers is None:
            x, states = self.backbone.step(x, states)
            return self._head(x), states
        added, words = self.kmers(input_ids.unsqueeze(1), states[-1])
        x, states = self.backbone.step(x + added.squeeze(1), states[:-1])
        return self._head(x), [*states, words]

    def init_states(self, batch: int, dtype: torch.dtype | None = None) -> list[State]:
        """Returns the states at the start of a sequence."""
        states = self.backbone.init_states(batch, dtype=dtype)
        return states if self.kmers is None else [*states, self.kmers.init_state(batch)]
