"""Runs whose years are cut by the ends of their files, and records that are parts of years."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import cftime
import numpy as np
import pytest
import xarray as xr

from longseq.core.errors import DataError
from longseq.weather.data.runs import read_run
from longseq.weather.data.seasons import Part
from longseq.weather.data.yearly import read_years

Write = Callable[..., Path]
EPOCH = "days since 1950-01-01"
LAT, LON = np.array([-45.0, 0.0, 45.0]), np.arange(0.0, 360.0, 90.0)
SUMMER, WINTER = Part((6, 7, 8)), Part((12, 1, 2))


def months(first: tuple[int, int], count: int, bounds: bool = True) -> xr.Dataset:
    """Returns random monthly temperatures from a month of a year on, equal for equal months."""
    at = [first[0] * 12 + first[1] - 1 + step for step in range(count + 1)]
    starts = [cftime.datetime(one // 12, one % 12 + 1, 1, calendar="standard") for one in at]
    numbers = cftime.date2num(starts, EPOCH, "standard").astype(float)
    values = [280 + np.random.default_rng(one).standard_normal((3, 4)) for one in at[:-1]]
    time = {"units": EPOCH, "calendar": "standard", **({"bounds": "t_b"} if bounds else {})}
    edges = np.stack([numbers[:-1], numbers[1:]], 1)
    data = xr.Dataset(
        {"tas": (("time", "lat", "lon"), np.array(values), {"units": "K"})},
        {
            "time": ("time", edges.mean(1), time),
            "lat": ("lat", LAT, {"units": "degrees_north"}),
            "lon": ("lon", LON, {"units": "degrees_east"}),
        },
    )
    return data.assign(t_b=(("time", "b"), edges)) if bounds else data


def pieces(write: Write, data: xr.Dataset, cuts: list[int], folder: Path) -> str:
    """Writes a run as files that end at records, and returns their pattern."""
    edges = [0, *cuts, data.sizes["time"]]
    for number, (start, stop) in enumerate(pairwise(edges)):
        write(data.isel(time=slice(start, stop)), f"piece_{number:03d}.nc")
    return f"{folder}/piece_*.nc"


@pytest.mark.parametrize("bounds", [True, False])
@pytest.mark.parametrize("cuts", [list(range(1, 36)), [11, 23], [5]])
def test_files_that_cut_years_are_joined_record_by_record(
    write: Write, tmp_path: Path, bounds: bool, cuts: list[int]
) -> None:
    whole = months((1999, 1), 36, bounds)
    text = pieces(write, whole, cuts, tmp_path)
    for part in (Part(), SUMMER, WINTER):
        expected = read_years(write(whole, "whole.nc"), part=part)
        found = read_run(text, part=part)
        assert found.values.shape == expected.values.shape  # no file is a member
        assert np.array_equal(found.values, expected.values)
        assert (found.time == expected.time).all()


def test_winters_and_whole_years_that_lie_in_two_files_are_kept(write, tmp_path) -> None:
    text = pieces(write, months((1999, 1), 48), [24], tmp_path)
    assert read_run(text, part=WINTER).years.tolist() == [2000, 2001, 2002]
    text = pieces(write, months((1998, 12), 48), [12], tmp_path)
    assert read_run(text, part=Part(whole=True)).years.tolist() == [1999, 2000, 2001]


def test_pieces_may_be_packed_and_turned_otherwise(write: Write, tmp_path: Path) -> None:
    whole = months((1999, 1), 24)
    pack = {"dtype": "i2", "scale_factor": 2e-4, "add_offset": 280.0, "_FillValue": -32767}
    write(whole.isel(time=slice(0, 7)), "piece_0.nc", encoding={"tas": pack})
    turned = whole.isel(time=slice(7, None), lat=slice(None, None, -1))
    turned = turned.assign_coords(lon=("lon", [0.0, 90.0, -180.0, -90.0], whole.lon.attrs))
    pack = {"dtype": "i2", "scale_factor": 3e-4, "add_offset": 281.0, "missing_value": -1}
    write(turned.sortby("lon"), "piece_1.nc", encoding={"tas": pack})
    found = read_run(f"{tmp_path}/piece_*.nc")
    expected = read_years(write(whole, "whole.nc"))
    assert np.abs(found.values - expected.values).max() < 1.5e-4 + 2e-5  # half a step, float32


def test_pieces_that_do_not_fit_are_refused(write: Write, tmp_path: Path) -> None:
    whole = months((1999, 1), 24)
    write(whole.isel(time=slice(0, 7)), "piece_0.nc")
    rest = whole.isel(time=slice(7, None))
    celsius = rest.assign(tas=(rest.tas.dims, rest.tas.values - 273.15, {"units": "degC"}))
    moved = rest.assign_coords(lat=("lat", LAT + 1, rest.lat.attrs))
    cases = {
        r"begins on 1999-07-16 .*, and .*piece_0.nc ends on 1999-07-16": slice(6, None),
        "its records cover 334 of 365 days": slice(8, None),
    }
    for message, kept in cases.items():
        write(whole.isel(time=kept), "piece_1.nc")
        with pytest.raises(DataError, match=message):
            read_run(f"{tmp_path}/piece_*.nc")
    masked = rest.assign(tas=rest.tas.where(rest.lat > 0))
    others = {"is in degC": celsius, "lies on another grid": moved}
    others[r"piece_\*.nc: tas: .* at some times only, first on 1999-08-16"] = masked
    for message, data in others.items():
        write(data, "piece_1.nc")
        with pytest.raises(DataError, match=message):
            read_run(f"{tmp_path}/piece_*.nc")


def test_a_month_of_every_year_is_no_year(write: Write) -> None:
    july = months((1999, 1), 36).isel(time=slice(6, None, 12))
    path = write(july)
    with pytest.raises(DataError, match=r"cover 31 of 365 days \(--months takes a part of every"):
        read_years(path)
    found = read_years(path, part=Part((7,)))
    assert np.allclose(found.values, july.tas.values, atol=2e-5)
    with pytest.raises(DataError, match="has no complete aug"):
        read_years(path, part=Part((8,)))


def test_means_of_one_season_a_year_are_taken_by_its_months(write: Write) -> None:
    whole = months((1999, 1), 36)
    for part in (SUMMER, WINTER):
        first = read_years(write(whole), part=part)
        edges = cftime.date2num(first.bounds, EPOCH, "standard").astype(float)
        kept = months((1999, 1), len(first.years))
        made = kept.assign(tas=(kept.tas.dims, first.values, kept.tas.attrs))
        made = made.assign(t_b=(("time", "b"), edges))
        made = made.assign_coords(time=("time", edges.mean(1), made.time.attrs))
        path = write(made, "season.nc")
        found = read_years(path, part=part)
        assert np.array_equal(found.values, first.values)
        assert found.years.tolist() == first.years.tolist()
        with pytest.raises(DataError, match=r"9[012] of 36[56] days"):
            read_years(path)


def test_fiscal_years_are_years(write: Write) -> None:
    data = months((1999, 1), 3)
    starts = [cftime.datetime(year, 4, 1, calendar="standard") for year in range(1999, 2003)]
    numbers = cftime.date2num(starts, EPOCH, "standard").astype(float)
    edges = np.stack([numbers[:-1], numbers[1:]], 1)
    data = data.assign(t_b=(("time", "b"), edges))
    data = data.assign_coords(time=("time", edges.mean(1), data.time.attrs))
    assert read_years(write(data)).years.tolist() == [1999, 2000, 2001]


@pytest.mark.parametrize(("day", "length"), [(1, 334), (16, 334), (28, 334)])
def test_intervals_from_the_first_month_to_the_last_are_years(write, day, length) -> None:
    # As cdo yearmean writes them from months without bounds.
    data = months((1999, 1), 3)
    ends = [cftime.datetime(y, m, day, calendar="standard") for y in (1999, 2000) for m in (1, 12)]
    edges = cftime.date2num(ends, EPOCH, "standard").astype(float).reshape(2, 2)
    data = data.isel(time=slice(0, 2)).assign(t_b=(("time", "b"), edges))
    data = data.assign_coords(time=("time", edges.mean(1), data.time.attrs))
    found = read_years(write(data))
    assert found.years.tolist() == [1999, 2000]
    assert f"intervals of {length} days taken for whole years" in found.notes


def test_intervals_from_the_first_month_of_a_season_to_its_last_are_seasons(write) -> None:
    data = months((1999, 1), 2)
    ends = [cftime.datetime(y, m, 16, calendar="standard") for y in (1999, 2000) for m in (6, 8)]
    edges = cftime.date2num(ends, EPOCH, "standard").astype(float).reshape(2, 2)
    data = data.assign(t_b=(("time", "b"), edges))
    path = write(data.assign_coords(time=("time", edges.mean(1), data.time.attrs)))
    assert np.allclose(read_years(path, part=SUMMER).values, data.tas.values, atol=2e-5)
    for part in (Part((6, 7)), Part((7, 8)), Part((6, 7, 8, 9)), Part((7,)), Part()):
        with pytest.raises(DataError):
            read_years(path, part=part)


def test_a_file_a_month_is_judged_by_its_years_alone(write: Write, tmp_path: Path) -> None:
    whole = months((2000, 1), 24, bounds=False)
    ice = np.abs(whole.tas.values - 280) * 20 + 10
    ice[8] *= 1e-3  # below 1% in one September, as of ice that has melted
    whole = whole.assign(tas=(whole.tas.dims, ice, {"units": "%"})).rename(tas="siconc")
    expected = read_years(write(whole, "whole.nc"))
    found = read_run(pieces(write, whole, list(range(1, 24)), tmp_path))
    assert np.array_equal(found.values, expected.values)


def test_a_file_a_day_is_no_member(write: Write, tmp_path: Path) -> None:
    day = months((2000, 1), 1, bounds=False)
    for number in range(5):
        at = ("time", [18262.5 + number], day.time.attrs)
        values = (day.tas.dims, day.tas.values + number, day.tas.attrs)
        write(day.drop_vars("tas").assign_coords(time=at).assign(tas=values), f"d_{number}.nc")
    with pytest.raises(DataError, match="has 5 records"):
        read_run(f"{tmp_path}/d_*.nc")


def test_a_member_that_is_cut_is_named(write: Write, tmp_path: Path) -> None:
    write(months((2000, 1), 36), "r1.nc")
    write(months((2000, 1), 30), "r2.nc")
    with pytest.raises(DataError, match=r"r2.nc: year 2002: its records cover 181 of 365 days"):
        read_run(f"{tmp_path}/r*.nc")


def test_pieces_of_two_calendars_are_refused(write: Write, tmp_path: Path) -> None:
    whole = months((1999, 1), 24, bounds=False)
    write(whole.isel(time=slice(0, 7)), "piece_0.nc")
    rest = whole.isel(time=slice(7, None))
    about = {"units": EPOCH, "calendar": "noleap"}
    write(rest.assign_coords(time=("time", rest.time.values, about)), "piece_1.nc")
    with pytest.raises(DataError, match=r"piece_1.nc: has the calendar 'noleap', .*'standard'"):
        read_run(f"{tmp_path}/piece_*.nc")


@pytest.mark.filterwarnings("ignore:saving variable tas")
def test_lost_marks_of_a_later_piece_are_told(write: Write, tmp_path: Path) -> None:
    whole = months((1999, 1), 24)
    write(whole.isel(time=slice(0, 7)), "piece_0.nc")
    rest = whole.isel(time=slice(7, None)).copy(deep=True)
    rest.tas[:, 0, 0] = 280 - 32768 * 1e-3
    pack = {"dtype": "i2", "scale_factor": 1e-3, "add_offset": 280.0, "_FillValue": None}
    write(rest, "piece_1.nc", encoding={"tas": pack})
    with pytest.raises(DataError, match=r"247\.232 occurs 17 times"):
        read_run(f"{tmp_path}/piece_*.nc")
