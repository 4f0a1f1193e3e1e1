"""The task of labelled sequences: classification or regression, from scratch or a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score
from torchmetrics.regression import MeanAbsoluteError, R2Score

from longseq.core.errors import ConfigError
from longseq.core.training.facts import Fact
from longseq.core.training.task import BaseTask
from longseq.genomics.data.labelled import LabelledData
from longseq.genomics.models.sequence_model import SequenceModel
from longseq.genomics.scorers import load_model

PACKAGED = "packaged"
ENCODER = {
    "d_model": 64,
    "n_layers": 2,
    "mixer": "bidirectional",
    "mixer_kwargs": {"mixer": "mamba", "tied": ["in_proj", "out_proj"]},
}
_SHAPE = ("d_model", "n_layers", "mixer", "mixer_kwargs", "mlp_ratio", "norm", "mlp", "kmer")


class SequencePrediction(BaseTask):
    """A class or a number for a whole sequence.

    Args:
        n_classes: classes; 0 for a number (regression).
        pretrained: checkpoint of a language model to start from, or "packaged" for the packaged
            one; None to start from nothing.
        encoder: arguments of ``DNALanguageModel``; those of the checkpoint where there is one.
        pool: "mean", "max", "last" or "center", see ``SequenceModel``.
        strands: "both" gives a sequence and its reverse complement the same answer; "one" reads it
            as it stands, for what has a direction (a splice site, a promoter).
        frozen: whether only the linear map on top is trained.
        layer_decay: factor of the learning rate from each layer to the one below; the embedding is
            the lowest.
        dropout: on the pooled vector.
        **recipe: optimiser, schedule, loss and further metrics, see ``BaseTask``.
    """

    defaults = {"lr": 2e-3, "warmup_steps": 20, "weight_decay": 0.05}
    unit = "bases"
    classes = Fact(list)
    mean = Fact(float)
    deviation = Fact(lambda: 1.0)

    def __init__(
        self,
        n_classes: int = 2,
        pretrained: str | None = None,
        encoder: dict[str, Any] | None = None,
        pool: Literal["mean", "max", "last", "center"] = "mean",
        strands: Literal["both", "one"] = "both",
        frozen: bool = False,
        layer_decay: float = 1.0,
        dropout: float = 0.0,
        **recipe: Any,
    ) -> None:
        super().__init__(**recipe)
        if n_classes == 1 or n_classes < 0:
            raise ConfigError(f"model.n_classes={n_classes}: 0 (a number) or at least 2")
        if strands not in ("both", "one"):
            raise ConfigError(f"model.strands is both or one, got {strands!r}")
        if not 0 < layer_decay <= 1:
            raise ConfigError(f"model.layer_decay must lie in (0, 1], got {layer_decay}")
        if frozen and pretrained is None:
            raise ConfigError("model.frozen needs model.pretrained")
        if encoder is None:
            encoder = dict(ENCODER) if pretrained is None else shape_of(pretrained)
            # So that a checkpoint of this task needs no other file.
            self.hparams["encoder"] = encoder
        self.model = SequenceModel(encoder, n_classes or 1, pool, strands == "both", dropout)
        self.n_classes, self.pretrained = n_classes, pretrained
        self.frozen, self.layer_decay = frozen, layer_decay
        if frozen:
            self.model.encoder.requires_grad_(False)

    def make_metrics(self) -> Mapping[str, Metric]:
        """Returns accuracy and macro F1, or mean absolute error and R²."""
        classes = int(self.hparams["n_classes"])
        if classes < 2:
            return {"mae": MeanAbsoluteError(), "r2": R2Score()}
        return {
            "accuracy": MulticlassAccuracy(classes, average="micro"),
            "f1": MulticlassF1Score(classes, average="macro"),
        }

    def setup(self, stage: str) -> None:
        """Loads the weights to start from where ``fit`` begins."""
        super().setup(stage)
        if stage == "fit" and self.pretrained is not None:
            state = load_pretrained(self.pretrained).model.state_dict()
            state.pop("lm_head.weight")
            self.model.encoder.load_state_dict(state)

    def train(self, mode: bool = True) -> SequencePrediction:
        """See ``Module.train``; a frozen encoder has no dropout."""
        super().train(mode)
        if self.frozen:
            self.model.encoder.eval()
        return self

    def check_data(self, data: Any) -> None:
        """See ``BaseTask``."""
        if isinstance(data, LabelledData) and len(data.classes) != self.n_classes:
            raise ConfigError(
                f"model.n_classes is {self.n_classes}, but the data has {len(data.classes)} classes"
            )

    def check_facts(self, known: Mapping[str, Any], found: Mapping[str, Any], stage: str) -> None:
        """See ``BaseTask``."""
        if known.get("classes") != found.get("classes"):
            raise ConfigError(
                f"the checkpoint knows the classes {known.get('classes')}, the data has "
                f"{found.get('classes')}"
            )

    def forward(self, input_ids: Tensor, lengths: Tensor) -> Tensor:
        """Returns logits (B, classes), or numbers (B,) in the data's own unit."""
        y = self.model(input_ids, lengths)
        return y if self.n_classes else y[:, 0] * self.deviation + self.mean

    def count_units(self, batch: Mapping[str, Tensor]) -> int:
        """Returns the bases of a batch."""
        return int(batch["lengths"].sum())

    def compute(self, batch: Mapping[str, Tensor]) -> dict[str, Any]:
        """Returns the mean cross-entropy in nats, or the mean squared error in units of the
        training data's variance."""
        target, y = batch["target"], self(batch["input_ids"], batch["lengths"]).float()
        if self.n_classes:
            loss = self.criterion(y, target, F.cross_entropy)
            preds = y.detach().softmax(1)
        else:
            scale = self.deviation
            loss = self.criterion((y - self.mean) / scale, (target - self.mean) / scale, F.mse_loss)
            preds = y.detach()
        return {
            "loss": loss,
            "count": len(y),
            "preds": preds,
            "target": target,
            "pair": (y, target),
        }

    def configure_optimizers(self) -> Any:
        """See ``BaseTask``; with rates by layer where ``layer_decay`` is below 1."""
        made = super().configure_optimizers()
        if self.layer_decay == 1:
            return made
        depth = {id(p): self._distance(name) for name, p in self.named_parameters()}
        groups = []
        for group in made["optimizer"].param_groups:
            for distance in sorted({depth[id(p)] for p in group["params"]}):
                rate = self.layer_decay**distance
                own = [p for p in group["params"] if depth[id(p)] == distance]
                groups.append({**group, "params": own, "lr": self.recipe.lr * rate})
                groups[-1]["initial_lr"] = groups[-1]["lr"]
        optimizer = made["optimizer"]
        optimizer.param_groups[:] = groups
        total = int(self.recipe.total_steps or self.trainer.estimated_stepping_batches)
        return {
            "optimizer": optimizer,
            "lr_scheduler": self.recipe.make_schedule(optimizer, total),
        }

    def _distance(self, name: str) -> int:
        """Returns how many layers a parameter lies below the output."""
        layers = len(self.model.encoder.backbone.residual_layers())
        rest = name.partition("encoder.backbone.layers.")[2]
        if rest:
            return layers - int(rest.split(".")[0])
        return layers + 1 if "embedding" in name or "kmers" in name else 0


def load_pretrained(pretrained: str) -> Any:
    """Returns the language model to start from: a checkpoint's, or the packaged one."""
    return load_model(None if pretrained == PACKAGED else pretrained)


def shape_of(pretrained: str) -> dict[str, Any]:
    """Returns the shape of a checkpoint's language model, as arguments."""
    hyper = dict(load_pretrained(pretrained).hparams)
    return {name: hyper[name] for name in _SHAPE if name in hyper}


@torch.inference_mode()
def predict_rows(task: SequencePrediction, sequences: list[Any], batch_size: int = 64) -> Tensor:
    """Returns the probabilities (n, classes) of sequences, or numbers (n, 1).

    Args:
        task: in evaluation mode.
        sequences: token ids, uint8 (n,) each.
        batch_size: sequences at once, of similar length.
    """
    from longseq.genomics.data.padding import pad

    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
    found = torch.zeros(len(sequences), max(1, task.n_classes))
    for low in range(0, len(order), batch_size):
        rows = order[low : low + batch_size]
        ids, lengths = pad([sequences[i] for i in rows])
        y = task(ids.to(task.device), lengths.to(task.device)).float().cpu()
        found[rows] = y.softmax(1) if task.n_classes else y[:, None]
    return found
