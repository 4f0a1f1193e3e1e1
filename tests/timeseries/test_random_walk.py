"""What looks like a random walk, and what the packaged forecaster makes of it."""

from typing import NamedTuple

import numpy as np
import pytest

from longseq.timeseries.random_walk import _median, after_two, as_walks
from longseq.timeseries.zero_shot import Quantiles


class Walk(NamedTuple):
    likeness: float
    drift: float


def as_walk(series: np.ndarray, season: int = 0) -> Walk:
    """Returns likeness and drift of one series."""
    found = as_walks(np.asarray(series, float)[None], season)
    return Walk(float(found.likeness[0]), float(found.drift[0]))


def walk(n: int, seed: int = 0) -> np.ndarray:
    return 100 + np.cumsum(np.random.default_rng(seed).standard_normal(n))


def test_walks_look_like_walks_and_nothing_else_does():
    likeness = [as_walk(walk(800, seed)).likeness for seed in range(20)]
    assert np.mean(likeness) > 0.85 and np.median(likeness) == 1.0
    rng, t = np.random.default_rng(0), np.arange(800)
    noise = rng.standard_normal(800)
    smooth = np.cumsum(np.convolve(noise, np.ones(5), "same"))
    level = np.zeros(800)  # returns to its mean
    for i in range(1, 800):
        level[i] = 0.7 * level[i - 1] + noise[i]
    for other in (noise, smooth, level, np.sin(t * 2 * np.pi / 24) + 0.1 * noise):
        assert as_walk(other).likeness < 0.05
    monthly = np.tile(rng.standard_normal(24), 34)[:800] + 0.2 * np.cumsum(noise)
    assert as_walk(monthly, 24).likeness < as_walk(walk(800), 24).likeness


def test_scale_level_outliers_and_gaps_do_not_decide():
    series = walk(600, 3)
    base = as_walk(series)
    moved = as_walk(1e6 * series - 3e9)
    assert moved.likeness == pytest.approx(base.likeness, rel=1e-4)
    assert moved.drift == pytest.approx(1e6 * base.drift, rel=1e-4)
    jump = series.copy()
    jump[300:] += 500
    assert as_walk(jump).likeness > 0.5
    gaps = series.copy()
    gaps[np.random.default_rng(1).random(600) < 0.3] = np.nan
    assert as_walk(gaps).likeness > 0.5


def test_many_at_once_are_what_each_is_alone():
    rng = np.random.default_rng(2)
    rows = np.full((40, 300), np.nan)
    for i, row in enumerate(rows):
        n = rng.integers(3, 300)
        row[300 - n :] = walk(n, i) if i % 3 else rng.standard_normal(n)
        row[rng.random(300) < 0.1 * (i % 4)] = np.nan
    together = as_walks(rows, 12)
    for i, row in enumerate(rows):
        begun = row[np.isfinite(row).argmax() :] if np.isfinite(row).any() else row
        alone = as_walk(begun, 12)
        assert together.likeness[i] == pytest.approx(alone.likeness, rel=1e-9)
        assert together.drift[i] == pytest.approx(alone.drift, rel=1e-9, abs=1e-12)


def test_only_a_sure_drift_is_believed():
    rng = np.random.default_rng(5)
    steps = rng.standard_normal(400)
    steps -= steps.mean()
    assert as_walk(np.cumsum(steps)).drift == 0.0
    assert as_walk(np.cumsum(steps + 1.0)).drift == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("series", [[3.0], [3.0, 4.0], [2.0] * 90, [1.0, np.nan, 2.0]])
def test_too_little_says_nothing(series):
    assert as_walk(np.array(series), 7) == (1.0, 0.0)


def test_long_walks_are_forecast_halfway_to_their_last_value():
    series = walk(600, 3) - 100  # of both signs: no logarithms
    found = as_walk(series)
    assert found == (1.0, 0.0)
    raw, own = (Quantiles(calibrated=on).forecast([series], 12)[0] for on in (False, True))
    expected = (raw[:, 4] + series[-1]) / 2
    np.testing.assert_allclose(own[:, 4], expected)
    np.testing.assert_allclose(own[:, 8] - own[:, 0], raw[:, 8] - raw[:, 0])
    # The gap before the forecast belongs to the way that a drift has gone.
    rising = np.cumsum(np.random.default_rng(3).standard_normal(600) + 1.0) - 300
    late = np.concatenate([rising, np.full(5, np.nan)])
    drift = as_walk(late).drift
    raw, own = (Quantiles(calibrated=on).forecast([late], 12)[0, :, 4] for on in (False, True))
    pulled = rising[-1] + drift * np.arange(6, 18)
    np.testing.assert_allclose(own, raw + 0.5 * as_walk(late).likeness * (pulled - raw))


def test_long_series_with_a_season_are_left_alone():
    t = np.arange(600)
    series = np.sin(t * 2 * np.pi / 24) + 0.1 * np.random.default_rng(0).standard_normal(600)
    raw, own = (Quantiles(calibrated=on).forecast([series], 12, 24)[0] for on in (False, True))
    np.testing.assert_allclose(own, raw, atol=1e-3)


def test_a_long_line_goes_on_and_is_not_held_at_its_last_value():
    t = np.arange(500.0)
    found = as_walk(t)
    assert found == (1.0, 1.0)
    assert as_walk(-t).drift == -1.0
    for series, ahead in ((t, 500 + np.arange(48.0)), (1.01**t, 1.01 ** (500 + np.arange(48.0)))):
        made = [Quantiles(calibrated=on).forecast([series], 48)[0, :, 4] for on in (False, True)]
        raw, own = made
        assert np.abs(own - ahead).mean() < 0.6 * np.abs(raw - ahead).mean()


@pytest.mark.parametrize("every", [2, 4])
def test_values_without_neighbours_say_nothing_of_a_walk(every):
    t = np.arange(1201)
    series = np.where(t % every == 0, 20 + 10 * np.sin(2 * np.pi * t / 24), np.nan)
    assert np.isfinite(series).sum() > 256
    made = [Quantiles(calibrated=on).forecast([series], 24, 24)[0, :, 4] for on in (False, True)]
    raw, own = made
    np.testing.assert_array_equal(own, raw)


def test_many_long_series_are_each_what_they_are_alone():
    rng = np.random.default_rng(6)
    series = np.cumsum(rng.standard_normal((40, 2048)), 1)
    series[7, rng.random(2048) < 0.2] = np.nan
    together = as_walks(series, 24)
    for i in (0, 7, 15, 16, 39):
        alone = as_walks(series[i : i + 1], 24)
        np.testing.assert_allclose(together.likeness[i], alone.likeness[0], rtol=1e-9)
        np.testing.assert_allclose(together.drift[i], alone.drift[0], rtol=1e-9)
    assert [len(one) for one in as_walks(series[:0])] == [0, 0]


@pytest.mark.parametrize("count", [1, 2, 7, 8])
def test_medians_with_gaps_and_without(count):
    x = np.random.default_rng(7).standard_normal((3, count))
    gaps = np.concatenate([x, np.full((3, 2), np.nan)], 1)
    for rows in (x, gaps):
        found = _median(rows, np.isfinite(rows))
        np.testing.assert_array_equal(found, np.median(x, axis=1))


@pytest.mark.parametrize("values", [[1e140, 2e140, 1.5e140], [np.nan, 1e140, 3e140, np.nan, 2e140]])
def test_few_values_of_a_large_scale_overflow_nowhere(values):
    with np.errstate(all="raise"):
        found = as_walks(np.array([values]), 12)
    assert found.likeness.tolist() == [1.0] and found.drift.tolist() == [0.0]


def test_two_values_are_followed_by_a_random_walk():
    # The network alone goes up to 16 differences away, with an interval of a tenth of one.
    network = Quantiles()
    found = network.forecast([np.array([5.0, 6.5])], 4, season=12)[0]
    np.testing.assert_allclose(found[:, 4], 6.5)
    reach = 1.5 * np.tan(0.4 * np.pi) * np.sqrt([1, 2, 3, 4])
    np.testing.assert_allclose(found[:, 8], 6.5 + reach)
    np.testing.assert_allclose(found[:, 0], 6.5 - reach)
    # Two rows apart, and one row before the forecast: fewer and later rows, of the same walk.
    apart = network.forecast([np.array([5.0, np.nan, 6.5, np.nan])], 3)[0]
    np.testing.assert_allclose(apart[:, 8], 6.5 + (reach / np.sqrt(2))[1:])
    assert network.forecast([np.array([5.0, 6.0])], 4)[0].min() == 0  # counts
    assert after_two(np.array([5.0, np.nan]), 1, np.array([0.5])) is None


def test_intervals_after_two_values_of_a_walk_hold_what_they_say():
    steps = np.random.default_rng(0).standard_normal((2000, 8))
    values = 100 + np.cumsum(steps, 1)
    found = np.stack([after_two(one[:2], 6, np.array([0.1, 0.9])) for one in values])
    inside = (values[:, 2:] >= found[..., 0]) & (values[:, 2:] <= found[..., 1])
    assert abs(inside[:, 0].mean() - 0.8) < 0.03  # three standard errors
