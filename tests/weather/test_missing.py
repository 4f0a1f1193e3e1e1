"""What means missing in a file: valid ranges, the library's own fill values, marks not declared."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from longseq.core.errors import DataError
from longseq.weather.data.missing import Marks
from longseq.weather.data.series import read_series
from longseq.weather.data.source import open_source, read_field
from longseq.weather.data.yearly import read_years


def packed(lab, write, attrs: dict, last: int, name: str = "packed.nc", **coding):
    """Writes five years of whole numbers in steps of 0.01 about 280 K, cell (0, 0) being last."""
    numbers = np.random.default_rng(0).integers(-800, 800, (5, 4, 5)).astype("i2")
    numbers[:, 0, 0] = last
    data = lab.dataset(numbers)
    how = {"scale_factor": 0.01, "add_offset": 280.0, **attrs}
    data["tas"].attrs |= how
    return write(data, name, encoding={"tas": {"_FillValue": None, **coding}}), numbers


@pytest.mark.parametrize(
    "attrs",
    [
        {"valid_range": np.array([-5000, 5000], "i2")},  # in packed units, as the type says
        {"valid_range": np.array([230.0, 330.0])},
        {"valid_min": np.int16(-5000), "valid_max": np.int16(5000)},
        {"valid_max": np.float32(330.0)},
        {"missing_value": np.int16(32000)},
    ],
)
def test_values_outside_the_valid_range_are_missing(attrs, lab, write) -> None:
    path, numbers = packed(lab, write, attrs, 32000, _FillValue=None)
    found = read_years(path)
    assert not found.mask[0, 0] and found.mask.sum() == 19
    assert np.allclose(found.values[:, found.mask], numbers[:, found.mask] * 0.01 + 280, atol=1e-4)
    if "missing_value" not in attrs:
        assert any("count as missing" in note for note in found.notes)


def test_the_limits_themselves_are_valid(lab, write) -> None:
    path, _ = packed(lab, write, {"valid_range": np.array([-5000, 5000], "i2")}, 5000)
    assert read_years(path).mask is None
    reverse = {"valid_range": np.array([-5000, 5000], "i2"), "scale_factor": -0.01}
    path, _ = packed(lab, write, reverse, -5000, "reverse.nc")
    assert read_years(path).values[0, 0, 0] == pytest.approx(330)
    # A range of what is there is no limit.
    values = lab.fields()[:3]
    data = lab.dataset(values)
    data["tas"].attrs["actual_range"] = np.array([281.0, 282.0])
    assert np.array_equal(read_field(write(data, "actual.nc")).values, values)


@pytest.mark.parametrize(("kind", "fill"), [("f4", 9.969209968386869e36), ("i2", -32767)])
def test_blocks_that_nobody_wrote_are_missing(kind, fill, lab, write) -> None:
    values = np.random.default_rng(0).uniform(5, 90, (4, 4, 5)).astype(kind)
    values[:, 1, 1] = fill
    data = lab.dataset(values, units="W m-2", name="rsds")
    data["rsds"].attrs["standard_name"] = "surface_downwelling_shortwave_flux_in_air"
    found = read_years(write(data, encoding={"rsds": {"_FillValue": None}}))
    assert found.mask.sum() == 19 and not found.mask[1, 1]
    values[1, 2, 2] = fill
    data["rsds"].values[:] = values
    path = write(data, "some.nc", encoding={"rsds": {"_FillValue": None}})
    with pytest.raises(DataError, match="1 cells at some times only"):
        read_years(path)


@pytest.mark.parametrize("mark", [-9999.0, -999.0, -99.9, 1e20, -1e34, 9999.0, 32767.0, -3276.7])
@pytest.mark.parametrize("cells", [(1, 1), (slice(None), 1, 1)])
def test_a_mark_that_is_not_declared_is_refused(mark, cells, lab, write) -> None:
    values = np.random.default_rng(0).gamma(0.6, 2.0, (4, 4, 5)).astype(np.float32)
    values[cells] = mark
    data = lab.dataset(values, units="mm/day", name="pr")
    data["pr"].attrs["standard_name"] = "precipitation_flux"
    path = write(data, encoding={"pr": {"_FillValue": None}})
    with pytest.raises(DataError, match=r"pr: .* looks like a mark of missing values"):
        read_years(path)
    data["pr"].attrs["missing_value"] = np.float32(mark)
    path = write(data, "declared.nc", encoding={"pr": {"_FillValue": None}})
    if cells == (1, 1):
        with pytest.raises(DataError, match="values are missing"):
            read_years(path)
    else:
        assert read_years(path).mask.sum() == 19


def test_a_usual_number_among_others_is_a_value(lab, write) -> None:
    # Pressure has 999 hPa, and heat content is huge.
    for values, units, name in (
        (np.linspace(970, 1030, 80), "hPa", "psl"),
        (np.linspace(1e20, 5e22, 80), "J", "ohc"),
        (np.linspace(-1500, 9999, 80), "m", "zg"),
    ):
        field = values.reshape(4, 4, 5).astype(np.float32)
        field[0, 0, 3] = 999 if name == "psl" else field[0, 0, 3]
        data = lab.dataset(field, units=units, name=name)
        del data[name].attrs["standard_name"]
        assert read_years(write(data, f"{name}.nc")).mask is None


def test_series_of_netcdf_files_know_the_marks_too(lab, tmp_path) -> None:
    time = ("time", np.arange(1850, 1854))
    data = xr.Dataset({"CO2": ("time", np.array([1.0, 2.0, 9.0, 4.0]))}, {"time": time})
    data["CO2"].attrs["valid_max"] = 5.0
    data.to_netcdf(tmp_path / "co2.nc", engine="h5netcdf")
    with pytest.raises(DataError, match="CO2 is missing"):
        read_series(tmp_path / "co2.nc")


def test_unsigned_bytes_keep_their_range() -> None:
    array = xr.DataArray(np.zeros(3, np.float32), dims="x")
    array.encoding |= {"dtype": np.dtype("i1"), "_Unsigned": "true", "scale_factor": 2.0}
    array.attrs["valid_range"] = np.array([0, -6], "i1")  # 250 as an unsigned byte
    marks = Marks.of(array)
    assert (marks.low, marks.high, marks.slack) == (0.0, 500.0, 1.0)


def test_zeros_of_a_zarr_store_are_values(lab, write, tmp_path) -> None:
    import zarr

    rain = np.maximum(np.random.default_rng(0).normal(0, 1e-5, (4, 4, 5)), 0).astype("f4")
    rain[:, 1, 1] = 0  # a dry cell
    data = lab.dataset(rain, lon=np.array([0.0, 100, 200, 300, 350]), units="kg m-2 s-1", name="pr")
    data["pr"].attrs["standard_name"] = "precipitation_flux"
    store = zarr.open_group(tmp_path / "own.zarr", mode="w", zarr_format=2)
    for name, own in data.variables.items():
        made = store.create_array(
            name, shape=own.shape, dtype=own.dtype, chunks=own.shape, fill_value=0
        )
        made[...] = own.values
        made.attrs.update({"_ARRAY_DIMENSIONS": list(own.dims), **own.attrs})
    found = read_years(tmp_path / "own.zarr")
    assert found.mask is None and np.array_equal(found.values, rain) and found.lon[0] == 0
    # xarray's own stores say what their fill value means.
    data["pr"].values[:, 0, 0] = np.nan
    for version in (2, 3):
        path = write(data, f"own{version}.zarr", zarr_format=version)
        assert read_years(path).mask.sum() == 19


def test_land_that_has_lost_its_mark_is_refused(lab, write) -> None:
    values = lab.fields()[:12] - 273.15
    values[:, 1, 2:4] = 0
    with pytest.raises(DataError, match=r"tas: is exactly 0 in 2 cells all the time.*setctomiss"):
        read_field(write(lab.dataset(values, units="degC")))
    with pytest.raises(DataError, match="is exactly 0 in 2 cells"):
        read_years(write(lab.dataset(values, units="degC"), "years.nc"))
    differences = read_field(write(lab.dataset(values, units="degC"), "d.nc"), difference=True)
    assert (differences.values[:, 1, 2:4] == 0).all()
    values[5, 1, 2:4] = 0.25  # and weather may pass 0
    assert read_field(write(lab.dataset(values, units="degC"), "v.nc")).mask is None
    nothing = lab.dataset(np.zeros_like(values), units="degC")  # nor is a mark all that there is
    assert read_field(write(nothing, "n.nc")).mask is None
    values[:, 1, 2:4] = 0
    assert read_field(write(lab.dataset(values[:11], units="degC"), "short.nc")).mask is None


def test_totals_since_the_start_are_refused(lab, write) -> None:
    rain = np.random.default_rng(0).gamma(2, 50, (12, 4, 5))
    rain[3] = 0  # a dry record leaves a total as it is
    rain[:, 0, 0] = np.nan

    def made(values: np.ndarray, name: str, **attrs: str):
        data = lab.dataset(values, units="mm", name=name)
        data[name].attrs = {"units": "mm", **attrs}
        return data

    for name, attrs in (
        ("tp", {}),
        ("RAINNC", {"description": "ACCUMULATED TOTAL GRID SCALE PRECIPITATION"}),
    ):
        with pytest.raises(DataError, match=rf"{name}: never falls .* totals since .*deltat"):
            read_field(write(made(np.cumsum(rain, 0), name, **attrs), f"{name}.nc"))
        assert read_field(write(made(rain, name, **attrs), f"own{name}.nc")).units
    with open_source(write(made(np.cumsum(rain, 0), "tp"), "blocks.nc")) as source:
        for start in range(12):  # a block at a time
            values = source.read(start, start + 1)
        with pytest.raises(DataError, match="never falls"):
            source.field(values)
    longer = np.random.default_rng(1).gamma(2, 50, (36, 4, 5))
    yearly = np.concatenate([np.cumsum(longer[at : at + 12], 0) for at in (0, 12, 24)])
    bucket = np.cumsum(longer, 0) % 1000  # every cell starts anew at a time of its own
    for label, values in (("yearly", yearly), ("bucket", bucket)):
        with pytest.raises(DataError, match=r"tp: rises everywhere, and falls .* every new start"):
            read_field(write(made(values, "tp"), f"{label}.nc"))
    trend = np.linspace(500, 900, 36)[:, None, None] + np.zeros((36, 4, 5))
    trend[9::10] -= 15  # wetter nearly every year, without falling far
    assert read_field(write(made(trend, "tp"), "trend.nc")).units == "kg m-2"
    summed = made(np.cumsum(rain, 0), "tp", cell_methods="time: sum")  # of its intervals, it says
    assert read_field(write(summed, "summed.nc")).units == "kg m-2"
    # Depths may rise for as long as they like, and so may amounts of a few records.
    assert read_field(write(made(np.cumsum(rain, 0), "depth"), "depth.nc")).units == "m"
    assert read_field(write(made(np.cumsum(rain[:11], 0), "tp"), "short.nc")).units == "kg m-2"


@pytest.mark.parametrize("mark", [1e20, -999.9, -9.99e33])
def test_marks_in_double_precision_mark_single_values(lab, write, mark: float) -> None:
    values = lab.fields()
    values[:, 0, 0] = mark
    data = lab.dataset(values)
    data["tas"].attrs["missing_value"] = np.float64(mark)  # which no 32-bit float equals
    found = read_field(write(data, format="NETCDF3_CLASSIC", engine="scipy"))
    assert found.mask is not None and (~found.mask).sum() == 1 and not found.mask[0, 0]
    assert np.array_equal(found.values[:, found.mask], values[:, found.mask])
