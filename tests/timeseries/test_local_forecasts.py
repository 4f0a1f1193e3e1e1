"""Local models of many histories at once: those of each alone, and of what their equations say."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from longseq.timeseries import theta
from longseq.timeseries.models import local_forecasts as local
from longseq.timeseries.models._seasons import History
from longseq.timeseries.models.local_forecasts import burg, local_forecasts, smooth
from longseq.timeseries.models.zero_shot import ZeroShot


def walks(n: int, length: int, seed: int = 0) -> np.ndarray:
    steps = np.random.default_rng(seed).standard_normal((n, length))
    return np.cumsum(steps, 1) + 0.2 * np.arange(length)


def padded(y: np.ndarray, rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Values with so many rows of nonsense before them, their mask, and how many they are."""
    x = torch.from_numpy(np.concatenate([np.full((len(y), rows), 9.0), y], 1))
    mask = torch.ones_like(x)
    mask[:, :rows] = 0
    return x, mask, torch.full((len(y),), float(y.shape[1]), dtype=torch.float64)


@pytest.mark.parametrize("before", [0, 24])
def test_theta_and_its_smoothing_are_those_of_the_local_model(before, monkeypatch) -> None:
    monkeypatch.setattr(theta, "_BURN_IN", 0)
    y, kinds = walks(5, 40), len(local._FLAT)
    fit = smooth(*padded(y, before))
    a, b = theta._lines(y, False)
    for k, alpha in enumerate(local._FLAT):
        level, omega, error = theta._fit(y, a, b, alpha, False)
        path = theta._path(y, a, b, np.full(5, alpha), level, omega, 3, False)
        at = kinds + k
        found = fit.level[:, at, None] + fit.slope[:, at, None] * torch.arange(1, 4)
        np.testing.assert_allclose(found, path, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(fit.squares[:, at], error / 40, rtol=1e-9)
        # The weight of the line by least squares, but for the ridge of a thousandth.
        level, omega, error = theta._fit(y, a, b, alpha, True)
        at = 2 * kinds + k
        np.testing.assert_allclose(fit.squares[:, at], error / 40, rtol=1e-3)
        # A level alone does no better than with a line.
        assert (fit.squares[:, k] >= fit.squares[:, at] * (1 - 1e-9)).all()


def test_a_damped_slope_begins_by_least_squares() -> None:
    y = walks(3, 30, seed=1)
    fit = smooth(*padded(y, 7))

    def run(row: np.ndarray, level: float, slope: float) -> tuple[np.ndarray, float, float]:
        (alpha, beta, phi), errors = local._DAMPED[k], []
        for value in row:
            error = value - level - phi * slope
            level, slope = level + phi * slope + alpha * error, phi * slope + beta * error
            errors.append(error)
        return np.array(errors), level, slope

    for k in range(len(local._DAMPED)):
        for i, row in enumerate(y):
            zero = run(row, 0, 0)[0]
            effects = np.stack([zero - run(row, 1, 0)[0], zero - run(row, 0, 1)[0]], 1)
            first = np.linalg.lstsq(effects, zero, rcond=None)[0]
            errors, level, slope = run(row, *first)
            at = 3 * len(local._FLAT) + k
            assert float(fit.squares[i, at]) == pytest.approx((errors**2).mean(), rel=1e-3)
            assert float(fit.level[i, at]) == pytest.approx(level, abs=2e-2)
            assert float(fit.slope[i, at]) == pytest.approx(slope, abs=2e-2)


def test_autoregressions_are_found_and_stable() -> None:
    rng = np.random.default_rng(0)
    y = rng.standard_normal((4, 4000))
    for t in range(2, 4000):
        y[:, t] += 1.2 * y[:, t - 1] - 0.5 * y[:, t - 2]
    x, mask, _ = padded(y, 10)
    fit = burg(x * mask, mask)
    expected = np.zeros((4, local._ORDER))
    expected[:, :2] = 1.2, -0.5
    np.testing.assert_allclose(fit.weights, expected, atol=0.1)
    np.testing.assert_allclose(fit.squares, 1.0, rtol=0.1)
    noise = burg(torch.from_numpy(rng.standard_normal((50, 64))), torch.ones(50, 64).double())
    assert float(noise.reflections.abs().max()) < 1
    assert float((noise.reflections == 0).double().mean()) > 0.6  # two standard errors


def history(x: torch.Tensor, before: int = 0) -> History:
    mask = torch.ones_like(x)
    mask[:, :before] = 0
    return History(x, mask, mask.sum(1))


def test_lines_go_on_and_padding_changes_nothing() -> None:
    line = torch.arange(60.0).expand(2, -1) * torch.tensor([[2.0], [-0.5]]) + 3
    season, unit = torch.zeros(2, 64), torch.tensor([[2.0], [0.5]])
    found = local_forecasts(history(line), line, season, unit)
    ahead = line[:, -1:] + torch.tensor([[2.0], [-0.5]]) * torch.arange(1, 65)
    for k in (2, 5):  # a level with a drift, and an autoregression of differences
        torch.testing.assert_close(found.forecasts[..., k], ahead, rtol=2e-2, atol=0.2)
    x = torch.from_numpy(walks(3, 50)).float()
    more = torch.cat([x[:, :1].expand(-1, 30), x], 1)
    one = local_forecasts(history(x), x, torch.zeros(3, 64), torch.ones(3, 1))
    two = local_forecasts(history(more, 30), more, torch.zeros(3, 64), torch.ones(3, 1))
    for a, b in zip(one, two):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    # What is carried into a gap changes nothing.
    known = history(x)
    known.mask[:, 20:25] = 0
    other = x.clone()
    other[:, 20:25] = 99.0
    gap = [local_forecasts(known, y, torch.zeros(3, 64), torch.ones(3, 1)) for y in (x, other)]
    assert all(torch.equal(a, b) for a, b in zip(*gap))
    assert (one.widths[:, 1:] >= one.widths[:, :-1] - 1e-6).all()


def test_a_network_with_local_models_differs_and_needs_them() -> None:
    torch.manual_seed(0)
    network = ZeroShot(d_model=16, n_layers=0, hidden=16, local=True)
    x = torch.from_numpy(walks(2, 64)).float()
    known, hint = torch.ones_like(x, dtype=torch.bool), torch.zeros(2, dtype=torch.int64)
    with torch.inference_mode():
        found = network(x, known, hint)
    assert torch.isfinite(found.quantiles[0]).all()
    # Training after a forecast, and gradients of what was read.
    read = x.clone().requires_grad_()
    network(read, known, hint).quantiles[0].sum().backward()
    assert read.grad is not None and torch.isfinite(read.grad).all()
    assert all(torch.isfinite(one.grad).all() for one in network.parameters())
    # The gates begin even over 23 forecasts, and the local models are six of them.
    with torch.no_grad():
        network.gate.bias.view(-1, 8)[-6:, 0] = -50.0
    assert not torch.allclose(network(x, known, hint).quantiles[0], found.quantiles[0])
