"""Generated populations and totals: what their definitions say of them."""

import numpy as np
import pytest

from longseq.timeseries.data.cumulative import cumulative, populations, rates, totals


def test_rates_are_smooth_and_remember():
    x = rates(np.random.default_rng(0), 400, 300)
    steps = np.diff(x, axis=1)
    # Of white noise of unit variance steps have a deviation of 1.41; memories are 1 and 3 or more.
    assert np.median(steps.std(1)) < 0.5 and steps.std(1).max() < 1.6
    assert np.median(np.abs((x[:, 1:] * x[:, :-1]).mean(1))) > 0.8


def test_populations_grow_by_their_rate_and_hardly_by_chance():
    rng = np.random.default_rng(1)
    x = populations(rng, 500, 240, np.ones(500, int))
    once, twice = np.diff(x, axis=1), np.diff(x, n=2, axis=1)
    turn = np.abs(twice).mean(1) / np.abs(once).mean(1)
    # Differences of noise have a ratio of √3; more than half the series are far from that.
    assert np.median(turn) < 0.3 and np.quantile(turn, 0.1) < 0.05
    year = np.full(500, 12)
    season = populations(rng, 500, 240, year)
    months = np.diff(season, axis=1)[:, :228].reshape(500, 19, 12)
    explained = months.mean(1).var(1) / months.reshape(500, -1).var(1)
    assert (explained > 0.5).mean() > 0.15


def test_totals_never_fall():
    rng = np.random.default_rng(2)
    x = totals(rng, 300, 200, rng.choice([1, 7], 300))
    assert np.isfinite(x).all() and (np.diff(x, axis=1) >= 0).all() and (x >= 0).all()
    whole = (np.diff(x, axis=1) % 1 == 0).all(1).mean()
    assert 0.1 < whole < 0.5  # sums of counts, three of ten


@pytest.mark.parametrize("length", [1, 5, 600])
def test_both_kinds_have_their_seasons_and_a_bounded_reach(length: int):
    x, periods = cumulative(np.random.default_rng(3), 200, length)
    assert x.shape == (200, length) and np.isfinite(x).all()
    assert set(periods) == {0, 4, 7, 12, 24}
    again, _ = cumulative(np.random.default_rng(3), 200, length)
    np.testing.assert_array_equal(x, again)
    none, empty = cumulative(np.random.default_rng(3), 0, length)
    assert none.shape == (0, length) and empty.shape == (0,)
