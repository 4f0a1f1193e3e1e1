"""A metric of one's own."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric


class Bias(Metric):
    """Mean of prediction minus target over all values that were seen."""

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Adds values of any shape."""
        self.total += (preds - target).double().sum()
        self.count += target.numel()

    def compute(self) -> Tensor:
        return self.total / self.count
