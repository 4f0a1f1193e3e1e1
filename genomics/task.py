"""Training tasks of genomics: the causal language model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from longseq.core.errors import ConfigError
from longseq.core.mixers import State
from longseq.genomics.data.module import GenomeData
from longseq.genomics.data.tokenizer import IGNORE_INDEX, PADDED_VOCAB_SIZE
from longseq.genomics.language_task import LanguageTask
from longseq.genomics.models.language_model import DNALanguageModel
from longseq.genomics.records import RecordCosts
from longseq.genomics.streaming import Stream, reach


class CausalLanguageModel(LanguageTask):
    """Next-base prediction; metrics in bits per base.

    In validation and test the windows of a region follow each other, and the state is carried from
    one to the next: the figure is that of one pass over the region, whatever the window length.
    Models that cannot carry a state for ever (Hyena, attention) read overlapping windows of their
    own reach instead.

    Args:
        d_model: width D.
        n_layers: number of layers.
        mixer: a mixer's name or a pattern of names or of pairs [name, hyper-parameters].
        mixer_kwargs: the mixer's hyper-parameters.
        mlp_ratio: hidden width of the MLPs as a multiple of D, or one for each mixer; 0 for none.
        norm: "rms", "layer" or "layer_nobias".
        dropout: on residual branches.
        tie_embeddings: whether the head shares the embedding's weights.
        mlp: "gelu" or "geglu", see ``Backbone``.
        kmer: add an embedding of the last k bases to that of the base; 0 for none.
        only_bases: give tokens other than A, C, G and T no probability.
        mlp_kwargs: hyper-parameters of the MLPs, see ``Backbone``.
        vocab_size: tokens; fewer than 16 for published models that have no padding.
        **recipe: optimiser, schedule, loss and further metrics, see ``BaseTask``.
    """

    def __init__(
        self,
        d_model: int = 128,
        n_layers: int = 4,
        mixer: str | list[Any] = "mamba",
        mixer_kwargs: dict[str, Any] | None = None,
        mlp_ratio: float | dict[str, float] = 0.0,
        norm: Literal["rms", "layer", "layer_nobias"] = "rms",
        dropout: float = 0.0,
        tie_embeddings: bool = True,
        mlp: Literal["gelu", "geglu"] = "gelu",
        kmer: int = 0,
        only_bases: bool = False,
        mlp_kwargs: dict[str, Any] | None = None,
        vocab_size: int = PADDED_VOCAB_SIZE,
        **recipe: Any,
    ) -> None:
        super().__init__(**recipe)
        self.model = DNALanguageModel(
            d_model,
            n_layers,
            mixer,
            mixer_kwargs,
            mlp_ratio,
            norm,
            dropout,
            tie_embeddings,
            vocab_size,
            mlp,
            kmer,
            only_bases,
            mlp_kwargs,
        )
        if not self.model.backbone.causal:
            raise ConfigError(f"a causal language model needs causal mixers, got {mixer!r}")
        self._stream_of_region: Stream | None = None
        self._costs = RecordCosts()

    @property
    def window(self) -> int | None:
        """Positions that the model reads at once; None if it carries its state for ever."""
        return reach(self.model, self.facts.get("length"))

    @property
    def positions(self) -> tuple[str, ...]:
        """See ``BaseTask.positions``."""
        for name, why in (("kmer", "look at bases of"), ("loss", "may not be a mean over")):
            if self.hparams.get(name):
                raise ConfigError(f"context_parallel_size: model.{name} {why} several processes")
        return "input_ids", "targets", "segment_ids"

    def forward(
        self,
        input_ids: Tensor,
        states: list[State] | None = None,
        segment_ids: Tensor | None = None,
    ) -> tuple[Tensor, list[State]]:
        """See ``DNALanguageModel.forward``."""
        return self.model(input_ids, states, segment_ids)

    def compute(self, batch: Mapping[str, Tensor]) -> dict[str, Any]:
        """Returns the mean loss in nats per base, and what the metrics need."""
        if "first" in batch:  # validation and test: a region is read from end to end
            if self._stream_of_region is None or bool(batch["first"].any()):
                self._stream_of_region = Stream(self.model, self.window)
            logits = self._stream_of_region.read(batch["input_ids"])
        else:
            logits = self.model(
                batch["input_ids"], None, batch.get("segment_ids"), keep_states=False
            )[0]
        targets = batch["targets"]
        found = self.score(logits, targets, batch.get("weights"))  # repeats may count less
        if "interval" in batch and self._trainer is not None and self.trainer.testing:
            known = targets != IGNORE_INDEX
            scores = torch.where(known, -found["nll"], torch.nan).double().cpu().numpy()
            for row, interval in enumerate(batch["interval"].tolist()):
                self._costs.add(self._region(interval), scores[row])
        return found

    def _region(self, index: int) -> str:
        """Returns the name of a tested region: its record, and where in it if that is a part."""
        if not isinstance(self.data, GenomeData):
            return f"region {index + 1}"
        one = self.data.tested[index]
        whole = one.start == 0 and one.end == self.data.genome.records[one.chrom]
        return one.chrom if whole else f"{one.chrom}:{one.start + 1}-{one.end}"

    def on_test_epoch_start(self) -> None:
        """Begins to count what each record costs."""
        self._costs = RecordCosts()

    def on_test_epoch_end(self) -> None:
        """Prints what each record costs."""
        if self.trainer.is_global_zero:
            self._costs.print()
