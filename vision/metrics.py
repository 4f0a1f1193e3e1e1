"""Metrics of classes that count only the classes which the images have."""

from __future__ import annotations

from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy


class MeanRecall(MulticlassAccuracy):
    """The mean of the recalls of the classes that images have: balanced accuracy.

    torchmetrics' own mean takes 0 for a class that no image has as soon as it is predicted once.

    Args:
        num_classes: number of classes.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes, average="macro")

    def compute(self) -> Tensor:
        """Returns the mean, (); 0 if there are no images."""
        right, _, _, wrong = self._final_state()
        there = right + wrong > 0
        return (right[there] / (right + wrong)[there]).sum() / there.sum().clamp(min=1)
