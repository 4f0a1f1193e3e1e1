"""A DNA language model: the core's language model over the alphabet of the genome."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from longseq.core.errors import ConfigError
from longseq.core.generation import Generation
from longseq.core.language_model import LanguageModel
from longseq.core.mixers import State
from longseq.genomics.data.tokenizer import BASES, PADDED_VOCAB_SIZE
from longseq.genomics.models.kmers import KmerEmbedding


class DNALanguageModel(LanguageModel):
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
        mlp_kwargs: hyper-parameters of the MLPs, see ``Backbone``.
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
        mlp_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(
            vocab_size,
            d_model,
            n_layers,
            mixer,
            mixer_kwargs,
            mlp_ratio,
            norm,
            dropout,
            tie_embeddings,
            mlp,
            mlp_kwargs=mlp_kwargs,
        )
        self.kmers = KmerEmbedding(kmer, d_model) if kmer else None
        self.mask: Tensor | None
        mask = torch.full((vocab_size,), -1e4)  # e^-10000 is 0, and no gradient is NaN
        mask[list(BASES)] = 0.0
        self._bases = mask
        self.register_buffer("mask", mask if only_bases else None, persistent=False)

    def head(self, x: Tensor) -> Tensor:
        """See ``LanguageModel.head``."""
        logits = super().head(x)
        return logits if self.mask is None else logits + self.mask

    def hidden(
        self,
        input_ids: Tensor,
        states: list[State] | None = None,
        segment_ids: Tensor | None = None,
        keep_states: bool = True,
        *,
        attention_mask: Tensor | None = None,
        lengths: Tensor | Sequence[int] | None = None,
    ) -> tuple[Tensor, list[State]]:
        """See ``LanguageModel.hidden``; the last state is that of the words, if there are any.

        Raises:
            ConfigError: for a mask, or for lengths where states are kept, of a model with words.
        """
        if self.kmers is None:
            padding: dict[str, Any] = {"attention_mask": attention_mask, "lengths": lengths}
            return super().hidden(input_ids, states, segment_ids, keep_states, **padding)
        if attention_mask is not None or (lengths is not None and keep_states):
            raise ConfigError(
                f"a model with kmer={self.kmers.k} takes no attention_mask, and lengths only where "
                "no states are kept"
            )
        own = None if states is None else states[-1]
        states = None if states is None else states[:-1]
        added, words = self.kmers(input_ids, own, segment_ids)
        x = self.embed(input_ids) + added
        x, states = self.backbone(x, states, segment_ids, keep_states, lengths=lengths)
        return x, [*states, words] if keep_states else states

    def step(self, input_ids: Tensor, states: list[State]) -> tuple[Tensor, list[State]]:
        """See ``LanguageModel.step``."""
        if self.kmers is None:
            return super().step(input_ids, states)
        added, words = self.kmers(input_ids.unsqueeze(1), states[-1])
        x, states = self.backbone.step(self.embed(input_ids) + added.squeeze(1), states[:-1])
        return self.head(x), [*states, words]

    def init_states(self, batch: int, dtype: torch.dtype | None = None) -> list[State]:
        """See ``LanguageModel.init_states``."""
        states = super().init_states(batch, dtype)
        return states if self.kmers is None else [*states, self.kmers.init_state(batch)]

    def join_states(self, states: Sequence[list[State]]) -> list[State]:
        """See ``LanguageModel.join_states``."""
        if self.kmers is None:
            return super().join_states(states)
        words = torch.cat([each[-1]["tokens"] for each in states])
        return [*super().join_states([each[:-1] for each in states]), {"tokens": words}]

    def generate(self, *args: Any, **settings: Any) -> list[Generation]:
        """See ``LanguageModel.generate``; only A, C, G and T are generated."""
        mask, self.mask = self.mask, self._bases.to(self.lm_head.weight.device)
        try:
            return super().generate(*args, **settings)
        finally:
            self.mask = mask

    def save_pretrained(self, *args: Any, **settings: Any) -> None:
        """See ``LanguageModel.save_pretrained``.

        Raises:
            ConfigError: for a model with words, which that layout does not have.
        """
        if self.kmers is not None:
            raise ConfigError(f"save_pretrained cannot serve a model with kmer={self.kmers.k}")
        super().save_pretrained(*args, **settings)
