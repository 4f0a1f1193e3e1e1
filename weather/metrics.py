"""Scores of climate emulators: ClimateBench's three, their parts in physical units, and the noise
floor."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from longseq.core.errors import ArgumentError

Weighting = Literal["cos", "bounds"]


def area_weights(lat: np.ndarray, columns: int, kind: Weighting = "cos") -> np.ndarray:
    """Returns weights (Y, X) that sum to one.

    Args:
        lat: degrees north (Y).
        columns: X.
        kind: "cos", the cosine of the latitude, as ClimateBench has it; or "bounds", the difference
            of the sines of the cells' bounds, as WeatherBench 2 has it.
    """
    lat = np.asarray(lat, dtype=np.float64)
    if kind == "cos":
        rows = np.cos(np.deg2rad(lat))
    else:
        order = np.argsort(lat)
        middle = (lat[order][1:] + lat[order][:-1]) / 2
        edges = np.sin(np.deg2rad(np.concatenate([[-90.0], middle, [90.0]])))
        rows = np.empty_like(lat)
        rows[order] = np.diff(edges)
    weights = np.repeat(rows[:, None], columns, 1)
    return weights / weights.sum()


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


class Noise:
    """What internal variability alone does to the scores, from the departures of a run from its
    forced part.

    The forced part of every grid cell is a least-squares fit on the predictors that all models see
    and a polynomial in time (cubic where there are enough years); the departures r are cut into
    blocks as long as the scored period. A model that knew the forced response exactly would still
    score about

        spatial √mean_b ⟨(mean_T r_b)²⟩  and  global √mean_t ⟨r_t⟩²,

    both scaled up for the coefficients that the fit took.

    Args:
        fields: yearly fields of one run (T, Y, X), consecutive.
        predictors: of the same years (T, K).
        weights: (Y, X).
        length: years of the scored period.
    """

    def __init__(
        self, fields: np.ndarray, predictors: np.ndarray, weights: np.ndarray, length: int
    ) -> None:
        years, blocks = len(fields), len(fields) // length
        self.weights, self.blocks = weights, np.zeros((0, *weights.shape))
        self.spatial = self.whole = float("nan")
        degree = min(3, blocks - 2 - predictors.shape[1])
        if degree < 0:  # too few years to tell variability from the forced part
            return
        spread = predictors.std(0)
        scaled = (predictors - predictors.mean(0)) / np.where(spread > 0, spread, 1.0)
        basis = np.concatenate(
            [np.polynomial.legendre.legvander(np.linspace(-1, 1, years), degree), scaled], 1
        )
        rank, flat = basis.shape[1], np.asarray(fields, dtype=np.float64).reshape(years, -1)
        rest = (flat - basis @ np.linalg.lstsq(basis, flat, rcond=None)[0]).reshape(fields.shape)
        used = rest[years - blocks * length :].reshape(blocks, length, *weights.shape)
        self.blocks = used.mean(1) * np.sqrt(blocks / (blocks - rank))
        self.spatial = float(np.sqrt(area_mean(self.blocks**2, weights).mean()))
        means = area_mean(rest, weights)
        self.whole = float(np.sqrt((means**2).sum() / (years - rank)))

    def margin(self, one: np.ndarray, other: np.ndarray, scores: tuple[float, float]) -> float:
        """Returns the difference of two spatial scores that variability explains in 19 of 20 cases.

        With noise r in the truth, score² differs by ⟨(x - y)(x + y - 2 truth)⟩, in which r enters
        as -2 ⟨(x - y) r⟩: its deviation over the blocks, divided by the sum of the scores, is that
        of the score.

        Args:
            one: a model's mean over the period (Y, X).
            other: another's.
            scores: their spatial scores.
        """
        if not len(self.blocks) or sum(scores) <= 0:
            return 0.0
        effect = 2 * area_mean((one - other) * self.blocks, self.weights)
        return float(1.96 * np.sqrt(np.mean(effect**2)) / sum(scores))


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
