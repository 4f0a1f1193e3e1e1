"""Writing CF files: bounds, provenance, reproducible and atomic; pictures; packaged samples."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import cftime
import numpy as np
import pytest
import xarray as xr

from longseq.core.errors import ConfigError, DataError
from longseq.weather.coastlines import coastlines
from longseq.weather.data.field import Scalar
from longseq.weather.data.grid import Grid
from longseq.weather.data.samples import SAMPLES
from longseq.weather.data.source import read_field
from longseq.weather.data.times import year_bounds
from longseq.weather.data.writer import Variable, provenance, to_dataset, write_dataset
from longseq.weather.maps import plot_maps


def made(value: float = 280.0, calendar: str = "noleap") -> xr.Dataset:
    time = np.array(
        [cftime.datetime(year, 7, 1, calendar=calendar) for year in (2000, 2001)], dtype=object
    )
    fields = [Variable("tas", np.full((2, 3, 2), value), "K", {"standard_name": "air_temperature"})]
    grid = Grid.of(np.array([-80.0, 0, 80]), np.array([90.0, 270]))
    height = Scalar("height", 2.0, {"units": "m", "positive": "up", "axis": "Z"})
    edges = year_bounds(np.array([2000, 2001]), calendar)
    return to_dataset(fields, time, calendar, grid, {"title": "t"}, edges, None, [height])


@pytest.mark.parametrize("name", ["a.nc", "a.zarr"])
def test_what_is_written_is_read_again(name, tmp_path) -> None:
    path = write_dataset(made(), tmp_path / name)
    field = read_field(path)
    assert (
        (field.values == 280).all()
        and field.calendar == "noleap"
        and field.years.tolist() == [2000, 2001]
    )
    assert (
        field.lat.tolist() == [-80, 0, 80] and field.lon.tolist() == [90, 270] and field.notes == ()
    )
    write_dataset(made(281.0), path)
    assert (read_field(path).values == 281).all()
    assert [file.name for file in tmp_path.iterdir()] == [name]  # no temporary file is left


def test_bounds_and_conventions() -> None:
    data = made()
    assert data.attrs["Conventions"] == "CF-1.8" and data["time"].attrs["bounds"] == "time_bnds"
    # Never beyond a pole.
    assert data["lat_bnds"].values.tolist() == [[-90, -40], [-40, 40], [40, 90]]
    assert data["lon_bnds"].values.tolist() == [[0, 180], [180, 360]]
    assert np.diff(data["time_bnds"].values).ravel().tolist() == [365, 365]
    assert np.diff(made(calendar="360_day")["time_bnds"].values).ravel().tolist() == [360, 360]
    assert float(data["height"]) == 2 and data["height"].attrs["positive"] == "up"


def test_only_fields_have_scalar_coordinates(tmp_path) -> None:
    import h5py

    with h5py.File(write_dataset(made(), tmp_path / "a.nc")) as file:
        assert file["tas"].attrs["coordinates"] in ("height", b"height")
        edges = ("time_bnds", "lat_bnds", "lon_bnds")
        assert not any("coordinates" in file[name].attrs for name in edges)
        assert "coordinates" not in file.attrs


def test_texts_are_characters_and_masked_cells_missing(tmp_path) -> None:
    import h5py

    time = made()["time"].values
    dates = np.array([cftime.datetime(2000 + i, 7, 1, calendar="noleap") for i in range(2)])
    grid = Grid.of(np.array([0.0, 10]), np.array([-10.0, 0, 10]))
    mask = np.array([[True, True, False], [True, False, True]])
    field = Variable("tas", np.full((2, 2, 3), 281.0), "K", {"standard_name": "air_temperature"})
    data = to_dataset([field], dates, "noleap", grid, {"title": "t"}, None, mask)
    path = write_dataset(data, tmp_path / "m.nc")
    with h5py.File(path) as file:
        kinds = {file["tas"].attrs.get_id(name).dtype.kind for name in ("units", "standard_name")}
        assert kinds == {"S"} and file.attrs.get_id("title").dtype.kind == "S"
        assert float(file["tas"].attrs["_FillValue"][0]) == pytest.approx(1e20)
    again = read_field(path)
    assert np.array_equal(again.mask, mask) and again.lon.tolist() == [-10, 0, 10]
    assert np.isnan(again.values[:, ~mask]).all() and (again.values[:, mask] == 281).all()
    assert again.bounds is None and len(time) == 2


def test_a_failed_write_leaves_the_earlier_output(tmp_path, monkeypatch) -> None:
    for name in ("a.nc", "a.zarr"):
        path = write_dataset(made(), tmp_path / name)
        broken = made(1.0)
        broken["tas"].attrs["bad"] = {"a": object()}
        with pytest.raises((TypeError, ValueError)):
            write_dataset(broken, path)
        assert (read_field(path).values == 280).all()
    with pytest.raises(ConfigError, match=r"\.nc or \.zarr"):
        write_dataset(made(), tmp_path / "a.txt")
    (tmp_path / "file.zarr").write_text("a file")
    with pytest.raises(DataError, match="is a file"):
        write_dataset(made(), tmp_path / "file.zarr")


def test_provenance(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    checkpoint = tmp_path / "a.ckpt"
    checkpoint.write_bytes(b"weights")
    about = provenance("s5 emulator", checkpoint, ["x/run.nc"], "longseq weather predict x/run.nc")
    assert about["history"] == "1970-01-01T00:00:00Z longseq weather predict x/run.nc"
    assert about["checkpoint_sha256"] == hashlib.sha256(b"weights").hexdigest()
    assert about["input_files"] == "run.nc" and "s5 emulator" in about["source"]


def test_maps(tmp_path) -> None:
    field = np.random.default_rng(0).normal(size=(3, 4))
    grid = Grid.of(np.array([10.0, 20, 30]), np.array([-10.0, 0, 10, 20]))
    field[0, 0] = np.nan
    plot_maps({"a": field + 9, "b": field}, grid, tmp_path / "m.png", "K", ["b"])
    plot_maps({"flat": np.zeros((3, 4))}, grid, tmp_path / "z.png", "K")
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in ("m.png", "z.png"))


def test_coastlines_are_lines_on_the_globe() -> None:
    lines = coastlines()
    assert len(lines) > 100 and all(len(line) > 1 for line in lines)
    points = np.concatenate(lines)
    assert np.abs(points[:, 0]).max() <= 180 and np.abs(points[:, 1]).max() <= 90
    # No line is drawn along the edge of the flat map.
    edge = [np.abs(np.abs(line[:, 0]) - 180) < 0.01 for line in lines]
    assert not any((one[1:] & one[:-1]).any() for one in edge)
    # Nor across the map, where a coast goes on beyond the antimeridian.
    assert max(np.abs(np.diff(line[:, 0])).max() for line in lines) < 20


def test_the_samples_are_small_and_as_documented() -> None:
    paths = [SAMPLES.path(name) for name in SAMPLES.names()]
    assert sum(path.stat().st_size for path in paths) < 3e6
    stated = re.findall(
        r"`(\w+\.(?:nc|csv))`: `([0-9a-f]{64})`", Path(paths[0]).with_name("SOURCE.md").read_text()
    )
    assert dict(stated) == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths
    }
    with pytest.raises(ConfigError, match="did you mean 'E1_north_america'"):
        SAMPLES.path("E1_north_americ")
