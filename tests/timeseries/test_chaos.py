"""Chaos: exponents that are known, times and distances by hand, a reservoir that finds the law."""

import numpy as np
import pytest

from longseq.core.errors import ConfigError
from longseq.timeseries.chaos import (
    NextGenerationReservoir,
    attractor_distance,
    lyapunov_exponent,
    valid_prediction_time,
)
from longseq.timeseries.data.chaos import SYSTEMS, simulate


def test_the_exponent_of_lorenz_is_nine_tenths() -> None:
    assert lyapunov_exponent("lorenz", 8000, 32) == pytest.approx(0.9056, rel=0.05)


@pytest.mark.parametrize("name", ["henon", "logistic", "ikeda"])
def test_exponents_of_maps(name: str) -> None:
    assert lyapunov_exponent(name, 4000, 32) == pytest.approx(SYSTEMS[name].lyapunov, rel=0.05)


def test_valid_time_ends_at_the_first_error_too_large() -> None:
    truth = np.zeros((3, 5, 2))
    forecast = truth.copy()
    forecast[0, 2] = 0.5  # and right again afterwards
    forecast[1, 4, 0] = np.nan
    found = valid_prediction_time(forecast, truth, np.ones(2))
    assert found.tolist() == [2, 4, 5]
    assert valid_prediction_time(forecast, truth, np.full(2, 2.0)).tolist() == [5, 4, 5]


def test_distance_is_0_for_the_same_climate_and_1_for_another() -> None:
    t = np.arange(600)[None, :, None]
    slow, fast = np.sin(0.05 * t), np.sin(2 * t)
    assert attractor_distance(slow, slow) == pytest.approx(0, abs=1e-6)
    assert attractor_distance(slow, fast) > 0.9
    paths = simulate("lorenz", 1500, 2, every=2)
    assert attractor_distance(paths[:1], paths[1:]) < 0.2
    assert attractor_distance(np.full_like(slow, np.inf), slow) > 0.3


def test_a_reservoir_is_exact_for_a_map_of_its_degree() -> None:
    path = simulate("henon", 400, 4)
    made = NextGenerationReservoir(1, degree=2, ridge=1e-14).fit(path[0])
    found = made.forecast(path[1:, :50], 8)
    np.testing.assert_allclose(found, path[1:, 50:58], atol=1e-4)
    alone = made.forecast(path[2:3, :50], 8)
    np.testing.assert_allclose(alone, found[1:2], rtol=1e-6, atol=1e-7)


def test_a_reservoir_knows_lorenz_for_lyapunov_times_and_a_linear_map_does_not() -> None:
    path = simulate("lorenz", 2500, 6, every=3)
    known, truth = path[1:, :100], path[1:, 100:500]
    times = {}
    for degree in (1, 2):
        made = NextGenerationReservoir(2, degree=degree).fit(path[0])
        steps = valid_prediction_time(made.forecast(known, 400), truth, path[0].std(0))
        times[degree] = np.median(steps) * 0.03 * 0.9056
    assert times[2] > 3 > 1 > times[1]


def test_wrong_use_of_a_reservoir() -> None:
    with pytest.raises(ConfigError, match="degree is 1, 2 or 3"):
        NextGenerationReservoir(degree=4)
    with pytest.raises(ConfigError, match="call fit"):
        NextGenerationReservoir().forecast(np.zeros((1, 9, 2)), 3)
    with pytest.raises(ConfigError, match="more than 3 rows"):
        NextGenerationReservoir(2).fit(np.zeros((3, 2)))
