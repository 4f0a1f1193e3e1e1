"""ClimateBench's scores against an independent NumPy oracle, and the laws of weights and noise."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longseq.core.errors import ArgumentError
from longseq.weather.metrics import (
    FieldError,
    area_weights,
    climatebench,
    global_rmse,
    spatial_rmse,
)


def oracle(x: np.ndarray, members: np.ndarray, lat: np.ndarray) -> dict[str, float]:
    """The benchmark's definition, cell by cell and year by year."""
    years, rows, columns = x.shape
    total = sum(math.cos(math.radians(float(lat[i]))) for i in range(rows)) * columns
    share = [math.cos(math.radians(float(lat[i]))) / total for i in range(rows)]
    truth = sum(members[m] for m in range(len(members))) / len(members)
    cells = [(i, j) for i in range(rows) for j in range(columns)]
    means_x = [sum(share[i] * x[t, i, j] for i, j in cells) for t in range(years)]
    means_y = [sum(share[i] * truth[t, i, j] for i, j in cells) for t in range(years)]
    scale = abs(sum(means_y) / years)
    square = 0.0
    for i, j in cells:
        gap = (
            sum(x[t, i, j] for t in range(years)) / years
            - sum(truth[t, i, j] for t in range(years)) / years
        )
        square += share[i] * gap * gap
    spatial = math.sqrt(square) / scale
    whole = math.sqrt(sum((a - b) ** 2 for a, b in zip(means_x, means_y)) / years) / scale
    return {"spatial": spatial, "global": whole, "total": spatial + 5 * whole}


@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 4), st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_the_scores_are_the_benchmarks(seed: int, years: int, rows: int, members: int) -> None:
    rng = np.random.default_rng(seed)
    lat = np.sort(rng.uniform(-89, 89, rows))
    x = rng.normal(3.0, 1.0, (years, rows, 3))
    y = rng.normal(3.0, 1.0, (members, years, rows, 3))
    expected = oracle(x, y, lat)
    for key, value in climatebench(x, y, lat).items():
        assert value == pytest.approx(expected[key], rel=1e-12, abs=1e-12)
    assert climatebench(x, y[0], lat) == pytest.approx(oracle(x, y[:1], lat), rel=1e-12)


def test_global_is_a_yearly_error_and_spatial_an_error_of_the_mean() -> None:
    weights = area_weights(np.zeros(2), 2)
    target = np.zeros((2, 2, 2))
    swing = np.stack([np.ones((2, 2)), -np.ones((2, 2))])
    assert spatial_rmse(swing, target, weights) == 0 and global_rmse(swing, target, weights) == 1
    tilt = np.broadcast_to(np.array([[1.0, -1.0], [1.0, -1.0]]), (2, 2, 2))
    assert spatial_rmse(tilt, target, weights) == 1 and global_rmse(tilt, target, weights) == 0
    with pytest.raises(ArgumentError):
        spatial_rmse(swing, target[:1], weights)


@pytest.mark.parametrize("kind", ["cos", "area"])
def test_weights_sum_to_one_and_follow_their_definition(kind) -> None:
    lat = np.array([60.0, 0.0, -60.0])
    weights = area_weights(lat, 4, kind)
    assert weights.sum() == pytest.approx(1, abs=1e-15) and np.ptp(weights, axis=1).max() == 0
    ratio = weights[1, 0] / weights[0, 0]
    expected = 2.0 if kind == "cos" else 1.0 / (1 - 0.5)  # edges at 30°: (0.5 + 0.5) / (1 - 0.5)
    assert ratio == pytest.approx(expected)
    assert np.array_equal(area_weights(lat[::-1], 4, kind), weights[::-1])


def test_the_metric_of_training_is_the_same_and_batches_change_nothing() -> None:
    rng = np.random.default_rng(0)
    x, y = (
        rng.normal(size=(2, 6, 3, 4)).astype(np.float32),
        rng.normal(size=(2, 6, 3, 4)).astype(np.float32),
    )
    mask = np.arange(6) >= 2
    weights = area_weights(np.array([0.0, 20, 40]), 4)
    spatial, whole = FieldError("spatial"), FieldError("global")
    for i in range(2):
        args = [torch.from_numpy(a[i : i + 1]) for a in (x, y)]
        for metric in (spatial, whole):
            metric.update(*args, torch.from_numpy(mask)[None], torch.from_numpy(weights))
    squares = [spatial_rmse(x[i, mask], y[i, mask], weights) ** 2 for i in range(2)]
    assert float(spatial.compute()) == pytest.approx(math.sqrt(np.mean(squares)), rel=1e-5)
    squares = [global_rmse(x[i, mask], y[i, mask], weights) ** 2 for i in range(2)]
    assert float(whole.compute()) == pytest.approx(math.sqrt(np.mean(squares)), rel=1e-5)
