"""Tables of forcings: what is read of them, and what would be lost in silence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xarray as xr

from longseq.core.errors import DataError
from longseq.weather.data.series import list_scenarios, read_series, read_units

LABELS = ["Model", "Scenario", "Region", "Variable", "Unit"]


def write(path: Path, *lines: list[object]) -> Path:
    path.write_text("".join(",".join(map(str, line)) + "\n" for line in lines))
    return path


@pytest.mark.parametrize(
    ("head", "said"),
    [
        ([*LABELS, "scenario", 2000, 2001], r"two columns for one: 'Scenario' and 'scenario'"),
        (["unit", *LABELS, 2000, 2001], r"two columns for one: 'unit' and 'Unit'"),
        ([*LABELS, 2000, 2001, "02000"], r"two columns for one: '2000' and '02000'"),
    ],
)
@pytest.mark.parametrize("reader", [list_scenarios, read_units, read_series])
def test_two_columns_of_one_meaning_are_refused(head, said, reader, tmp_path: Path) -> None:
    row = {"Model": "M", "Scenario": "a", "Region": "World", "Variable": "F", "Unit": "W/m^2"}
    table = write(tmp_path / "t.csv", head, [row.get(name, 1) for name in head])
    with pytest.raises(DataError, match=rf"t\.csv: line 1: has {said}"):
        reader(table)


def test_units_are_the_worlds_and_blanks_behind_a_name_do_not_count(tmp_path: Path) -> None:
    table = write(
        tmp_path / "t.csv",
        [*LABELS, 2001, 2000],
        ["M", "a ", "World ", "Emissions|CH4 ", "Mt CH4/yr", 2, 1],
        ["M", "a", "World|R5", "Emissions|CH4", "kt CH4/yr", 2000, 1000],
        ["M", "b", "World", "Emissions|CH4", "Gt CH4/yr", 4, 3],
    )
    assert list_scenarios(table) == ["a", "b"]
    years, values, names = read_series(f"{table}::a")
    assert names == ["Emissions|CH4"] and years.tolist() == [2000, 2001]
    np.testing.assert_array_equal(values, [[1], [2]])
    assert read_units(f"{table}::a") == {"Emissions|CH4": "Mt CH4/yr"}


def test_names_that_differ_by_blanks_are_refused_in_parquet_too(tmp_path: Path) -> None:
    file = tmp_path / "t.parquet"
    pq.write_table(pa.table({"year": [2000], "co2": [1.0], " co2": [2.0]}), file)
    with pytest.raises(DataError, match=r"t\.parquet: line 1: has two columns 'co2'"):
        read_series(file)
    pq.write_table(pa.table({"year ": [2000], " co2": [2.0]}), file)
    assert read_series(file)[2] == ["co2"]


@pytest.mark.parametrize("mark", ["-999", "9999.9", "1e20"])
def test_a_mark_of_missing_years_is_refused(mark: str, tmp_path: Path) -> None:
    table = write(tmp_path / "t.csv", ["year", "co2"], [2000, 1.5], [2001, mark], [2002, 2.5])
    with pytest.raises(DataError, match=r"t\.csv: co2: .* occurs 1 times, far from all other"):
        read_series(table)
    table = write(tmp_path / "c.csv", ["year", "co2"], [2000, 998], [2001, 999], [2002, 1001])
    assert read_series(table)[1][:, 0].tolist() == [998, 999, 1001]


def test_python_s_underscores_are_no_numbers(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"line 3: co2: '2_5' is no number"):
        read_series(write(tmp_path / "t.csv", ["year", "co2"], [2000, 1.5], [2001, "2_5"]))


@pytest.mark.parametrize("dims", [("time", "sector", "lat", "lon"), ("sector", "time")])
def test_forcings_that_are_neither_series_nor_fields_are_not_left_out(
    dims: tuple[str, ...], tmp_path: Path
) -> None:
    size = {"time": 3, "sector": 2, "lat": 4, "lon": 5}
    degrees = [(key, f"degrees_{way}") for key, way in (("lat", "north"), ("lon", "east"))]
    axes = {key: (key, np.arange(size[key]) * 20.0, {"units": unit}) for key, unit in degrees}
    data = xr.Dataset(
        {"CO2": ("time", np.arange(3.0)), "SO2": (dims, np.ones([size[dim] for dim in dims]))},
        {"time": [2000, 2001, 2002], **axes},
    )
    data.to_netcdf(tmp_path / "f.nc", engine="h5netcdf")
    with pytest.raises(DataError, match=r"f\.nc: SO2: is on \(.*\): neither a series nor a field"):
        read_series(tmp_path / "f.nc")
    data.drop_vars("SO2").to_netcdf(tmp_path / "g.nc", engine="h5netcdf")
    assert read_series(tmp_path / "g.nc")[2] == ["CO2"]
