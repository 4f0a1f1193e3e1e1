"""A DNA language model: base embedding, the core's backbone, and a head over the vocabulary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from longseq.core.backbone import Backbone
from longseq.core.mixers import State
from longseq.genomics.data.tokenizer import PADDED_VOCAB_SIZE


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
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, d_model)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.backbone = Backbone(
            d_model, n_layers, mixer, mixer_kwargs, mlp_ratio, norm, dropout, mlp
        )
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
        x, states = self.backbone(self.embedding(input_ids), states, segment_ids, keep_states)
        return self.lm_head(x), states

    def step(self, input_ids: Tensor, states: list[State]) -> tuple[Tensor, list[State]]:
        """Runs one position: input_ids (B,) to logits (B, V)."""
        x, states = self.backbone.step(self.embedding(input_ids), states)
        return self.lm_head(x), states

    def init_states(self, batch: int, dtype: torch.dtype | None = None) -> list[State]:
        """Returns the states at the start of a sequence."""
        return self.backbone.init_states(batch, dtype=dtype)
