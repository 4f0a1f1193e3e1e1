"""Forecast errors in z-scores, averaged over windows, rows of the horizon and series alike."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from longseq.timeseries.quantiles import pinball

Kind = Literal["mse", "mae"]
NINE = np.linspace(0.1, 0.9, 9)


def error_sum(forecast: Tensor, target: Tensor, kind: Kind) -> Tensor:
    """Returns the sum of squared or absolute errors, float64, shape ().

    Args:
        forecast: (B, h, C).
        target: (B, h, C).
        kind: "mse" or "mae".
    """
    error = forecast.double() - target.double()
    return (error.square() if kind == "mse" else error.abs()).sum()


class ForecastError(Metric):
    """Mean squared or absolute error over all batches and processes, in float64.

    Every value counts the same, so the figure does not depend on how the windows fell into batches.

    Args:
        kind: "mse" or "mae".
    """

    full_state_update = False
    higher_is_better = False
    is_differentiable = False
    total: Tensor
    count: Tensor

    def __init__(self, kind: Kind) -> None:
        super().__init__()
        self.kind: Kind = kind
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, forecast: Tensor, target: Tensor, mask: Tensor | None = None) -> None:
        """Adds a batch.

        Args:
            forecast: (B, h, C).
            target: (B, h, C).
            mask: where the target was observed (B, h, C), bool; everywhere if None.
        """
        if mask is not None:
            forecast, target = forecast[mask], target[mask]
        self.total += error_sum(forecast.detach(), target, self.kind)
        self.count += target.numel()

    def compute(self) -> Tensor:
        """Returns the mean, float64, shape (); NaN before the first window."""
        return self.total / self.count.to(torch.float64)


class MaskedMean(Metric):
    """The mean of a figure of quantile forecasts over all observed values, in float64."""

    full_state_update = False
    is_differentiable = False
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def figures(self, quantiles: Tensor, target: Tensor) -> Tensor:
        """Returns the figure of every value (…) from its quantiles 0.1 … 0.9 (…, 9)."""
        raise NotImplementedError

    def update(self, quantiles: Tensor, target: Tensor, mask: Tensor) -> None:
        """Adds a batch: quantiles (B, h, C, 9), targets and where they were observed (B, h, C)."""
        found = self.figures(quantiles.double(), target.double())[mask]
        self.total += found.sum()
        self.count += found.numel()

    def compute(self) -> Tensor:
        """Returns the mean, float64, shape (); NaN before the first window."""
        return self.total / self.count.to(torch.float64)


class PinballLoss(MaskedMean):
    """Twice the mean pinball loss over nine levels, which approximates the continuous ranked
    probability score (Gneiting and Ranjan 2011)."""

    higher_is_better = False

    def figures(self, quantiles: Tensor, target: Tensor) -> Tensor:
        return pinball(quantiles, target, torch.from_numpy(NINE).to(target))


class Coverage(MaskedMean):
    """The share of values between the quantiles 0.1 and 0.9."""

    def figures(self, quantiles: Tensor, target: Tensor) -> Tensor:
        inside = (target >= quantiles[..., 0]) & (target <= quantiles[..., -1])
        return inside.to(torch.float64)
