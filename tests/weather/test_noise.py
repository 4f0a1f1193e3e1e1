"""Noise floors and margins against variability that is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from longseq.weather.metrics import area_mean, area_weights, spatial_rmse
from longseq.weather.noise import Noise

WEIGHTS = area_weights(np.linspace(-60, 60, 6), 8)


def autoregression(rng, phi: float, years: int) -> np.ndarray:
    """Noise in every cell, a part of it common to all, as an autoregression of unit innovations."""
    made = rng.standard_normal((years + 60, 6, 8)) + 0.7 * rng.standard_normal((years + 60, 1, 1))
    for year in range(1, len(made)):
        made[year] += phi * made[year - 1]
    return 0.2 * made[60:]


def exact(phi: float, length: int) -> tuple[float, float]:
    """The true spatial and global floors of ``autoregression``."""
    lags = np.abs(np.subtract.outer(np.arange(length), np.arange(length)))
    mean = float((float(phi) ** lags).sum()) / length**2
    cell = 0.04 * (1 + 0.49) / (1 - phi**2)
    area = 0.04 * (float((WEIGHTS**2).sum()) + 0.49) / (1 - phi**2)
    return math.sqrt(cell * mean), math.sqrt(area)


@pytest.mark.parametrize("phi", [0.0, 0.5, 0.8])
def test_the_floor_and_the_margin_hold(phi: float) -> None:
    rng = np.random.default_rng(int(10 * phi))
    years = np.arange(240)
    level = np.clip(years - 90, 0, None) / 150 * 4  # a forced response with a bend
    pattern = 1 + 0.4 * rng.standard_normal((6, 8))
    floors, inside = [], []
    for _ in range(150):
        run = level[:, None, None] * pattern + autoregression(rng, phi, 240)
        noise = Noise(run, None, WEIGHTS, 20)
        floors.append((noise.spatial, noise.whole))
        # Two models that miss the forced response by opposite maps: any difference is noise.
        gap, truth = 0.15 * rng.standard_normal((6, 8)), autoregression(rng, phi, 20)
        scores = [spatial_rmse(sign * gap[None], truth.mean(0)[None], WEIGHTS) for sign in (1, -1)]
        margin = noise.margin(gap, -gap, (scores[0], scores[1]))
        inside.append(abs(scores[0] - scores[1]) <= margin)
    found = np.sqrt(np.mean(np.square(floors), 0))
    assert found == pytest.approx(exact(phi, 20), rel=0.05)
    # 150 trials of probability 0.95 lie within 0.90 and 0.99 in 99 of 100 cases; 300 gave 0.943 to
    # 0.95 for φ = 0, 0.25, 0.5 and 0.8.
    assert 0.90 <= np.mean(inside) <= 0.99


def test_a_forced_response_is_no_noise() -> None:
    years = np.linspace(-1, 1, 240)
    forcing = (years + years**2)[:, None]
    run = 3 * forcing[:, :, None] * np.linspace(0.5, 2, 48).reshape(6, 8) + years[:, None, None]
    assert Noise(run, forcing, WEIGHTS, 20).spatial < 1e-10
    assert Noise(np.zeros((240, 6, 8)), None, WEIGHTS, 20).spatial == 0


def test_forcings_with_sudden_years_are_fitted_too() -> None:
    rng = np.random.default_rng(5)
    forcing = np.zeros((240, 1))
    forcing[[30, 90, 150], 0] = -3.0  # volcanoes
    noise = autoregression(rng, 0.5, 240)
    run = noise + forcing[:, :, None]
    with_forcing, without = (Noise(run, f, WEIGHTS, 20) for f in (forcing, None))
    assert with_forcing.spatial == pytest.approx(exact(0.5, 20)[0], rel=0.2)
    assert with_forcing.whole == pytest.approx(exact(0.5, 20)[1], rel=0.2)
    assert without.whole > 1.2 * with_forcing.whole


def test_a_run_too_short_has_no_floor() -> None:
    run = np.random.default_rng(0).standard_normal((12, 6, 8))
    short = Noise(run, None, WEIGHTS, 5)
    assert math.isnan(short.spatial) and short.margin(run[0], run[1], (1.0, 1.0)) == 0
    assert area_mean(run, WEIGHTS).shape == (12,)
