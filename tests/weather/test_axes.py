"""Axes under the names of ocean, weather and forecast models: read by attributes, or refused."""

from __future__ import annotations

from pathlib import Path

import cftime
import h5py
import numpy as np
import pytest
import xarray as xr

from longseq.core.errors import DataError
from longseq.weather.data.axes import with_axes
from longseq.weather.data.curvilinear import CurvilinearGrid
from longseq.weather.data.series import read_series
from longseq.weather.data.source import read_field

T, Y, X = 24, 5, 7
DAYS = np.arange(T) * 30.0 + 15
NORTH, EAST = np.linspace(-50.0, 50.0, Y), np.arange(X) * 10.0 + 20
# A grid that is nowhere along parallels and meridians.
LAT, LON = np.meshgrid(NORTH, EAST, indexing="ij")
LAT, LON = LAT + 2 * np.sin(np.deg2rad(3 * LON)), LON + 2 * np.cos(np.deg2rad(2 * LAT))
VALUES = (285 + np.random.default_rng(0).normal(size=(T, Y, X))).astype(np.float32)
KELVIN = {"units": "K"}
TIME = {"units": "days since 2000-01-01", "calendar": "noleap"}
SECONDS = {"units": "seconds since 2000-01-01 00:00:00", "calendar": "noleap"}
DEGREES_N, DEGREES_E = {"units": "degrees_north"}, {"units": "degrees_east"}


def fields(name: str, dims: tuple[str, ...], coordinates: str = "") -> xr.Dataset:
    """Returns the field on dimensions without coordinates."""
    said = {"coordinates": coordinates} if coordinates else {}
    return xr.Dataset({name: (dims, VALUES, {**KELVIN, **said})})


def saved(data: xr.Dataset, path: Path) -> Path:
    data.drop_indexes(list(data.indexes)).to_netcdf(path, engine="h5netcdf")
    return path


def nemo(coordinates: str = "time_centered nav_lat nav_lon", time: str = "t") -> xr.Dataset:
    data = fields("tos", (time, "y", "x"), coordinates)
    data["time_counter"] = (time, DAYS * 86400, {**SECONDS, "standard_name": "time", "axis": "T"})
    data["time_centered"] = (time, DAYS * 86400, {**SECONDS, "standard_name": "time"})
    data["nav_lat"] = (("y", "x"), LAT.copy(), {**DEGREES_N, "standard_name": "latitude"})
    data["nav_lon"] = (("y", "x"), LON.copy(), {**DEGREES_E, "standard_name": "longitude"})
    return data


def roms(time: str = "time") -> xr.Dataset:
    data = fields("temp", (time, "eta_rho", "xi_rho"), "lon_rho lat_rho ocean_time")
    data["ocean_time"] = (time, DAYS * 86400, {**SECONDS, "field": "time, scalar, series"})
    data["lat_rho"] = (("eta_rho", "xi_rho"), LAT, {"units": "degree_north"})
    data["lon_rho"] = (("eta_rho", "xi_rho"), LON, {"units": "degree_east"})
    data["lat_psi"] = (("eta_psi", "xi_psi"), LAT[1:, 1:] + 9, {"units": "degree_north"})
    data["lon_psi"] = (("eta_psi", "xi_psi"), LON[1:, 1:] + 9, {"units": "degree_east"})
    return data


def pop(coordinates: str = "TLONG TLAT time") -> xr.Dataset:
    data = fields("SST", ("time", "nlat", "nlon"), coordinates)
    data["time"] = ("time", DAYS, TIME)
    # The corners' coordinates come first, as in the model's files.
    for name, values in (("ULAT", LAT + 5), ("TLAT", LAT.copy())):
        data[name] = (("nlat", "nlon"), values, DEGREES_N)
    for name, values in (("ULONG", LON + 5), ("TLONG", LON)):
        data[name] = (("nlat", "nlon"), values, DEGREES_E)
    return data


def wrf() -> xr.Dataset:
    data = fields("T2", ("Time", "south_north", "west_east"), "XLONG XLAT XTIME")
    data["XTIME"] = ("Time", DAYS * 1440, {**TIME, "units": "minutes since 2000-01-01"})
    dims = ("Time", "south_north", "west_east")
    data["XLAT"] = (dims, np.broadcast_to(LAT, (T, Y, X)).copy(), {"units": "degree_north"})
    data["XLONG"] = (dims, np.broadcast_to(LON, (T, Y, X)).copy(), {"units": "degree_east"})
    return data


def nominal(coordinates: str = "geolon_t geolat_t") -> xr.Dataset:
    """Returns a tripolar grid whose axes are in degrees too, but nominal."""
    data = fields("sst", ("time", "yt_ocean", "xt_ocean"), coordinates)
    data["time"] = ("time", DAYS, TIME)
    data["yt_ocean"] = ("yt_ocean", NORTH, {"units": "degrees_N", "cartesian_axis": "Y"})
    data["xt_ocean"] = ("xt_ocean", EAST, {"units": "degrees_E", "cartesian_axis": "X"})
    data["geolat_t"] = (("yt_ocean", "xt_ocean"), LAT, {"units": "degrees_N"})
    data["geolon_t"] = (("yt_ocean", "xt_ocean"), LON, {"units": "degrees_E"})
    return data


@pytest.mark.parametrize(
    "data",
    [
        *(nemo(), nemo("nav_lat nav_lon", "time_counter"), roms(), roms("ocean_time")),
        *(pop(), wrf(), nominal()),
    ],
    ids=["nemo_t", "nemo", "roms_time", "roms", "pop", "wrf", "mom"],
)
def test_curvilinear_files_of_models(data: xr.Dataset, tmp_path: Path) -> None:
    found = read_field(saved(data, tmp_path / "a.nc"))
    assert isinstance(found.grid, CurvilinearGrid)
    np.testing.assert_allclose(found.grid.lat, LAT, atol=1e-9)
    np.testing.assert_allclose(found.grid.lon, LON, atol=1e-9)
    np.testing.assert_array_equal(found.values, VALUES)
    epoch = cftime.DatetimeNoLeap(2000, 1, 1)
    assert [(date - epoch).days for date in found.time] == [int(day) for day in DAYS]


def test_indices_with_latitudes_longitudes_and_times_beside_them(tmp_path: Path) -> None:
    data = fields("tas", ("record", "j", "i"), "lat lon time")
    data["time"], data["lat"] = ("record", DAYS, TIME), ("j", NORTH, {**DEGREES_N, "bounds": "b"})
    data["lon"], data["j"] = ("i", EAST, DEGREES_E), ("j", np.arange(Y))
    data["b"] = (("j", "two"), np.stack([NORTH - 12, NORTH + 13], 1))
    found = read_field(saved(data, tmp_path / "a.nc"))
    np.testing.assert_array_equal(found.grid.lat, NORTH)
    np.testing.assert_array_equal(found.grid.lat_bounds[:, 0], NORTH - 12)
    np.testing.assert_array_equal(found.values, VALUES)
    # Under names of other axes, in another order.
    names = {"time": "lat", "lat": "x", "lon": "time"}
    order = data.transpose("i", "record", "j", ...).rename(names)
    order["tas"].attrs["coordinates"] = "lat x time"
    np.testing.assert_array_equal(read_field(saved(order, tmp_path / "b.nc")).values, VALUES)


def test_forecasts_are_dated_by_the_time_at_which_they_hold(tmp_path: Path) -> None:
    data = fields("t2m", ("time", "latitude", "longitude"), "valid_time step")
    began = {**TIME, "standard_name": "forecast_reference_time"}
    data["time"], data["step"] = ("time", DAYS, began), ((), 2.0, {"units": "days"})
    data["latitude"], data["longitude"] = (
        ("latitude", NORTH, DEGREES_N),
        ("longitude", EAST, DEGREES_E),
    )
    with pytest.raises(DataError, match=r"without time \(time is when forecasts began, not when"):
        read_field(saved(data, tmp_path / "a.nc"))
    data["valid_time"] = ("time", DAYS + 2, {**TIME, "standard_name": "time"})
    found = read_field(saved(data, tmp_path / "b.nc"))
    assert (found.time[0].month, found.time[0].day) == (1, 18)


def test_valid_time_of_reanalyses(tmp_path: Path) -> None:
    data = fields("t2m", ("valid_time", "latitude", "longitude"), "number valid_time expver")
    data["valid_time"] = ("valid_time", DAYS.astype(int) * 86400, SECONDS)
    data["latitude"] = ("latitude", NORTH, DEGREES_N)
    data["longitude"] = ("longitude", EAST, DEGREES_E)
    data["number"] = ((), 0, {"standard_name": "realization", "units": "1"})
    data["expver"] = ("valid_time", np.array(["0001"] * 20 + ["0005"] * 4, dtype=object))
    found = read_field(saved(data, tmp_path / "a.nc"))
    np.testing.assert_array_equal(found.values, VALUES)
    parts = np.full((T, 2, Y, X), np.nan, dtype=np.float32)
    parts[:20, 0], parts[20:, 1] = VALUES[:20], VALUES[20:]
    data = data.drop_vars(["expver", "t2m"])
    data["t2m"] = (("valid_time", "expver", "latitude", "longitude"), parts, KELVIN)
    data["expver"] = ("expver", [1, 5])
    with pytest.raises(DataError, match=r"t2m: has 2 entries along 'expver' \(join them"):
        read_field(saved(data, tmp_path / "b.nc"))


def test_what_the_file_does_not_say_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not say which of ULAT, TLAT, ULONG, TLONG are its"):
        read_field(saved(pop(""), tmp_path / "a.nc"))
    with pytest.raises(DataError, match="geolat_t and geolon_t differ from the latitudes and"):
        read_field(saved(nominal(""), tmp_path / "b.nc"))
    with pytest.raises(DataError, match="t has time_counter and time_centered: name one in its"):
        read_field(saved(nemo("nav_lat nav_lon"), tmp_path / "c.nc"))
    bare = roms("ocean_time")
    bare["ocean_time"].attrs["units"] = "second"
    with pytest.raises(DataError, match="ocean_time has units 'second': 'days since …' is needed"):
        read_field(saved(bare, tmp_path / "d.nc"))
    moving = wrf()
    moving["XLAT"][3] += 1
    with pytest.raises(DataError, match="latitudes and longitudes are not on two of these"):
        read_field(saved(moving, tmp_path / "e.nc"))


def test_the_variable_may_name_its_axes_or_the_corners(tmp_path: Path) -> None:
    corners = read_field(saved(pop("ULONG ULAT time"), tmp_path / "a.nc"))
    np.testing.assert_allclose(corners.grid.lat, LAT + 5, atol=1e-9)
    axes = read_field(saved(nominal("yt_ocean xt_ocean"), tmp_path / "b.nc"))
    np.testing.assert_array_equal(axes.grid.lat, NORTH)
    # Two-dimensional ones that say what the axes say change nothing, whoever names them.
    for number, said in enumerate(("", "geolat_t geolon_t")):
        data = nominal(said)
        lat, lon = np.meshgrid(NORTH, EAST - 360, indexing="ij")
        data["geolat_t"], data["geolon_t"] = (
            (("yt_ocean", "xt_ocean"), lat, DEGREES_N),
            (("yt_ocean", "xt_ocean"), lon, DEGREES_E),
        )
        same = read_field(saved(data, tmp_path / f"{number}.nc"))
        assert not isinstance(same.grid, CurvilinearGrid)


def test_land_without_coordinates_is_refused(tmp_path: Path) -> None:
    data = nemo()
    data["nav_lat"][:3, :3], data["nav_lon"][:3, :3] = 0, 0
    with pytest.raises(DataError, match="nav_lat and nav_lon place 9 cells at 0°N 0°E"):
        read_field(saved(data, tmp_path / "a.nc"))
    lost = pop()
    lost["TLAT"][0, 0] = np.nan
    with pytest.raises(DataError, match=r"latitude: has missing values \(.*ncks -A -v TLAT,TLONG"):
        read_field(saved(lost, tmp_path / "c.nc"))
    # A halo repeats cells, and all meridians meet in a pole.
    data = nemo()
    data["nav_lat"][-1], data["nav_lon"][:, -1] = 90, data["nav_lon"][:, 0]
    data["nav_lat"][:, -1] = data["nav_lat"][:, 0]
    notes = read_field(saved(data, tmp_path / "b.nc")).notes
    assert any("occur again" in note for note in notes)


def test_points_and_corners_stay_what_they_are() -> None:
    points = xr.Dataset({"tas": (("obs",), np.zeros(4), KELVIN)})
    points["time"], points["lat"] = ("obs", np.arange(4.0), TIME), ("obs", np.zeros(4), DEGREES_N)
    assert with_axes(points).identical(points)
    # Corners of one row of cells: equal along their first dimension, which is no time.
    cells = xr.Dataset({"lat_bnds": (("y", "x", "v"), np.zeros((1, 3, 4)), DEGREES_N)})
    assert with_axes(cells).identical(cells)


def test_further_times_are_no_series(tmp_path: Path) -> None:
    data = xr.Dataset({"co2": ("time_counter", np.arange(3.0), {"units": "Gt"})})
    data["time_counter"] = ("time_counter", [180.0, 545.0, 910.0], TIME)
    data["time_centered"] = ("time_counter", [180.0, 545.0, 910.0], TIME)
    years, _, names = read_series(saved(data, tmp_path / "a.nc"))
    assert list(years) == [2000, 2001, 2002] and names == ["co2"]


def staggered(coordinates: str = "") -> xr.Dataset:
    """Returns a field beside another that names the second of two latitudes along a dimension."""
    data = fields("tas", ("time", "j", "lon"), coordinates)
    data["v"] = (("time", "j", "lon"), VALUES, {"units": "m s-1", "coordinates": "lat_v"})
    data["time"] = ("time", DAYS, TIME)
    data["lat_t"], data["lat_v"] = ("j", NORTH, DEGREES_N), ("j", NORTH + 5, DEGREES_N)
    data["lon"] = ("lon", EAST, DEGREES_E)
    return data


def test_what_another_variable_names_is_not_this_ones(tmp_path) -> None:
    path = saved(staggered(), tmp_path / "run.nc")
    with pytest.raises(DataError, match=r"j has lat_t and lat_v: name one in its attribute"):
        read_field(path, "tas")
    np.testing.assert_allclose(read_field(path, "v").grid.lat, NORTH + 5)
    path = saved(staggered("lat_t"), tmp_path / "said.nc")
    np.testing.assert_allclose(read_field(path, "tas").grid.lat, NORTH)
    np.testing.assert_allclose(read_field(path, "v").grid.lat, NORTH + 5)
    path = saved(staggered("lat_t").drop_vars("lat_t"), tmp_path / "lost.nc")
    with pytest.raises(DataError, match="lat_v along j is none that its attribute coordinates"):
        read_field(path, "tas")


@pytest.mark.parametrize("name", ["valid_time", "time_centered"])
def test_a_time_that_is_named_beside_another_is_not_passed_over(tmp_path, name) -> None:
    data = fields("tas", ("time", "lat", "lon"), name)
    data["time"], data[name] = ("time", DAYS, TIME), ("time", DAYS + 200, TIME)
    data["lat"], data["lon"] = ("lat", NORTH, DEGREES_N), ("lon", EAST, DEGREES_E)
    path = saved(data, tmp_path / "run.nc")
    with pytest.raises(DataError, match=f"tas: its coordinates name {name}, and that differs from"):
        read_field(path)
    without = saved(data.drop_vars("time"), tmp_path / "one.nc")
    assert read_field(without).time[0] == cftime.DatetimeNoLeap(2000, 8, 4)
    # In other units, or anywhere in the interval that the file gives, it says the same.
    data[name] = ("time", DAYS * 24, {**TIME, "units": "hours since 2000-01-01"})
    alike = read_field(saved(data, tmp_path / "hours.nc")).time
    data[name] = ("time", DAYS + 15, TIME)
    data["time"] = ("time", DAYS, {**TIME, "bounds": "time_bnds"})
    data["time_bnds"] = (("time", "two"), np.stack([DAYS - 15, DAYS + 15], 1))
    inside = read_field(saved(data, tmp_path / "bounds.nc")).time
    assert list(alike) == list(inside)


def test_a_latitude_that_is_named_beside_another_is_not_passed_over(tmp_path) -> None:
    data = fields("tas", ("time", "lat", "lon"), "lat_v")
    data["time"], data["lat_v"] = ("time", DAYS, TIME), ("lat", NORTH + 5, DEGREES_N)
    data["lat"], data["lon"] = ("lat", NORTH, DEGREES_N), ("lon", EAST, DEGREES_E)
    with pytest.raises(DataError, match="coordinates name lat_v, and that differs from lat"):
        read_field(saved(data, tmp_path / "run.nc"))


@pytest.mark.parametrize("first", [0, 1])
def test_a_count_under_the_dimensions_name_gives_way(tmp_path, first) -> None:
    data = fields("tas", ("time", "lat", "lon"))
    for dim, size in (("time", T), ("lat", Y), ("lon", X)):
        data[dim] = (dim, np.arange(size) + first)
    data["ocean_time"] = ("time", DAYS, TIME)
    data["latitude"], data["longitude"] = ("lat", NORTH, DEGREES_N), ("lon", EAST, DEGREES_E)
    field = read_field(saved(data, tmp_path / "run.nc"))
    np.testing.assert_allclose(field.grid.lat, NORTH)
    np.testing.assert_allclose(field.grid.lon, EAST)
    assert field.time[0] == cftime.DatetimeNoLeap(2000, 1, 16)


def test_latitudes_that_a_variable_names_and_the_file_lacks_are_not_replaced(tmp_path) -> None:
    path = saved(pop().drop_vars(["TLAT", "TLONG"]), tmp_path / "run.nc")
    with pytest.raises(DataError, match="SST: names TLONG and TLAT as its coordinates, which the"):
        read_field(path)


def test_two_latitudes_of_one_variable_are_refused_unless_equal(tmp_path) -> None:
    data = pop("TLONG TLAT ULONG ULAT")
    with pytest.raises(DataError, match="SST: names TLAT and ULAT as its coordinates, which are"):
        read_field(saved(data, tmp_path / "run.nc"))
    data["ULAT"], data["ULONG"] = data["TLAT"], data["TLONG"]
    assert isinstance(read_field(saved(data, tmp_path / "same.nc")).grid, CurvilinearGrid)


@pytest.mark.parametrize("names", ["TLAT ULONG", "ULONG TLAT time", "ULAT TLONG"])
def test_a_latitude_and_a_longitude_of_different_points_are_refused(tmp_path, names) -> None:
    with pytest.raises(DataError, match=r"as its coordinates, which are of different points"):
        read_field(saved(pop(names), tmp_path / "a.nc"))
    # Those of another point lost, or under the names of other models.
    alone = pop("TLAT ULONG").drop_vars(["ULAT", "TLONG"])
    with pytest.raises(DataError, match="names TLAT and ULONG as its coordinates, which are of"):
        read_field(saved(alone, tmp_path / "b.nc"))
    for lat, lon in (("gphit", "glamu"), ("lat_rho", "lon_u"), ("geolat", "geolon_u")):
        data = alone.rename(TLAT=lat, ULONG=lon)
        data["other"] = data[lat] + 1 if lat == "geolat" else data[lat]
        data = data.rename(other="geolat_u") if lat == "geolat" else data.drop_vars("other")
        data["SST"].attrs["coordinates"] = f"{lon} {lat}"
        with pytest.raises(DataError, match=f"names {lat} and {lon} as its"):
            read_field(saved(data, tmp_path / f"{lat}.nc"))


@pytest.mark.parametrize(
    "names", [("LATIXY", "LONGXY"), ("nav_lat", "nav_lon"), ("lat2d", "lon"), ("yc", "xc")]
)
def test_names_that_say_nothing_of_points_are_taken(tmp_path, names) -> None:
    data = pop("TLAT TLONG").drop_vars(["ULAT", "ULONG"]).rename(TLAT=names[0], TLONG=names[1])
    data["SST"].attrs["coordinates"] = " ".join(names)
    np.testing.assert_allclose(read_field(saved(data, tmp_path / "a.nc")).grid.lat, LAT)


def test_fluxes_through_faces_have_the_longitudes_of_others(tmp_path) -> None:
    data = pop("ULONG TLAT time")
    data["SST"].attrs["grid_loc"] = "3211"
    np.testing.assert_allclose(read_field(saved(data, tmp_path / "a.nc")).grid.lat, LAT)


PLAIN = fields("tas", ("time", "lat", "lon")).assign_coords(
    time=("time", DAYS, TIME), lat=("lat", NORTH, DEGREES_N), lon=("lon", EAST, DEGREES_E)
)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("scale_factor", 0.0, "its scale_factor is 0.0, and must be a number other than 0"),
        ("scale_factor", np.nan, "its scale_factor is nan"),
        ("scale_factor", "1.0", "its scale_factor is '1.0'"),
        ("scale_factor", np.array([1.0, 2.0]), r"its scale_factor is \[1.0, 2.0\]"),
        ("add_offset", "273.15", "its add_offset is '273.15', and must be a number"),
        ("coordinates", 5, "its attribute coordinates is 5, and must be one text"),
        (
            "coordinates",
            np.array(["lat", "lon"], dtype=object),
            r"its attribute coordinates is \[",
        ),
    ],
)
def test_attributes_that_cannot_be_understood_are_named(tmp_path, key, value, words) -> None:
    path = saved(PLAIN, tmp_path / "run.nc")
    with h5py.File(path, "a") as file:
        file["tas"].attrs[key] = value
    with pytest.raises(DataError, match=f"tas: {words}.*ncatted"):
        read_field(path)


def test_a_degree_sign_of_latin_1_is_one(tmp_path) -> None:
    celsius = PLAIN.assign(tas=PLAIN.tas.copy(data=VALUES - 273.15))
    celsius.tas.attrs = {"units": "QC", "long_name": "in QC"}
    path = saved(celsius, tmp_path / "run.nc")
    with h5py.File(path, "a") as file:
        for key, text in (("units", b"\xb0C"), ("long_name", b"in \xb0C")):
            del file["tas"].attrs[key]
            file["tas"].attrs[key] = text
    field = read_field(path)
    np.testing.assert_allclose(field.values, VALUES, atol=1e-3)
    assert field.units == "K" and field.attrs["long_name"] == "in °C"
    old = tmp_path / "old.nc"
    celsius.drop_indexes(list(celsius.indexes)).to_netcdf(old, engine="scipy")
    old.write_bytes(old.read_bytes().replace(b"QC", b"\xb0C"))
    np.testing.assert_allclose(read_field(old).values, VALUES, atol=1e-3)
