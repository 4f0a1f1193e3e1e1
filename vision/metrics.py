"""Metrics of classification: the share of images whose class is among the k most probable; calibration."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

from longseq.core.checks import check_positive


class TopK(Metric):
    """Share of images whose class is among the k highest logits, over all batches and processes.

    Args:
        k: how many guesses; 1 for accuracy.
    """

    full_state_update = False
    higher_is_better = True
    is_differentiable = False
    hits: Tensor
    images: Tensor

    def __init__(self, k: int = 1) -> None:
        super().__init__()
        self.k = check_positive("k", k)
        self.add_state("hits", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("images", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Adds a batch.

        Args:
            logits: shape (B, classes).
            target: classes (B,).
        """
        best = logits.topk(min(self.k, logits.shape[1]), dim=1).indices
        self.hits += (best == target[:, None]).any(1).sum()
        self.images += len(target)

    def compute(self) -> Tensor:
        """Returns the share, float64, shape (); NaN before the first image."""
        return self.hits.double() / self.images


class CalibrationError(Metric):
    """Expected calibration error (arXiv 1706.04599): mean |accuracy - confidence| over equal bins.

    Args:
        bins: of the confidence, from 0 to 1.
    """

    full_state_update = False
    higher_is_better = False
    is_differentiable = False
    sums: Tensor

    def __init__(self, bins: int = 15) -> None:
        super().__init__()
        self.bins = check_positive("bins", bins)
        self.add_state("sums", torch.zeros(3, bins, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Adds a batch; arguments as ``TopK.update``'s."""
        confidence, guess = torch.softmax(logits.double(), 1).max(1)
        where = (confidence * self.bins).long().clamp(max=self.bins - 1)
        rows = (torch.ones_like(confidence), confidence, (guess == target).double())
        self.sums += torch.stack([row.new_zeros(self.bins).index_add(0, where, row) for row in rows])

    def compute(self) -> Tensor:
        """Returns the error, float64, shape ()."""
        count, confidence, hits = self.sums
        return (confidence - hits).abs().sum() / count.sum()
