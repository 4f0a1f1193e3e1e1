"""Curvilinear grids: areas of their cells, reading, writing, pictures; what is no such grid."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from longseq.core.errors import DataError
from longseq.weather.data.curvilinear import CurvilinearGrid
from longseq.weather.data.grid import Grid
from longseq.weather.data.source import read_field
from longseq.weather.data.times import year_bounds
from longseq.weather.data.writer import Variable, to_dataset, write_dataset
from longseq.weather.data.yearly import read_years
from longseq.weather.maps import plot_maps


def corners(lat: np.ndarray, lon: np.ndarray, step: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns corners (Y, X, 4) of cells a step wide about their centres, anticlockwise."""
    half = step / 2
    north = np.stack([lat - half, lat - half, lat + half, lat + half], -1)
    return north, np.stack([lon - half, lon + half, lon + half, lon - half], -1)


def rotated(lat: np.ndarray, lon: np.ndarray, tilt: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns degrees north and east of points turned about the x-axis, as a rotated pole does."""
    phi, lam, turn = np.deg2rad(lat), np.deg2rad(lon), np.deg2rad(tilt)
    x, y, z = np.cos(phi) * np.cos(lam), np.cos(phi) * np.sin(lam), np.sin(phi)
    y, z = y * np.cos(turn) - z * np.sin(turn), y * np.sin(turn) + z * np.cos(turn)
    return np.rad2deg(np.arcsin(z)), np.rad2deg(np.arctan2(y, x)) % 360


def dataset(lab, with_corners: bool = True, tilt: float = 40.0) -> xr.Dataset:
    """Returns three years on a rotated region of 4 × 5 cells of 2 degrees."""
    own = np.meshgrid(np.arange(-3.0, 4, 2), np.arange(-4.0, 5, 2), indexing="ij")
    lat, lon = rotated(*own, tilt)
    data = lab.dataset(lab.fields()[:3])
    values = data["tas"]
    made = xr.Dataset(
        {"tas": (("time", "rlat", "rlon"), values.values, dict(values.attrs))},
        {
            "time": data["time"],
            "rlat": ("rlat", own[0][:, 0], {"standard_name": "grid_latitude", "units": "degrees"}),
            "rlon": ("rlon", own[1][0], {"standard_name": "grid_longitude", "units": "degrees"}),
            "lat": (("rlat", "rlon"), lat, {"units": "degrees_north"}),
            "lon": (("rlat", "rlon"), lon, {"units": "degrees_east"}),
        },
    )
    made["tas"].attrs["grid_mapping"] = "crs"
    made["crs"] = ((), 0, {"grid_mapping_name": "rotated_latitude_longitude"})
    if with_corners:
        for name, edge in zip(("lat", "lon"), rotated(*corners(*own, 2.0), tilt)):
            made[f"{name}_vertices"] = (("rlat", "rlon", "vertices"), edge)
            made[name].attrs["bounds"] = f"{name}_vertices"
    return made


def test_areas_between_great_circles() -> None:
    # An eighth of the sphere is the triangle from the equator to the pole.
    eighth = CurvilinearGrid(
        np.array([[35.0]]),
        np.array([[45.0]]),
        *(np.array([[v]]) for v in ([0, 0, 90.0], [0, 90, 0])),
    )
    assert eighth.cell_areas()[0, 0] == pytest.approx(np.pi / 2, rel=1e-15)
    # On small cells great circles are as good as parallels.
    lat, lon = np.meshgrid(np.arange(40, 50, 0.5), np.arange(-5, 5, 0.5), indexing="ij")
    made = CurvilinearGrid(lat, lon % 360, *corners(lat, lon, 0.5))
    plain = Grid.of(lat[:, 0], lon[0])
    assert np.allclose(made.weights(), plain.weights(), rtol=3e-5)
    # Areas do not change as the sphere turns.
    turned = CurvilinearGrid(*rotated(lat, lon, 63), *rotated(*corners(lat, lon, 0.5), 63))
    assert np.allclose(turned.cell_areas(), made.cell_areas(), rtol=1e-9)
    mask = lat > 45
    assert made.weights(mask=mask)[~mask].sum() == 0 and not made.periodic and not made.global_
    with pytest.raises(DataError, match="need a regular grid"):
        made.weights("cos")


def test_a_rotated_region_is_read_and_written(lab, write, tmp_path) -> None:
    path = write(dataset(lab))
    found = read_field(path)
    assert np.array_equal(found.values, lab.fields()[:3]) and found.notes == ()
    # The cells are as large as on the rotated grid itself.
    plain = Grid.of(np.arange(-3.0, 4, 2), np.arange(-4.0, 5, 2)).weights()
    assert np.allclose(found.grid.weights(), plain, rtol=2e-4)
    near = read_field(write(dataset(lab, with_corners=False), "plain.nc"))
    assert "cells without corners" in near.notes[0]
    assert np.allclose(near.grid.weights(), plain, rtol=3e-3)
    field = Variable("tas", found.values, "K", {"standard_name": "air_temperature"})
    edges = year_bounds(found.years, found.calendar)
    for name in ("again.nc", "again.zarr"):
        data = to_dataset([field], found.time, found.calendar, found.grid, {}, edges)
        again = read_field(write_dataset(data, tmp_path / name))
        assert np.array_equal(again.values, found.values) and again.notes == ()
        assert again.grid.same(found.grid)
        assert np.allclose(again.grid.weights(), found.grid.weights(), rtol=1e-12)
    facts = Grid.from_facts(found.grid.facts())
    assert facts.same(found.grid) and np.array_equal(facts.weights(), found.grid.weights())
    assert not found.grid.same(Grid.of(lab.LAT, lab.LON)) and "curvilinear" in str(found.grid)
    plot_maps({"tas": found.values[0]}, found.grid, tmp_path / "map.png", "K")
    assert (tmp_path / "map.png").stat().st_size > 5000


def test_halos_and_areas_of_the_file(lab, write) -> None:
    data = dataset(lab, with_corners=False)
    for name in ("lat", "lon"):
        data[name].values[:, -1] = data[name].values[:, 0]
    found = read_field(write(data))
    assert found.grid.weights()[:, -1].sum() == 0 and "4 cells occur again" in found.notes[-1]
    data = dataset(lab)
    data["areacella"] = (("rlat", "rlon"), np.arange(1.0, 21).reshape(4, 5))
    data["tas"].attrs["cell_measures"] = "area: areacella"
    found = read_field(write(data, "areas.nc"))
    assert np.allclose(found.grid.weights().ravel(), np.arange(1, 21) / 210)


def test_what_is_no_curvilinear_grid(lab, write) -> None:
    data = dataset(lab)
    for name in ("lat_vertices", "lon_vertices"):
        data[name].values[:] = data[name].values[..., [0, 2, 1, 3]]
    with pytest.raises(DataError, match="do not go round the centres"):
        read_field(write(data, "twisted.nc"))
    data = dataset(lab)
    data["lat"].attrs["units"] = "radian"
    with pytest.raises(DataError, match="latitude: has units 'radian'"):
        read_field(write(data, "radian.nc"))
    data = dataset(lab)
    data["lat"].values[0, 0] = np.nan
    with pytest.raises(DataError, match="latitude: has missing values"):
        read_field(write(data, "nan.nc"))
    data = dataset(lab).drop_vars(["lat", "lon", "lat_vertices", "lon_vertices"])
    with pytest.raises(DataError, match="rotated or projected grid without latitudes"):
        read_field(write(data, "bare.nc"))
    # Rows and columns that call themselves latitudes are none under a projection.
    for name, units in (("rlat", "degrees_north"), ("rlon", "degrees_east")):
        data[name].attrs = {"units": units}
    with pytest.raises(DataError, match="rotated or projected"):
        read_field(write(data, "named.nc"))


def test_a_regular_grid_stays_one_beside_two_dimensional_coordinates(lab, write) -> None:
    data = lab.dataset(lab.fields()[:3])
    both = np.meshgrid(lab.LAT, lab.LON, indexing="ij")
    for name, values, units in zip(("lat2", "lon2"), both, ("degrees_north", "degrees_east")):
        data[name] = (("lat", "lon"), values, {"units": units})
    assert read_years(write(data)).grid.lat.tolist() == lab.LAT.tolist()


@pytest.mark.parametrize("kind", ["healpix", "lambert_conformal_conic"])
def test_other_grids_are_called_by_their_kind(kind, lab, write) -> None:
    data = lab.dataset(lab.fields()[:3])
    dims = ("time", "cell") if kind == "healpix" else ("time", "y", "x")
    values = data["tas"].values.reshape(3, *((20,) if kind == "healpix" else (4, 5)))
    made = xr.Dataset({"tas": (dims, values, {"units": "K", "grid_mapping": "crs"})})
    made = made.assign_coords(time=data["time"])
    made["crs"] = ((), 0, {"grid_mapping_name": kind})
    with pytest.raises(DataError, match="a HEALPix grid" if kind == "healpix" else "projected"):
        read_field(write(made))
