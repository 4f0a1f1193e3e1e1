"""Scores of ensembles and forecasts, beside their definitions and the packages that have them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from longseq.core.errors import ArgumentError
from longseq.weather import ensembles

LAT = np.linspace(-75, 75, 6)
WEIGHTS = np.cos(np.deg2rad(LAT))[:, None] * np.ones(8)
WHY = "not installed; the definitions are tested beside it"


@pytest.fixture
def case() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((7, 5, 6, 8)), rng.standard_normal((5, 6, 8))


@pytest.mark.parametrize("fair", [True, False])
def test_crps_is_its_definition(fair: bool, case) -> None:
    x, y = case
    pairs = sum(np.abs(a - b) for a, b in itertools.product(x, x))
    count = len(x) * (len(x) - 1) if fair else len(x) ** 2
    expected = sum(np.abs(one - y) for one in x) / len(x) - pairs / (2 * count)
    np.testing.assert_allclose(ensembles.crps(x, y, fair), expected, atol=1e-13)
    if not fair:
        np.testing.assert_allclose(ensembles.crps(x[:1], y, False), np.abs(x[0] - y), atol=1e-15)


def test_crps_of_a_normal_ensemble_is_the_closed_form() -> None:
    x = np.random.default_rng(1).standard_normal((400, 400))
    closed = np.sqrt(2 / np.pi) - 1 / np.sqrt(np.pi)  # at y = 0
    assert ensembles.crps(x, np.zeros(400)).mean() == pytest.approx(closed, abs=2e-3)


def test_masked_cells_are_left_out_as_if_cut_out(case) -> None:
    x, y = case
    mask = np.ones((6, 8), dtype=bool)
    mask[2:4] = False
    holes = np.where(mask, x, np.nan), np.where(mask, y, np.nan)
    own, rows = WEIGHTS * mask, [0, 1, 4, 5]
    cut, weights = (x[:, :, rows], y[:, rows]), WEIGHTS[rows]
    for name in ("mean_crps", "spread_skill"):
        function = getattr(ensembles, name)
        np.testing.assert_allclose(function(*holes, own), function(*cut, weights), rtol=1e-13)
    found = ensembles.rmse(holes[0][0], holes[1], own)
    np.testing.assert_allclose(found, ensembles.rmse(cut[0][0], cut[1], weights), rtol=1e-13)
    found = ensembles.acc(holes[0][0], holes[1], np.zeros((6, 8)), own, centred=True)
    expected = ensembles.acc(cut[0][0], cut[1], 0.0, weights, centred=True)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_spread_equals_skill_where_the_truth_is_one_of_the_members() -> None:
    x = np.random.default_rng(2).standard_normal((11, 4000, 2, 3))
    spread, skill = ensembles.spread_skill(x[1:], x[0])
    assert spread == pytest.approx(skill, rel=0.01)


def test_acc_of_a_forecast_without_anomalies_is_none(case) -> None:
    y = case[1]
    assert np.isnan(ensembles.acc(np.zeros_like(y), y, 0.0)).all()
    np.testing.assert_allclose(ensembles.acc(3 * y, y, 0.0), 1.0)


def test_what_does_not_fit_is_refused(case) -> None:
    x, y = case
    with pytest.raises(ArgumentError, match="too few"):
        ensembles.crps(x[:1], y)
    with pytest.raises(ArgumentError, match="weights of the shape"):
        ensembles.rmse(y, y, np.ones(6))


def test_crps_is_that_of_scores(case) -> None:
    probability = pytest.importorskip("scores.probability", reason=WHY)
    import xarray as xr

    x, y = (xr.DataArray(one, dims=("m", "t", "y", "x")[-one.ndim :]) for one in case)
    for fair, method in ((True, "fair"), (False, "ecdf")):
        own = probability.crps_for_ensemble(x, y, "m", method=method, preserve_dims="all")
        np.testing.assert_allclose(ensembles.crps(*case, fair), own.values, atol=1e-13)


def test_scores_are_those_of_xskillscore(case) -> None:
    xskillscore = pytest.importorskip("xskillscore", reason=WHY)
    import xarray as xr

    x, y = (xr.DataArray(one, dims=("member", "t", "y", "x")[-one.ndim :]) for one in case)
    w, how = xr.DataArray(WEIGHTS, dims=("y", "x")), {"dim": ["y", "x"]}
    rmse = xskillscore.rmse(x[0], y, weights=w, **how).values
    np.testing.assert_allclose(ensembles.rmse(case[0][0], case[1], WEIGHTS), rmse, rtol=1e-12)
    pearson = xskillscore.pearson_r(x[0], y, weights=w, **how).values
    found = ensembles.acc(case[0][0], case[1], 0.0, WEIGHTS, centred=True)
    np.testing.assert_allclose(found, pearson, rtol=1e-10)
    crps = xskillscore.crps_ensemble(y, x, dim=[]).values
    np.testing.assert_allclose(ensembles.crps(*case, False), crps, atol=1e-12)
