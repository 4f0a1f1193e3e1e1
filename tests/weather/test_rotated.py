"""Rotated grids of which something is lost: the mapping, its name, the places of the cells."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from longseq.core.errors import DataError
from longseq.weather.data.curvilinear import CurvilinearGrid
from longseq.weather.data.grid import Grid
from longseq.weather.data.rotated import FROM_POLE, NO_UNITS, unrotate
from longseq.weather.data.source import read_field

RLAT, RLON = np.arange(-3.0, 4, 2), np.arange(-4.0, 5, 2)
POLE = {
    "grid_mapping_name": "rotated_latitude_longitude",
    "grid_north_pole_latitude": 39.25,
    "grid_north_pole_longitude": -162.0,
}
LAT, LON = unrotate(*np.meshgrid(RLAT, RLON, indexing="ij"), 39.25, -162.0)


def whole(lab) -> xr.Dataset:
    """Returns three years on a rotated grid with the centres of its cells, in EURO-CORDEX's
    manner."""
    data = lab.dataset(lab.fields()[:3])
    attrs = {**data["tas"].attrs, "grid_mapping": "rotated_pole", "coordinates": "lat lon"}
    made = xr.Dataset({"tas": (("time", "rlat", "rlon"), data["tas"].values, attrs)})
    made["time"] = data["time"]
    for kind, axis, values, unit, letter in (
        ("latitude", RLAT, LAT, "degrees_north", "Y"),
        ("longitude", RLON, LON, "degrees_east", "X"),
    ):
        own = {"standard_name": f"grid_{kind}", "units": "degrees", "axis": letter}
        made[f"r{kind[:3]}"] = (f"r{kind[:3]}", axis, own)
        made[kind[:3]] = (("rlat", "rlon"), values, {"units": unit})
    made["rotated_pole"] = ((), 0, POLE)
    return made


def bare(lab, units: tuple[str, str] | None = None) -> xr.Dataset:
    """Returns the same without places; with ``units`` its axes have these and no standard name."""
    made = whole(lab).drop_vars(["lat", "lon"])
    del made["tas"].attrs["coordinates"]
    for name, unit in zip(("rlat", "rlon"), units or ()):
        made[name].attrs = {"units": unit}
    return made


def unnamed(data: xr.Dataset) -> xr.Dataset:
    del data["tas"].attrs["grid_mapping"]
    return data


def test_places_from_the_pole() -> None:
    # The pole of the grid, its origin, and a point along its equator.
    north, east = unrotate(*np.array([[90.0, 0, 0], [0.0, 0, 90]]), 39.25, -162.0)
    np.testing.assert_allclose(north, [39.25, 50.75, 0], atol=1e-12)
    np.testing.assert_allclose(east, [198, 18, 108], atol=1e-12)
    # A grid longitude of the true pole turns the grid about its own.
    turned = unrotate(np.array([0.0]), np.array([25.0]), 39.25, -162.0, 25.0)
    np.testing.assert_allclose(np.ravel(turned), [50.75, 18], atol=1e-12)
    # By PROJ (ob_tran, o_lat_p 39.25, lon_0 18) on a sphere.
    north, east = unrotate(np.array([10.0]), np.array([-15.0]), 39.25, -162.0)
    np.testing.assert_allclose([*north, *east], [57.834092550904, 349.394540384761], atol=1e-9)


@pytest.mark.parametrize("mapping", [True, False])
@pytest.mark.parametrize("pole", [True, False])
@pytest.mark.parametrize("named", [True, False])
def test_a_mapping_may_be_lost_where_there_are_places(mapping, pole, named, lab, write) -> None:
    data = whole(lab) if mapping else unnamed(whole(lab))
    data = data if pole else data.drop_vars("rotated_pole")
    if not named:
        del data["tas"].attrs["coordinates"]
        data["rlat"].attrs = {"units": "degrees_north"}
        data["rlon"].attrs = {"units": "degrees_east"}
    found = read_field(write(data))
    assert isinstance(found.grid, CurvilinearGrid)
    np.testing.assert_allclose(found.grid.lat, LAT, atol=1e-12)


@pytest.mark.parametrize("mapping", [True, False])
@pytest.mark.parametrize(
    "units", [None, ("degrees", "degrees"), ("degrees_north", "degrees_east"), ("", "")]
)
def test_places_that_are_lost_are_made_from_the_pole(mapping, units, lab, write) -> None:
    data = bare(lab, units) if mapping else unnamed(bare(lab, units))
    found = read_field(write(data))
    assert found.notes == (NO_UNITS if units == ("", "") else FROM_POLE,)
    assert np.array_equal(found.values, lab.fields()[:3])
    np.testing.assert_allclose(found.grid.lat, LAT, atol=1e-12)
    np.testing.assert_allclose(found.grid.lon, LON, atol=1e-12)
    # The cells are as large as on the rotated grid itself.
    np.testing.assert_allclose(found.grid.weights(), Grid.of(RLAT, RLON).weights(), rtol=2e-4)


def test_places_are_made_with_the_edges_and_names_of_the_file(lab, write) -> None:
    data = bare(lab)
    data["tas"].attrs["coordinates"] = "xlat xlon"
    data["rlat"].attrs["bounds"] = "rlat_bnds"
    data["rlat_bnds"] = (("rlat", "n"), np.stack([RLAT - 0.5, RLAT + 0.5], -1))
    data["rlon"].attrs["bounds"] = "rlon_bnds"
    data["rlon_bnds"] = (("rlon", "n"), np.stack([RLON - 1, RLON + 1], -1))
    found = read_field(write(data))
    low, _ = unrotate(RLAT[:1] - 0.5, RLON[:1] - 1, 39.25, -162.0)
    assert found.grid.lat_bounds[0, 0, 0] == pytest.approx(low[0], abs=1e-12)


def test_a_rotated_grid_without_pole_and_places_is_refused(lab, write) -> None:
    words = r"tas is on \(time, rlat, rlon\), a rotated or projected grid without latitudes and"
    for number, units in enumerate((None, ("degrees_north", "degrees_east"), ("", ""))):
        for data in (bare(lab, units), unnamed(bare(lab, units))):
            path = write(data.drop_vars("rotated_pole"), f"{number}.nc")
            with pytest.raises(DataError, match=words + r".*\(add those of the model's grid file"):
                read_field(path)
    data = bare(lab)
    for wrong in ("north", 95.0, -90.5, np.nan):
        data["rotated_pole"].attrs["grid_north_pole_latitude"] = wrong
        with pytest.raises(DataError, match="rotated or projected"):
            read_field(write(data, f"{wrong}.nc"))
    # Axes that call themselves true, and a mapping of which the name alone is left.
    data = lab.dataset(lab.fields()[:3])
    data["tas"].attrs["grid_mapping"] = "rotated_pole"
    with pytest.raises(DataError, match="rotated or projected"):
        read_field(write(data, "true.nc"))
    data["tas"].attrs["grid_mapping"] = "crs"  # which a plain grid has too
    assert read_field(write(data, "crs.nc")).grid.shape == (4, 5)
    data["tas"].attrs.pop("grid_mapping")
    data["rotated_pole"] = ((), 0, POLE)  # as files that were regridded still have
    notes = read_field(write(data, "other.nc")).notes
    assert notes == ("rotated_pole is not its map projection: lat and lon are true",)
