"""Grids: regions over Greenwich, bounds of the file, areas that cdo and iris agree with."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longseq.core.errors import DataError
from longseq.weather.data.grid import Grid, column_order, make_grid
from longseq.weather.data.source import read_field
from longseq.weather.data.times import year_bounds
from longseq.weather.data.writer import Variable, to_dataset, write_dataset

EUROPE = np.arange(35, 71, 5.0), np.arange(-10, 41, 5.0)


def test_a_region_over_greenwich_stays_whole(write, lab, tmp_path) -> None:
    lat, lon = EUROPE
    values = np.random.default_rng(0).uniform(270, 290, (6, 8, 11)).astype(np.float32)
    found = read_field(write(lab.dataset(values, lat, lon)))
    assert found.lon.tolist() == lon.tolist() and not found.grid.periodic and not found.notes
    assert found.grid.lon_bounds[[0, -1]].tolist() == [[-12.5, -7.5], [37.5, 42.5]]
    # Stored torn apart, as 0 … 40, 350, 355, it is the same field.
    order = np.argsort(np.mod(lon, 360))
    torn = read_field(write(lab.dataset(values[..., order], lat, np.mod(lon, 360)[order]), "t.nc"))
    assert np.array_equal(torn.values, found.values) and torn.grid.same(found.grid)
    field = Variable("tas", found.values, "K", {"standard_name": "air_temperature"})
    edges = year_bounds(found.years, found.calendar)
    data = to_dataset([field], found.time, found.calendar, found.grid, {}, edges)
    again = read_field(write_dataset(data, tmp_path / "again.nc"))
    assert np.array_equal(again.values, found.values) and not again.notes
    assert np.array_equal(again.grid.lon_bounds, found.grid.lon_bounds)


def test_areas_of_a_region_and_of_the_globe() -> None:
    lat, lon = EUROPE
    weights = Grid.of(lat, lon).weights()
    rows = np.sin(np.deg2rad(lat + 2.5)) - np.sin(np.deg2rad(lat - 2.5))
    assert np.allclose(weights, np.repeat(rows[:, None], 11, 1) / rows.sum() / 11)
    assert weights[-1, 0] < weights[0, 0]  # the outer rows do not reach to the poles
    # On an equally spaced region areas are proportional to cosines.
    assert np.allclose(weights, Grid.of(lat, lon).weights("cos"))
    globe = Grid.of(np.array([-90.0, -45, 0, 45, 90]), np.arange(0, 360, 90.0))
    assert globe.periodic and globe.weights().sum() == pytest.approx(1, abs=1e-15)
    assert globe.weights()[0, 0] == pytest.approx((1 - np.sin(np.deg2rad(67.5))) / 8)
    mask = np.ones((5, 4), bool)
    mask[2] = False
    assert globe.weights(mask=mask)[2].sum() == 0
    with pytest.raises(DataError, match="no grid cell"):
        globe.weights(mask=np.zeros((5, 4), bool))


def test_the_files_own_bounds_are_used(write, lab) -> None:
    lat = np.array([-80.0, 10, 50, 80])
    made = lab.dataset(lab.fields()[:3], lat=lat)
    made["lat_bnds"] = (("lat", "bnds"), np.array([[-90, 0], [0, 30], [30, 70], [70, 90.0]]))
    lon = np.array([[0, 55], [55, 150], [150, 250], [250, 325], [325, 360.0]])
    made["lon_bnds"] = (("lon", "bnds"), lon)
    made["lat"].attrs["bounds"], made["lon"].attrs["bounds"] = "lat_bnds", "lon_bnds"
    grid = read_field(write(made)).grid
    assert grid.lat_bounds[:, 1].tolist() == [0, 30, 70, 90] and grid.periodic
    assert np.allclose(grid.lon_bounds, lon)
    rows = np.diff(np.sin(np.deg2rad([-90, 0, 30, 70, 90])))
    assert np.allclose(grid.weights().sum(1), rows / 2)


@given(st.integers(2, 40), st.integers(-180, 179), st.booleans())
@settings(max_examples=60, deadline=None)
def test_any_window_of_equal_columns_stays_whole(count: int, west: int, turned: bool) -> None:
    step = 5.0
    lon = west + step * np.arange(count)
    stored = np.mod(lon, 360) if turned else lon
    grid, order = make_grid(np.array([0.0, 5]), stored, None, None, "f")
    assert np.allclose(np.diff(grid.lon), step) and not grid.periodic
    assert np.allclose(np.mod(grid.lon - stored[order] + 1, 360), 1)
    assert np.allclose(np.diff(grid.lon_bounds, axis=1), step)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 144])
def test_columns_round_the_globe(count: int) -> None:
    lon = np.arange(count) * 360.0 / count - 180
    centres, _ = column_order(lon)
    grid = Grid.of(np.array([0.0]), centres)
    assert grid.periodic and centres[0] >= 0 and centres[-1] < 360
    assert np.allclose(np.diff(grid.lon_bounds, axis=1), 360 / count)


def test_bounds_in_another_turn_and_wrong_ones() -> None:
    lat = np.array([0.0, 10])
    lon, bounds = np.array([350.0, 0, 10]), np.array([[345, 355], [355, 5], [5, 15.0]])
    grid, order = make_grid(lat, lon, None, bounds, "f")
    assert grid.lon.tolist() == [-10, 0, 10] and order.tolist() == [0, 1, 2]
    assert grid.lon_bounds.tolist() == [[-15, -5], [-5, 5], [5, 15]]
    # What an edge halfway to a torn-off neighbour gives.
    torn = np.array([[345, 355], [355, 5], [5, 180.0]])
    with pytest.raises(DataError, match="do not surround 10"):
        make_grid(lat, lon, None, torn, "f")
    with pytest.raises(DataError, match="overlap"):
        make_grid(lat, lon, np.array([[-5, 8], [2, 15.0]]), None, "f")
    with pytest.raises(DataError, match="do not surround"):
        make_grid(lat, lon, np.array([[-5, 5], [12, 15.0]]), None, "f")


def test_facts_of_earlier_checkpoints_are_read() -> None:
    grid = Grid.of(*EUROPE)
    again = Grid.from_facts(grid.facts())
    assert again.same(grid) and np.array_equal(again.lon_bounds, grid.lon_bounds)
    earlier = {"lat": [0.0, 10.0], "lon": [0.0, 10.0, 20.0]}
    assert Grid.from_facts(earlier).lon_bounds[-1].tolist() == [15, 25]
