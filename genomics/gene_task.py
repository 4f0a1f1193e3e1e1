"""The task of labelling every base by the gene that it lies in: strand and codon position."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

from longseq.core.errors import ConfigError
from longseq.core.training.task import BaseTask
from longseq.genomics.data.gene_labels import GeneLabelData
from longseq.genomics.data.tokenizer import IGNORE_INDEX
from longseq.genomics.metrics import CodingF1
from longseq.genomics.models.gene_labeller import GeneLabeller
from longseq.genomics.sequence_task import load_pretrained, shape_of

ENCODER = {
    "d_model": 64,
    "n_layers": 3,
    "mixer": [["strided", {"mixer": "mamba"}], "mamba", "mamba"],
    "kmer": 6,
}


class GeneLabelling(BaseTask):
    """The state of every base: between genes, or strand and codon position; cross-entropy.

    ``longseq genomics annotate --ckpt_path`` makes genes of the states. The metric is the F1 of
    coding bases, right where strand and codon position are.

    Args:
        pretrained: checkpoint of a causal language model to start from, or "packaged" for the
            packaged one; None to start from nothing.
        encoder: arguments of ``DNALanguageModel``, with any mixers; those of the checkpoint where
            there is one.
        hidden: width of the perceptron on top, see ``GeneLabeller``.
        frozen: whether only that perceptron is trained.
        dropout: on its hidden layer.
        **recipe: optimiser, schedule, loss and further metrics, see ``BaseTask``.
    """

    defaults = {"lr": 2e-3, "warmup_steps": 20, "weight_decay": 0.05}
    unit = "bases"

    def __init__(
        self,
        pretrained: str | None = None,
        encoder: dict[str, Any] | None = None,
        hidden: int = 64,
        frozen: bool = False,
        dropout: float = 0.0,
        **recipe: Any,
    ) -> None:
        super().__init__(**recipe)
        if frozen and pretrained is None:
            raise ConfigError("model.frozen needs model.pretrained")
        if encoder is None:
            encoder = dict(ENCODER) if pretrained is None else shape_of(pretrained)
            # So that a checkpoint of this task needs no other file.
            self.hparams["encoder"] = encoder
        self.model = GeneLabeller(encoder, hidden, dropout)
        self.pretrained, self.frozen = pretrained, frozen
        if frozen:
            self.model.encoder.requires_grad_(False)

    def make_metrics(self) -> Mapping[str, Metric]:
        """Returns the F1 of coding bases."""
        return {"base_f1": CodingF1()}

    def setup(self, stage: str) -> None:
        """Loads the weights to start from where ``fit`` begins."""
        super().setup(stage)
        if stage == "fit" and self.pretrained is not None:
            state = load_pretrained(self.pretrained).model.state_dict()
            state.pop("lm_head.weight")
            self.model.encoder.load_state_dict(state)

    def train(self, mode: bool = True) -> GeneLabelling:
        """See ``Module.train``; a frozen encoder has no dropout."""
        super().train(mode)
        if self.frozen:
            self.model.encoder.eval()
        return self

    def check_data(self, data: Any) -> None:
        """Checks that the bases of the data have states."""
        super().check_data(data)
        if not isinstance(data, GeneLabelData):
            raise ConfigError(
                f"GeneLabelling needs annotated genomes: --data GeneLabelData, not "
                f"{type(data).__name__}"
            )

    def forward(self, input_ids: Tensor, lengths: Tensor) -> Tensor:
        """See ``GeneLabeller.forward``."""
        return self.model(input_ids, lengths)

    def count_units(self, batch: Mapping[str, Tensor]) -> int:
        """Returns the bases of a batch."""
        return int(batch["lengths"].sum())

    def compute(self, batch: Mapping[str, Tensor]) -> dict[str, Any]:
        """Returns the mean cross-entropy in nats per labelled base."""
        targets = batch["targets"]
        known = targets != IGNORE_INDEX
        logits, wanted = self(batch["input_ids"], batch["lengths"])[known].float(), targets[known]
        if len(wanted):
            loss = self.criterion(logits, wanted, F.cross_entropy)
        else:  # of a window in pseudogenes alone
            loss = logits.sum()
        return {
            "loss": loss,
            "count": len(wanted),
            "preds": logits.detach().argmax(-1),
            "target": wanted,
            "pair": (logits, wanted),
        }
