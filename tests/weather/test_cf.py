"""Reading CF files: conventions, units, calendars, and one-line errors for what is wrong."""

from __future__ import annotations

import json
import mmap
import re
from pathlib import Path

import cftime
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from longseq.core.errors import DataError
from longseq.weather.data.coords import check_longitude
from longseq.weather.data.field import annual_means
from longseq.weather.data.grid import column_order
from longseq.weather.data.source import open_source, read_field

LAT, LON = np.array([-30.0, 0.0, 15.0, 45.0]), np.array([10.0, 100.0, 200.0, 300.0, 350.0])


def test_conventions_give_bit_identical_values(write, lab) -> None:
    values = lab.fields()
    plain = read_field(write(lab.dataset(values)))
    west = np.where(LON > 180, LON - 360, LON)
    order = np.argsort(west)
    turned = lab.dataset(values[:, ::-1][:, :, order], LAT[::-1], west[order])
    for name, other in (("a.nc", turned), ("b.zarr", turned), ("c.zarr", lab.dataset(values))):
        found = read_field(write(other, name))
        assert np.array_equal(found.values, plain.values) and found.values.dtype == np.float32
        assert np.array_equal(found.lat, plain.lat) and np.array_equal(found.lon, plain.lon)
    assert plain.notes == () and len(read_field(write(turned, "d.nc")).notes) == 2
    assert np.array_equal(plain.lat, LAT) and np.array_equal(plain.lon, LON)


@given(st.lists(st.integers(0, 3599), min_size=1, max_size=12, unique=True), st.data())
@settings(max_examples=60, deadline=None)
def test_any_longitude_convention_is_the_same_grid(tenths: list[int], data) -> None:
    lon = np.sort(np.array(tenths)) / 10
    shift = data.draw(st.sampled_from([-360, 0, 360]))
    other = (
        np.where(lon >= data.draw(st.integers(0, 360)), lon - 360, lon) + max(0, shift)
    ).astype(np.float32)
    attrs = {"units": "degrees_east"}
    first, same = column_order(check_longitude(lon, attrs, "a"))
    second, order = column_order(check_longitude(other, attrs, "b"))
    assert np.array_equal(first, second) and np.array_equal(lon[order], lon[same])
    assert np.all(np.diff(first) > 0) and np.allclose(np.mod(first - lon[same] + 1, 360), 1)
    assert first[0] >= -360 and first[-1] < 360


def test_packed_netcdf3_and_zarr_hold_the_same(write, lab) -> None:
    values = lab.fields()
    plain = read_field(write(lab.dataset(values)))
    third = read_field(write(lab.dataset(values), "three.nc", engine="scipy"))
    assert np.array_equal(third.values, plain.values)
    packed = {
        "tas": {"dtype": "int16", "scale_factor": 0.001, "add_offset": 280.0, "_FillValue": -32768}
    }
    short = read_field(write(lab.dataset(values), "packed.nc", encoding=packed))
    assert np.abs(short.values - plain.values).max() <= 0.0006


@pytest.mark.parametrize(
    ("units", "scale", "offset"),
    [
        ("degC", 1.0, -273.15),
        ("degrees_celsius", 1.0, -273.15),
        ("degF", 1.8, -459.67),
        ("kelvin", 1.0, 0.0),
    ],
)
def test_temperatures_become_kelvin(write, units, scale, offset, lab) -> None:
    values = lab.fields().astype(np.float64)
    found = read_field(write(lab.dataset(values * scale + offset, units=units)))
    assert found.units == "K" and np.abs(found.values - values).max() < 1e-4


def test_a_difference_takes_no_offset(write, lab) -> None:
    made = lab.dataset(np.full((3, 4, 5), 2.0), units="degC")
    made["tas"].attrs = {"units": "degC", "standard_name": "air_temperature_anomaly"}
    found = read_field(write(made))
    assert found.units == "K" and (found.values == 2).all()


def test_precipitation_and_asked_units(write, lab) -> None:
    made = lab.dataset(np.full((3, 4, 5), 1 / 86400), units="kg m-2 s-1")
    made["tas"].attrs["standard_name"] = "precipitation_flux"
    path = write(made)
    assert np.allclose(read_field(path, units="mm/day").values, 1.0)
    with pytest.raises(DataError, match=r"'kg m-2 s-1' cannot be converted to 'K'"):
        read_field(path, units="K")


MONTHS = [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]


@pytest.mark.parametrize(
    ("calendar", "days"),
    [("360_day", [30] * 12), ("noleap", MONTHS), ("standard", [31, 29, *MONTHS[2:]])],
)
def test_months_count_by_their_days_in_the_files_calendar(write, calendar, days, lab) -> None:
    values = np.random.default_rng(0).uniform(270, 290, (24, 4, 5))
    dates = [cftime.datetime(1903 + i // 12, i % 12 + 1, 15, calendar=calendar) for i in range(24)]
    times = cftime.date2num(dates, "days since 1850-01-01", calendar)
    yearly = annual_means(read_field(write(lab.dataset(values, calendar=calendar, times=times))))
    assert yearly.calendar == calendar and yearly.years.tolist() == [1903, 1904]
    expected = np.average(values[12:], axis=0, weights=days)
    assert np.abs(yearly.values[1] - expected).max() < 1e-4


def test_integer_years_without_units_and_members(write, lab) -> None:
    values = np.stack([lab.fields(seed) for seed in (1, 2, 3)])
    made = xr.Dataset(
        {"tas": (("member", "time", "latitude", "longitude"), values, {"units": "K"})},
        {
            "time": lab.YEARS,
            "latitude": ("latitude", LAT, {"units": "degrees_north"}),
            "longitude": ("longitude", LON, {"units": "degrees_east"}),
        },
    )
    found = read_field(write(made))
    assert found.values.shape == (3, 80, 4, 5) and found.mean.shape == (80, 4, 5)
    assert found.years.tolist() == lab.YEARS.tolist()
    assert np.allclose(found.mean, values.mean(0), atol=1e-4)


def _with(lab, change) -> xr.Dataset:
    made = lab.dataset(lab.fields())
    change(made)
    return made


def _missing(made: xr.Dataset) -> None:
    made["tas"].values[3, 1, 2] = np.nan


def _pressure(made: xr.Dataset) -> None:
    made["ps"] = made["tas"].assign_attrs(units="Pa")


BAD = {
    "missing value": (
        _missing,
        "1 of 1,600 values are missing, in 1 cells at some times only, first on 1903-06-01",
    ),
    "no units": (lambda d: d["tas"].attrs.pop("units"), "tas: has no units"),
    "wrong units": (lambda d: d["tas"].attrs.update(units="degC"), "are no temperatures"),
    "latitude units": (lambda d: d["lat"].attrs.update(units="m"), "latitude: has units 'm'"),
    "longitude units": (lambda d: d["lon"].attrs.update(units="km"), "longitude: has units 'km'"),
    "calendar": (lambda d: d["time"].attrs.update(calendar="lunar"), "unknown calendar 'lunar'"),
    "time units": (lambda d: d["time"].attrs.update(units="hours after lunch"), "cannot be read"),
    "time units 2": (
        lambda d: d["time"].attrs.update(units="fortnights since 1850-01-01"),
        "cannot be read",
    ),
    "two variables": (_pressure, "has 2 variables: tas, ps (name one with --variable)"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_named(case, write, lab) -> None:
    change, message = BAD[case]
    path = write(_with(lab, change))
    with pytest.raises(DataError) as error:
        read_field(path)
    assert (
        message in str(error.value)
        and "run.nc" in str(error.value)
        and "\n" not in str(error.value)
    )


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([0, 360, 360], "time 2: 1851-01-01 00:00:00 occurs twice"),
        ([0, 720, 360], "time 2: 1851-01-01"),
        ([0, np.nan, 360], "not all numbers"),
    ],
)
def test_times_must_ascend(times, message, write, lab) -> None:
    path = write(lab.dataset(lab.fields()[:3], times=np.array(times, dtype=float)))
    with pytest.raises(DataError, match=message):
        read_field(path)


@pytest.mark.parametrize(
    ("lat", "lon", "message"),
    [
        (np.array([0.0, 10, 5, 20]), LON, "ascend or descend"),
        (np.array([0.0, 10, 50, 100]), LON, r"outside \[-90, 90\]"),
        (LAT, np.array([0.0, 90, 180, 270, 360]), "the meridian 0 occurs twice"),
        (LAT, np.array([0.0, 90, 180, 270, 999]), "outside"),
    ],
)
def test_grids_are_checked(lat, lon, message, write, lab) -> None:
    with pytest.raises(DataError, match=message):
        read_field(write(lab.dataset(lab.fields(), lat, lon)))


def test_files_that_are_none(write, tmp_path: Path, lab) -> None:
    whole = write(lab.dataset(lab.fields())).read_bytes()
    files = {
        "empty.nc": (b"", "is empty"),
        "text.nc": (b"hello, world", "is not a NetCDF file"),
        "cut.nc": (whole[: len(whole) // 2], "truncated or damaged"),
        "grib.nc": (b"GRIB" + bytes(100), "is GRIB"),
        "five.nc": (b"CDF\x05" + bytes(100), "64-bit"),
        "cut3.nc": (b"CDF\x01" + bytes(3), "truncated or damaged"),
    }
    for name, (content, message) in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=message):
            read_field(tmp_path / name)
    with pytest.raises(DataError, match="no such"):
        read_field(tmp_path / "none.nc")
    with pytest.raises(DataError, match="no Zarr store"):
        read_field(tmp_path)


def test_a_lost_chunk_of_a_zarr_store_is_no_value(write, lab) -> None:
    path = write(lab.dataset(lab.fields()), "run.zarr", encoding={"tas": {"chunks": (20, 4, 5)}})
    read_field(path)
    files = [file for file in sorted((path / "tas").rglob("*")) if file.is_file()]
    chunk = next(file for file in files if "zarr" not in file.name and file.name[0] != ".")
    chunk.unlink()
    with pytest.raises(DataError, match="1 of its 4 chunks are missing"):
        read_field(path)


def test_whole_years_are_needed(write, lab) -> None:
    dates = [cftime.datetime(1903 + i // 12, i % 12 + 1, 15, calendar="noleap") for i in range(23)]
    times = cftime.date2num(dates, "days since 1850-01-01", "noleap")
    path = write(lab.dataset(lab.fields()[:23], calendar="noleap", times=times))
    with pytest.raises(DataError, match="year 1904: has 11 records"):
        annual_means(read_field(path))


def test_the_packaged_samples_are_what_was_published() -> None:
    first, second = read_field("A1B_north_america"), read_field("E1_north_america")
    assert first.values.shape == (240, 37, 49) and first.calendar == "360_day"
    same = (first.values == second.values).all((1, 2))
    assert same[:140].all() and not same[140:].any()
    assert float(first.values[0, 0, 0]) != float(first.values[-1, 0, 0])


def test_a_codec_that_may_run_code_is_refused(write, lab) -> None:
    import json

    path = write(lab.dataset(lab.fields()), "x.zarr")
    (file,) = [*path.glob("lat/.zarray"), *path.glob("lat/zarr.json")]
    content = json.loads(file.read_text())
    key = "filters" if "filters" in content else "codecs"
    content[key] = [*(content[key] or []), {"id": "pickle", "name": "numcodecs.pickle"}]
    file.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"x\.zarr: lat: is packed with the codec '.*pickle'"):
        read_field(path)


def test_a_heap_that_the_library_never_leaves(write, lab) -> None:
    path = write(lab.dataset(lab.fields()), "x.nc")
    content = bytearray(path.read_bytes())
    at = content.index(b"GCOL\x01")
    size = int.from_bytes(content[at + 8 : at + 16], "little")
    place = at + 16
    while content[place : place + 2] != b"\0\0" and place < at + size:
        place += 16 + (int.from_bytes(content[place + 8 : place + 16], "little") + 7) // 8 * 8
    content[place + 8 : place + 16] = bytes(8)  # the free space at the heap's end: no bytes long
    path.write_bytes(content)
    with pytest.raises(DataError, match="is damaged"):
        read_field(path)


def test_a_text_longer_than_its_file_is_not_allocated(write, lab) -> None:
    """The library would take the memory first: a gigabyte for a file of some kilobytes."""
    path = write(lab.dataset(lab.fields()), "x.nc")
    content = path.read_bytes()
    found = list(
        re.finditer(rb"units\x00\x00\x00\x19\x01", content)
    )  # an attribute's name and type
    length = found[0].start() + 8 + 24 + 8
    assert 0 < int.from_bytes(content[length : length + 4], "little") < 40
    long = (10**9).to_bytes(4, "little")
    path.write_bytes(content[:length] + long + content[length + 4 :])
    with pytest.raises(DataError, match=r"x\.nc: units: .* 1,000,000,000 elements, more than"):
        read_field(path)


@pytest.mark.parametrize("libver", ["earliest", "latest"])
def test_lengths_of_texts_are_found_in_every_version_of_attributes(libver, tmp_path: Path) -> None:
    import h5py

    from longseq.weather.data import heaps

    with h5py.File(tmp_path / "x.nc", "w", libver=libver) as file:
        made = file.create_dataset("x", data=[1.0])
        made.attrs["units"] = "K"
        made.attrs["names"] = [["a", "bb"], ["ccc", "dddd"]]
        made.attrs["number"] = 3.0
        made.attrs["größe"] = "é" * 300
    heaps.check_heaps(tmp_path / "x.nc")
    with (
        (tmp_path / "x.nc").open("rb") as stream,
        mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        found = list(heaps._lengths(content))
    assert found == [("units", 1), *[("names", n) for n in (1, 2, 3, 4)], ("größe", 600)]


def test_a_mistake_of_ours_is_not_called_damage(write, lab, monkeypatch) -> None:
    path = write(lab.dataset(lab.fields()), "x.zarr")
    with open_source(path) as source:

        class Broken:
            def __getitem__(self, key: object) -> object:
                raise ValueError("ours")

        source.array = Broken()
        with pytest.raises(ValueError, match="ours"):
            source.read(0, 1)


def test_a_zarr_fill_value_of_too_few_bytes_is_one_line(tmp_path: Path) -> None:
    store = tmp_path / "short.zarr"
    data = xr.Dataset({"tas": ("t", np.ones(3))})
    data.to_zarr(store, zarr_format=3, consolidated=False)
    file = store / "tas" / "zarr.json"
    content = json.loads(file.read_text())
    content["attributes"]["_FillValue"] = "AAAA"  # three bytes where a double has eight
    file.write_text(json.dumps(content))
    with pytest.raises(DataError, match="Zarr store is truncated or damaged"):
        read_field(store)


def test_a_zarr_chunk_of_another_size_than_its_store_says_is_one_line(write, lab) -> None:
    path = write(lab.dataset(lab.fields()), "x.zarr", encoding={"tas": {"compressors": None}})
    files = [file for file in sorted((path / "tas").rglob("*")) if file.is_file()]
    chunk = next(file for file in files if "zarr" not in file.name and file.name[0] != ".")
    chunk.write_bytes(chunk.read_bytes()[:-8])
    with pytest.raises(DataError, match=r"x\.zarr: tas: cannot be read"):
        read_field(path)


def test_directions_have_no_mean(lab, write) -> None:
    data = lab.dataset(np.full((3, 4, 5), 359.0, np.float32), units="degree", name="wdir")
    data["wdir"].attrs["standard_name"] = "wind_from_direction"
    with pytest.raises(DataError, match="wdir: is a direction"):
        read_field(write(data))


def test_a_standard_name_of_two_variables_names_none(lab, write) -> None:
    data = lab.dataset(lab.fields()[:3])
    data["ta850"] = data["tas"] - 20
    data["ta850"].attrs = dict(data["tas"].attrs)
    path = write(data)
    with pytest.raises(DataError, match=r"has 2 variables 'air_temperature': tas, ta850 .*--var"):
        read_field(path, "air_temperature")
    assert read_field(path, "ta850").values.max() < 270
    # One that is no field does not stand in the way.
    write(data.assign(ta850=data["ta850"].isel(time=0)), "one.nc")
    assert read_field(path.with_name("one.nc"), "air_temperature").name == "tas"


def test_groups_of_a_store_are_named_and_read(lab, write, tmp_path: Path) -> None:
    lab.dataset(lab.fields()[:3]).to_zarr(
        tmp_path / "cmip.zarr", group="ssp585", consolidated=False
    )
    with pytest.raises(
        DataError, match=r"at its root, but groups: ssp585 \(give .*cmip.zarr/ssp585"
    ):
        read_field(tmp_path / "cmip.zarr")
    assert read_field(tmp_path / "cmip.zarr" / "ssp585").values.shape == (3, 4, 5)


def test_the_calendar_360_is_that_of_360_days(lab, write) -> None:
    data = lab.dataset(lab.fields()[:3])
    data["time"].attrs["calendar"] = "360"
    found, same = read_field(write(data)), read_field(write(lab.dataset(lab.fields()[:3]), "b.nc"))
    assert found.calendar == "360_day" and (found.time == same.time).all()
