"""A DNA language model: the core's language model over the alphabet of the genome."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from longseq.core.language_model import LanguageModel
from longseq.genomics.data.tokenizer import PADDED_VOCAB_SIZE


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
        )
