"""Scores of climate emulators: ClimateBench's three, and their parts in physical units."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from longseq.core.errors import ArgumentError
from longseq.weather.data.grid import Grid, Weighting


def area_weights(lat: np.ndarray, columns: int, kind: Weighting = "cos") -> np.ndarray:
    """Returns weights (Y, X) that sum to one, of columns that are equally wide.

    Args:
        lat: degrees north (Y).
        columns: X.
        kind: "cos", the cosine of the latitude, as ClimateBench has it; or "area", the difference
            of the sines of the rows' edges, as WeatherBench 2 has it. Edges lie halfway between
            rows, and the outer ones as far out as the inner ones are in, but not beyond the poles.
    """
    lat = np.asarray(lat, dtype=np.float64)
    order = np.argsort(lat)
    made = Grid.of(lat[order], 360.0 / columns * np.arange(columns)).weights(kind)
    weights = np.empty_like(made)
    weights[order] = made
    return weights


def area_mean(fields: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns ⟨x⟩, the weighted mean over the grid.

    Args:
        fields: (..., Y, X).
        weights: (Y, X), summing to one.
    """
    return np.einsum("...yx,yx->...", np.asarray(fields, dtype=np.float64), weights)


def _truth(target: np.ndarray) -> np.ndarray:
    target = np.asarray(target, dtype=np.float64)
    return target.mean(0) if target.ndim == 4 else target


def _check(prediction: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(prediction, dtype=np.float64), _truth(target)
    if x.shape != y.shape or x.ndim != 3 or not x.shape[0]:
        raise ArgumentError(
            f"prediction {x.shape} and target {y.shape} must both be (years ≥ 1, lat, lon)"
        )
    return x, y


def spatial_rmse(prediction: np.ndarray, target: np.ndarray, weights: np.ndarray) -> float:
    """Returns √⟨(mean_T x - mean_T ȳ)²⟩, in the field's units: the root after averaging over time.

    Args:
        prediction: x (T, Y, X).
        target: (T, Y, X), or (M, T, Y, X), of which ȳ is the mean over members.
        weights: (Y, X).
    """
    x, y = _check(prediction, target)
    return float(np.sqrt(area_mean((x.mean(0) - y.mean(0)) ** 2, weights)))


def global_rmse(prediction: np.ndarray, target: np.ndarray, weights: np.ndarray) -> float:
    """Returns √mean_T[(⟨x⟩ - ⟨ȳ⟩)²], in the field's units: a yearly root mean square.

    Args:
        prediction: x (T, Y, X).
        target: as in ``spatial_rmse``.
        weights: (Y, X).
    """
    x, y = _check(prediction, target)
    return float(np.sqrt(np.mean((area_mean(x, weights) - area_mean(y, weights)) ** 2)))


def climatebench(
    prediction: np.ndarray, target: np.ndarray, lat: np.ndarray, kind: Weighting = "cos"
) -> dict[str, float]:
    """Returns ClimateBench's scores (https://doi.org/10.1029/2021MS002954), all relative to N =
    |⟨mean_T ȳ⟩|.

    Args:
        prediction: x (T, Y, X); T is 2080-2100, both included, in the benchmark.
        target: (T, Y, X) or (M, T, Y, X) with M members.
        lat: degrees north (Y).
        kind: of weights.

    Returns:
        "spatial" = spatial_rmse / N, "global" = global_rmse / N, "total" = spatial + 5 · global.
    """
    x, y = _check(prediction, target)
    weights = area_weights(lat, x.shape[-1], kind)
    scale = abs(float(area_mean(y.mean(0), weights)))
    spatial, whole = spatial_rmse(x, y, weights) / scale, global_rmse(x, y, weights) / scale
    return {"spatial": spatial, "global": whole, "total": spatial + 5 * whole}


class FieldError(Metric):
    """Spatial or global root mean square error over all the years that were seen; batches change
    nothing.

    Args:
        kind: "spatial" or "global".
    """

    full_state_update = False
    higher_is_better = False
    total: Tensor
    count: Tensor

    def __init__(self, kind: Literal["spatial", "global"]) -> None:
        super().__init__()
        self.kind = kind
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor, mask: Tensor, area: Tensor) -> None:
        """Adds scenarios.

        Args:
            prediction: (B, T, Y, X).
            target: likewise.
            mask: (B, T), true for scored years.
            area: (Y, X), summing to one.
        """
        error = (prediction - target).double()
        area = area.double()
        for rows, chosen in zip(error, mask):
            rows = rows[chosen]
            if not len(rows):
                continue
            if self.kind == "spatial":
                self.total += (rows.mean(0).square() * area).sum()
                self.count += 1
            else:
                self.total += (rows * area).sum((1, 2)).square().sum()
                self.count += len(rows)

    def compute(self) -> Tensor:
        return (self.total / self.count).sqrt()
