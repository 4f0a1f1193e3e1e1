"""What the tasks of language models share: units, metric and loss of predicted bases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torchmetrics import Metric

from longseq.core.training.task import BaseTask
from longseq.genomics.data.tokenizer import IGNORE_INDEX
from longseq.genomics.metrics import BitsPerBase, token_nll


class LanguageTask(BaseTask):
    """Prediction of bases; the metric is bits per base.

    Args:
        **recipe: optimiser, schedule, loss and further metrics, see ``BaseTask``.
    """

    defaults = {"lr": 3e-3, "warmup_steps": 20}
    unit = "bases"

    def make_metrics(self) -> Mapping[str, Metric]:
        """Returns bits per base."""
        return {"bits_per_base": BitsPerBase()}

    def count_units(self, batch: Mapping[str, Tensor]) -> int:
        """Returns the bases of a batch, padding included."""
        return batch["input_ids"].numel()

    def score(
        self, logits: Tensor, targets: Tensor, weights: Tensor | None = None
    ) -> dict[str, Any]:
        """Returns the mean loss in nats per base, and what the metrics need.

        Args:
            logits: (B, L, V).
            targets: bases (B, L), -100 where none is predicted.
            weights: of every base in the loss (B, L); None for equal ones.
        """
        nll, known = token_nll(logits, targets), targets != IGNORE_INDEX
        count = int(known.sum())
        found = {"loss": nll.sum() / max(count, 1), "count": count, "nll": nll, "targets": targets}
        if weights is not None:
            weights = weights * known
            found["weight"] = weights.sum()
            found["loss"] = (nll * weights).sum() / found["weight"].clamp(min=1e-6)
        if self.own_loss is not None or self.recipe.metrics:
            found["pair"] = logits[known], targets[known]
        if self.own_loss is not None:
            found["loss"], found["weight"] = self.own_loss(*found["pair"]), count
        return found
