"""The task of masked language models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from longseq.core.errors import ConfigError
from longseq.genomics.data.tokenizer import BASES, IGNORE_INDEX, MASK, PADDED_VOCAB_SIZE
from longseq.genomics.language_task import LanguageTask
from longseq.genomics.models.masked_model import MaskedDNAModel

_TO_MASK, _TO_RANDOM = 0.8, 0.9  # of the chosen bases: 80% masked, 10% another base, 10% as it is


class MaskedLanguageModel(LanguageTask):
    """Prediction of hidden bases from all others; the metric is bits per hidden base.

    In validation and test the same bases of a window are hidden every time; windows are those of
    ``data.eval_length``, each by itself.

    Args:
        d_model: width D.
        n_layers: number of layers.
        mixer: a mixer's name or a pattern of names or of pairs [name, hyper-parameters].
        mixer_kwargs: the mixer's hyper-parameters.
        mlp_ratio: hidden width of the MLPs as a multiple of D, or one for each mixer; 0 for none.
        norm: "rms", "layer" or "layer_nobias".
        dropout: on residual branches.
        tie_embeddings: whether the head shares the embedding's weights.
        symmetry: "none", "ph", "ps", "ps_swapped" or "ps_heads", see ``MaskedDNAModel``.
        directions: "mixer", "blocks" or "alternating", see ``MaskedDNAModel``.
        mlp: "gelu" or "geglu", see ``Backbone``.
        mlp_kwargs: hyper-parameters of the MLPs, see ``Backbone``.
        vocab_size: tokens; fewer than 16 for published models that have no padding.
        mask: share of the bases that are hidden.
        **recipe: optimiser, schedule, loss and further metrics, see ``BaseTask``.
    """

    def __init__(
        self,
        d_model: int = 128,
        n_layers: int = 4,
        mixer: str | list[Any] = "bidirectional",
        mixer_kwargs: dict[str, Any] | None = None,
        mlp_ratio: float | dict[str, float] = 0.0,
        norm: Literal["rms", "layer", "layer_nobias"] = "rms",
        dropout: float = 0.0,
        tie_embeddings: bool = True,
        symmetry: Literal["none", "ph", "ps", "ps_swapped", "ps_heads"] = "none",
        mask: float = 0.15,
        directions: Literal["mixer", "blocks", "alternating"] = "mixer",
        mlp: Literal["gelu", "geglu"] = "gelu",
        mlp_kwargs: dict[str, Any] | None = None,
        vocab_size: int = PADDED_VOCAB_SIZE,
        **recipe: Any,
    ) -> None:
        super().__init__(**recipe)
        if not 0 < mask < 1:
            raise ConfigError(f"model.mask must lie between 0 and 1, got {mask}")
        self.model = MaskedDNAModel(
            d_model,
            n_layers,
            mixer,
            mixer_kwargs,
            mlp_ratio,
            norm,
            dropout,
            tie_embeddings,
            symmetry,
            vocab_size,
            directions,
            mlp,
            mlp_kwargs,
        )
        self.mask = mask

    def check_data(self, data: Any) -> None:
        """Checks that no row has parts of several records, which this model would read as one."""
        super().check_data(data)
        if getattr(data, "shortest_length", None) is not None:
            raise ConfigError(
                "data.shortest_length packs several sequences into a row: masked models do not "
                "tell them apart; leave it out"
            )

    def forward(self, input_ids: Tensor) -> Tensor:
        """See ``MaskedDNAModel.forward``."""
        return self.model(input_ids)

    def hide(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Hides bases, as BERT does (arXiv 1810.04805, section 3.1).

        Args:
            input_ids: (B, L).

        Returns:
            What the model sees, and the hidden bases at their places, -100 elsewhere.
        """
        stream = None if self.training else torch.Generator().manual_seed(0)
        draw = torch.rand((3, *input_ids.shape), generator=stream).to(input_ids.device)
        bases = torch.isin(input_ids, torch.tensor(BASES, device=input_ids.device))
        chosen = bases & (draw[0] < self.mask)
        random = BASES[0] + (draw[2] * len(BASES)).long()
        seen = torch.where(draw[1] < _TO_RANDOM, random, input_ids)
        seen = torch.where(draw[1] < _TO_MASK, MASK, seen)
        return torch.where(chosen, seen, input_ids), torch.where(chosen, input_ids, IGNORE_INDEX)

    def compute(self, batch: Mapping[str, Tensor]) -> dict[str, Any]:
        """Returns the mean loss in nats per hidden base, and what the metrics need."""
        seen, targets = self.hide(batch["input_ids"])
        logits = self.model(seen)
        return self.score(logits, targets)
