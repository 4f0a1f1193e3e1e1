"""Generated series of the kind of economic statistics: what their equations say of them."""

import numpy as np
import pytest

from longseq.timeseries.data.economy import (
    airline,
    business_cycle,
    calendar,
    components,
    economy,
    weekdays,
)


@pytest.mark.parametrize("year", [4, 12])
def test_the_airline_models_differences_are_a_product_of_moving_averages(year):
    y = airline(np.random.default_rng(0), 300, 100 * year + 7, year)
    w = np.diff(y, axis=1)
    w = (w[:, year:] - w[:, :-year])[:, year:]  # the first year's are not of the model's
    w -= w.mean(1, keepdims=True)

    def correlation(lag: int) -> np.ndarray:
        return (w[:, lag:] * w[:, :-lag]).sum(1) / (w**2).sum(1)

    one, season = correlation(1), correlation(year)
    # Of (1 - b B^s) with b in [0.45, 0.98], evenly: the mean of -b / (1 + b²) is -0.453, and
    # a correlation is off by less than 1 / sqrt(1200 · 300) · 10 = 0.02 on the mean.
    assert season.mean() == pytest.approx(-0.453, abs=0.02)
    assert -0.47 < one.mean() < -0.25  # of -a / (1 + a²), a in [0, 0.95]: -0.345
    for lag in (year - 1, year + 1):
        assert (correlation(lag) - one * season).mean() == pytest.approx(0, abs=0.02)
    assert correlation(2 * year).mean() == pytest.approx(0, abs=0.02)
    if year > 4:
        assert correlation(5).mean() == pytest.approx(0, abs=0.02)


def test_business_cycles_take_four_to_ten_years():
    x = business_cycle(np.random.default_rng(0), 200, 12 * 60, 12)
    np.testing.assert_allclose(x.std(1), 1)
    power, years = np.abs(np.fft.rfft(x)) ** 2, np.fft.rfftfreq(x.shape[1], 1 / 12)
    inside = power[:, (years > 1 / 14) & (years < 1 / 3)].sum(1) / power.sum(1)
    assert np.median(inside) > 0.7
    assert power[:, years > 1].sum() < 0.02 * power.sum()


def test_seasons_change_from_year_to_year_and_stay_alike():
    x = components(np.random.default_rng(0), 400, 12 * 20, 12).reshape(400, 20, 12)
    slope = (x[:, 1:].mean(2) - x[:, :-1].mean(2)).mean(1)
    season = x - x.mean(2, keepdims=True) - slope[:, None, None] * (np.arange(12) - 5.5) / 12
    season = season[season[:, 0].std(1) > 0.1]  # well above the noise

    def alike(first: int, second: int) -> np.ndarray:
        a, b = season[:, first], season[:, second]
        return (a * b).mean(1) / (a.std(1) * b.std(1))

    next_year, last_year = alike(0, 1), alike(0, 19)
    assert len(season) > 50
    assert np.median(next_year) > 0.95
    assert (last_year < next_year).mean() > 0.62  # of fixed seasons 0.5, with a deviation of 0.04
    assert np.quantile(last_year, 0.1) < 0.85 and np.quantile(last_year, 0.5) > 0.8


def test_months_hold_the_calendars_days():
    counts = weekdays()
    assert counts.shape == (2400, 7)
    month = 12 * (2024 - 1900)
    assert counts[month].tolist() == [5, 5, 5, 4, 4, 4, 4]  # January 2024 begins on a Monday
    assert counts[month + 1].tolist() == [4, 4, 4, 5, 4, 4, 4]  # 29 days
    assert counts[0].sum() == 31 and counts[1].tolist() == [4] * 7  # 1900 had no leap day


def test_calendar_effects_follow_the_days_and_one_feast_a_year():
    months = np.tile(np.arange(480), (40, 1)) + 7
    found = calendar(np.random.default_rng(0), months)
    spring = np.isin(months[0] % 12, (2, 3))
    days = np.column_stack([weekdays()[months[0]], np.ones(480)])
    feasts = 0
    for one in found:
        weights = np.linalg.lstsq(days[~spring], one[~spring], rcond=None)[0]
        rest = one - days @ weights
        np.testing.assert_allclose(rest[~spring], 0, atol=1e-12)
        pairs = rest[spring].reshape(-1, 2)  # March and April of 40 years
        size = pairs[np.arange(40), np.abs(pairs).argmax(1)]
        np.testing.assert_allclose(pairs.sum(1), size, atol=1e-12)
        np.testing.assert_allclose(size, size[0], atol=1e-12)
        feasts += abs(size[0]) > 1e-9
    assert 4 <= feasts <= 22  # three of ten


def test_economic_series_have_a_years_rows_and_a_bounded_reach():
    x, periods = economy(np.random.default_rng(0), 400, 576)
    counts = [int((periods == rows).sum()) for rows in (0, 4, 12)]
    assert sum(counts) == 400 and min(counts) > 40
    positive = (x > 0).all(1)
    assert 0.6 < positive.mean() < 0.95
    reach = np.log(x[positive]).max(1) - np.log(x[positive]).min(1)
    assert reach.max() < 5 + 1e-9
    again, _ = economy(np.random.default_rng(0), 400, 576)
    np.testing.assert_array_equal(x, again)
    one, _ = economy(np.random.default_rng(1), 1, 3000)  # longer than the calendar's 200 years
    assert np.isfinite(one).all()
