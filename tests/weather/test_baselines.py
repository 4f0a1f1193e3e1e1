"""Scenarios, leaks and baselines: laws on made-up runs, published figures on the packaged ones."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longseq.core.errors import ConfigError, DataError
from longseq.weather.baselines import BASELINES, PatternScaling, Ridge, predict_baseline
from longseq.weather.compare import _next_step
from longseq.weather.data.scenario import (
    deviations,
    inside,
    make_scenario,
    parse_span,
    read_series,
    refuse_leak,
    running_mean,
    shared_years,
    spans_text,
)
from longseq.weather.data.source import read_field
from longseq.weather.metrics import global_rmse, spatial_rmse


@given(st.integers(1, 30), st.sampled_from([1, 3, 7, 31]), st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_the_running_mean_is_centred_and_shrinks_at_the_ends(length, window, seed) -> None:
    series = np.random.default_rng(seed).standard_normal(length)
    half = window // 2
    expected = [series[max(0, i - half) : i + half + 1].mean() for i in range(length)]
    assert np.allclose(running_mean(series, window), expected)


def test_spans() -> None:
    assert parse_span("x", "1860-1889") == (1860, 1889) and parse_span("x", "1900") == (1900, 1900)
    assert spans_text([1860, 1861, 1862, 1900]) == "1860-1862, 1900"
    for text in ("1889-1860", "soon", "1860-1870-1880", ""):
        with pytest.raises(ConfigError, match="years such as"):
            parse_span("--period", text)
    with pytest.raises(ConfigError, match="odd"):
        running_mean(np.ones(3), 2)


def test_shared_years_are_found_and_refused(runs) -> None:
    high, low = (make_scenario(read_field(path), (1900, 1919), 5) for path in runs)
    assert shared_years(high, low).tolist() == list(range(1900, 1940))
    assert refuse_leak([high], low, (1970, 1979)).tolist() == list(range(1900, 1940))
    with pytest.raises(
        DataError, match=r"low.nc: the years 1938-1939 are the same as in .*high.nc.*leak"
    ):
        refuse_leak([high], low, (1938, 1945))
    with pytest.raises(DataError, match="the same run"):
        refuse_leak([high], high, (1970, 1979))


def test_pattern_scaling_is_the_same_whatever_the_units_of_forcings() -> None:
    """Carbon in kg (1e13) beside a burden in kg m-2 (1e-9)."""
    rng = np.random.default_rng(0)
    x, slopes = rng.standard_normal((200, 2)), rng.standard_normal((2, 3, 4))
    y = 0.5 + np.einsum("tk,kyx->tyx", x, slopes)
    units = np.array([1e13, 1e-9]), np.array([4e13, 0.0])
    model = PatternScaling().fit(x * units[0] + units[1], y)
    assert np.abs(model.predict(x * units[0] + units[1]) - y).max() < 1e-12
    assert np.abs(model.slopes * units[0][:, None, None] - slopes).max() < 1e-12


def test_collinear_and_constant_forcings_share_slopes_of_their_own_size() -> None:
    """Ten digits of a table tell twice a column from it; single precision does not."""
    rng = np.random.default_rng(0)
    first, other = rng.standard_normal((2, 200))
    twice = 2 * first + 1e-10 * rng.standard_normal(200)
    x = np.stack([first, twice, other, np.full(200, 0.1)], 1)
    assert deviations(x)[3] == 0 < deviations(x)[:3].min()
    y = (first - other)[:, None] + 0.1 * rng.standard_normal((200, 2))
    slopes, intercept = Ridge(0.0).fit(x, y).linear()
    assert np.abs(slopes).max() < 2
    expected = Ridge(0.0).fit(x[:, [0, 2]], y)
    assert np.abs(x @ slopes.T + intercept - expected.predict(x[:, [0, 2]])).max() < 1e-8


def test_repacked_years_are_still_the_same(runs, write, lab) -> None:
    high = make_scenario(read_field(runs[0]), (1900, 1919), 5)
    packed = {
        "tas": {"dtype": "int16", "scale_factor": 0.0002, "add_offset": 282.0, "_FillValue": -32768}
    }
    again = make_scenario(
        read_field(write(lab.dataset(lab.fields(2, 1.5)), encoding=packed)), (1900, 1919), 5
    )
    assert not np.array_equal(again.anomalies[:40], high.anomalies[:40])
    assert shared_years(high, again).tolist() == list(range(1900, 1940))


def test_other_grids_and_units_are_refused(runs, write, lab) -> None:
    high = make_scenario(read_field(runs[0]), (1900, 1919), 5)
    moved = write(lab.dataset(lab.fields(2), lab.LAT + 1))
    with pytest.raises(DataError, match="another grid"):
        shared_years(high, make_scenario(read_field(moved), (1900, 1919), 5))
    with pytest.raises(DataError, match="lacks 20 of the baseline years 1850-1869"):
        make_scenario(read_field(runs[0]), (1850, 1869), 5)


def test_pattern_scaling_recovers_slopes_and_intercepts() -> None:
    rng = np.random.default_rng(0)
    x, slopes, start = (
        rng.standard_normal((50, 2)),
        rng.standard_normal((2, 3, 4)),
        rng.standard_normal((3, 4)),
    )
    made = PatternScaling().fit(x, start + np.einsum("tk,kyx->tyx", x, slopes))
    assert np.allclose(made.slopes, slopes) and np.allclose(made.intercept, start)


def test_baselines_look_only_at_predictors_and_known_years(runs) -> None:
    high, low = (make_scenario(read_field(path), (1900, 1919), 5) for path in runs)
    chosen, known = inside(low.years, (1970, 1979)), np.arange(1900, 1940)
    before = {name: predict_baseline(name, [high], low, chosen, known) for name in BASELINES}
    low.anomalies[40:] = 1e6  # what is not known beforehand
    for name, expected in before.items():
        found = predict_baseline(name, [high], low, chosen, known)
        assert found.shape == (10, 4, 5) and np.array_equal(found, expected)
    with pytest.raises(ConfigError, match="did you mean 'uniform'"):
        predict_baseline("unifrm", [high], low, chosen, known)


def test_the_published_figures() -> None:
    runs = [
        make_scenario(read_field(name), (1860, 1889), 31)
        for name in ("A1B_north_america", "E1_north_america")
    ]
    high, low = runs
    chosen, known = inside(low.years, (2080, 2099)), refuse_leak([high], low, (2080, 2099))
    assert known.tolist() == list(range(1860, 2000))
    scores = {}
    for name in BASELINES:
        guess = predict_baseline(name, [high], low, chosen, known)
        scores[name] = spatial_rmse(guess, low.anomalies[chosen], low.weights)
        assert global_rmse(guess, low.anomalies[chosen], low.weights) > 0
    for name, value in {"lps": 0.316, "uniform": 0.883, "zero": 2.569, "copy": 2.596}.items():
        assert scores[name] == pytest.approx(value, abs=0.005), name


def test_forcings_from_csv_and_netcdf(runs, tmp_path, lab) -> None:
    rows = [f"{year},{year - 1900},{0.5 * (year - 1900)}" for year in lab.YEARS]
    table = tmp_path / "f.csv"
    table.write_text("\n".join(["year,co2,ch4", *rows]))
    run = make_scenario(read_field(runs[0]), (1900, 1919), 5, str(table))
    assert run.names == ("co2", "ch4") and run.predictors[-1].tolist() == [79.0, 39.5]
    years, values, names = read_series(runs[0])  # a field is averaged over the area
    assert names == ["tas"] and np.allclose(
        values[:, 0] - values[:20, 0].mean(), _mean(runs[0]), atol=1e-4
    )
    assert years.tolist() == lab.YEARS.tolist()
    table.write_text("year,co2\n1900,0\n1901,1\n1902,2\n1903,n/k\n")
    with pytest.raises(DataError, match="line 5: co2: 'n/k' is no number"):
        read_series(table)
    table.write_text("\n".join(["year,co2", *rows[:3]]))
    with pytest.raises(DataError, match="line 2: has more cells than there are columns"):
        read_series(table)
    table.write_text("year,co2\n1901,1\n1900,2\n")
    with pytest.raises(DataError, match="year 1900: years must ascend"):
        read_series(table)
    table.write_text("when,co2\n1901,1\n")
    with pytest.raises(DataError, match=r"no column 'year' \(it has 'when', 'co2'\)"):
        read_series(table)
    table.write_text("Year;co2\n1901;1\n")
    with pytest.raises(DataError, match=r"it has 'Year;co2'\) \(its cells are parted by semicol"):
        read_series(table)
    table.write_text("year,Year,co2\n1901,1901,1\n")
    with pytest.raises(DataError, match="several columns of years: year, Year"):
        read_series(table)
    table.write_text("Year, co2\n1901, 1\n1902, 2\n")  # as people write it
    years, values, names = read_series(table, ["co2"])
    assert years.tolist() == [1901, 1902] and values[:, 0].tolist() == [1, 2] and names == ["co2"]
    with pytest.raises(DataError, match=r"no series 'ch4' \(it has co2\) \(call the column of it"):
        read_series(table, ["ch4"])


def _mean(path: str) -> np.ndarray:
    run = make_scenario(read_field(path), (1900, 1919), 1)
    return run.mean()


def test_a_memory_is_advised_where_none_was_tried() -> None:
    """With forcings the emulator's linear part has chosen between both."""
    said = ["emulator does not beat the best baseline, lagged: 0.3 against 0.1 K"]
    assert "linear=lagged" in _next_step(said, regional=True)[0]
    assert _next_step(said, regional=False) == []
    assert _next_step(["emulator beats lagged"], regional=True) == []
