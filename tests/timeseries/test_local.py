"""Local models: what they give on series whose answer is known."""

import numpy as np
import pytest
import torch

from longseq.timeseries.baselines import BASELINES
from longseq.timeseries.local import Theta, is_seasonal, seasonal_indices, smooth
from longseq.timeseries.theta import _fit, _lines

NAMES = ("ses", "theta", "croston", "tsb", "ar")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("length", [1, 2, 3, 9, 60])
def test_a_constant_goes_on(name, length):
    x = np.full((2, length), 4.0)
    found = BASELINES[name](5, 12).paths(x)
    assert found.shape == (2, 5)
    np.testing.assert_allclose(found, 4.0, rtol=1e-6)


def test_smoothing_follows_a_level_and_the_grid_finds_its_constant():
    x = np.r_[np.zeros(30), np.full(30, 5.0)][None]
    level, alpha = smooth(x)
    assert level[0] == pytest.approx(5, abs=1e-3) and alpha[0] > 0.9
    noise = 3 + np.random.default_rng(0).normal(size=(1, 400))
    level, alpha = smooth(noise)
    assert alpha[0] < 0.1 and level[0] == pytest.approx(3, abs=0.3)


def test_theta_continues_a_line_and_the_whole_season():
    t = np.arange(48.0)
    line = Theta(4, 1).paths((2 + 3 * t)[None])[0]
    np.testing.assert_allclose(line, 2 + 3 * np.arange(48, 52), rtol=1e-6)
    season = 10 + 3 * np.sin(2 * np.pi * t / 12)
    found = Theta(12, 12).paths(season[None])[0]
    np.testing.assert_allclose(found, season[:12], atol=0.15)
    assert is_seasonal(season[None], 12)[0]
    assert not is_seasonal(np.random.default_rng(0).normal(size=(1, 48)), 12)[0]
    index, times = seasonal_indices(season[None], 12)
    assert times[0] and index.mean() == pytest.approx(1)


def test_an_autoregression_is_recovered():
    rng = np.random.default_rng(0)
    x = np.zeros(3000)
    for i in range(2, 3000):
        x[i] = 1.2 * x[i - 1] - 0.5 * x[i - 2] + rng.normal()
    found = BASELINES["ar"](3, 1).paths(x[None])[0]
    state, expected = list(x), []
    for _ in range(3):
        state.append(1.2 * state[-1] - 0.5 * state[-2])
        expected.append(state[-1])
    np.testing.assert_allclose(found, expected, atol=0.15)


def test_intermittent_demand_is_a_rate():
    x = np.tile([0.0, 0.0, 6.0], 40)[None]
    assert BASELINES["croston"](3).paths(x)[0, 0] == pytest.approx(2)
    gone = np.c_[x, np.zeros((1, 60))]
    assert BASELINES["tsb"](3).paths(gone)[0, 0] < 0.05
    assert BASELINES["croston"](3).paths(gone)[0, 0] == pytest.approx(2)
    assert (BASELINES["croston"](3).paths(np.zeros((1, 9))) == 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_row_does_not_depend_on_its_neighbours(name):
    x = torch.randn(5, 40, 2, generator=torch.Generator().manual_seed(0))
    model = BASELINES[name](6, 4)
    whole = model.forecast(x)
    assert whole.shape == (5, 6, 2)
    torch.testing.assert_close(model.forecast(x[2:3])[..., 1:], whole[2:3, :, 1:])


@pytest.mark.parametrize("dynamic", [False, True])
def test_theta_is_its_recursion(dynamic):
    rng = np.random.default_rng(0)
    y = np.cumsum(rng.normal(size=(2, 25)), 1)
    a, b = _lines(y, dynamic)
    if dynamic:  # the line of what was known, by numpy's least squares
        for n in (2, 9, 25):
            slope, start = np.polyfit(np.arange(1, n + 1), y[0, :n], 1)
            np.testing.assert_allclose((b[0, n], a[0, n]), (slope, start), rtol=1e-8, atol=1e-10)
    level, omega, error = _fit(y, a, b, 0.3, True)
    for i in range(2):
        first = np.linspace(-5, 5, 3)

        def squares(start: float, w: float, i: int = i) -> tuple[float, float]:
            l, total = start, 0.0
            for t in range(1, 26):
                fade = 0.7 ** (t - 1)
                mu = l + w * (fade * a[i, t - 1] + (1 - fade * 0.7) / 0.3 * b[i, t - 1])
                total += (y[i, t - 1] - mu) ** 2 if t > 3 else 0
                l = 0.3 * y[i, t - 1] + 0.7 * l
            return total, l

        # The last level tells the first.
        start = (level[i] - squares(0.0, omega[i])[1]) / 0.7**25
        assert squares(start, omega[i])[0] == pytest.approx(error[i])
        for other in first:
            assert squares(start + other, omega[i])[0] >= error[i] - 1e-9
            assert squares(start, min(1, max(0, omega[i] + other / 50)))[0] >= error[i] - 1e-9
