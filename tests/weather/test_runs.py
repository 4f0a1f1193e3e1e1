"""Runs of several files, patterns and members; masks; series from tables; positive variables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from longseq.core.errors import DataError
from longseq.weather.baselines import BASELINES, predict_baseline
from longseq.weather.data import units as unit_library
from longseq.weather.data.positive import keep_positive
from longseq.weather.data.runs import read_run
from longseq.weather.data.scenario import inside, make_scenario, refuse_leak
from longseq.weather.data.series import read_series
from longseq.weather.data.source import read_field
from longseq.weather.metrics import spatial_rmse
from longseq.weather.noise import Noise


def test_files_are_joined_in_time_and_members_put_side_by_side(write, lab, tmp_path) -> None:
    whole = lab.dataset(lab.fields())
    past, future = whole.isel(time=slice(0, 50)), whole.isel(time=slice(50, None))
    one, two = write(past, "tas_historical.nc"), write(future, "tas_ssp.nc")
    expected = read_field(write(whole, "whole.nc"))
    for text in (f"{one}+{two}", f"{two} + {one}", f"{tmp_path}/tas_*.nc"):
        found = read_run(text)
        assert np.array_equal(found.values, expected.values) and found.path == text
        assert found.years.tolist() == lab.YEARS.tolist() and "2 files joined" in found.notes[-1]
    other = write(lab.dataset(lab.fields(7)), "member2.nc")
    members = read_run(f"{tmp_path}/whole.nc+{other}")
    assert members.values.shape == (2, 80, 4, 5)
    assert np.allclose(members.mean, (expected.values + lab.fields(7)) / 2, atol=1e-4)


@pytest.mark.parametrize("names", [("standard", "gregorian"), ("365_day", "noleap")])
def test_two_names_of_one_calendar_are_joined(names: tuple[str, str], write, lab) -> None:
    whole = lab.dataset(lab.fields(), calendar=names[0])
    files = []
    for i, (name, years) in enumerate(zip(names, (slice(0, 50), slice(50, None)))):
        part = whole.isel(time=years)
        part["time"].attrs["calendar"] = name
        files.append(str(write(part, f"{i}.nc")))
    found = read_run("+".join(files))
    assert found.years.tolist() == lab.YEARS.tolist()
    assert found.calendar == {"gregorian": "standard"}.get(names[1], names[1])


def test_what_does_not_fit_together_is_refused(write, lab, tmp_path) -> None:
    whole = lab.dataset(lab.fields())
    first = write(whole.isel(time=slice(0, 50)), "a.nc")
    cases = {
        "leave a gap": whole.isel(time=slice(52, None)),
        "overlap": whole.isel(time=slice(48, None)),
        "another grid": lab.dataset(lab.fields(), lab.LAT + 1).isel(time=slice(50, None)),
        "has the calendar": lab.dataset(lab.fields(), calendar="noleap").isel(time=slice(50, None)),
        "holds the same values": whole.isel(time=slice(0, 50)),
    }
    for message, data in cases.items():
        other = write(data, f"{message.replace(' ', '_')}.nc")
        with pytest.raises(DataError, match=message):
            read_run(f"{first}+{other}")
    with pytest.raises(DataError, match="no file matches"):
        read_run(f"{tmp_path}/none_*.nc")
    plus = write(whole, "a+b.nc")  # a name with the sign in it
    assert read_run(str(plus)).values.shape == (80, 4, 5)


def masked(lab, seed: int, rise: float) -> tuple[np.ndarray, np.ndarray]:
    values = lab.fields(seed, rise).copy()
    mask = np.ones((4, 5), bool)
    mask[:, 3:] = False
    mask[0, 0] = False
    values[:, ~mask] = np.nan
    return values, mask


def test_masked_cells_count_nowhere(write, lab) -> None:
    runs = []
    for seed, rise in ((1, 3.0), (2, 1.5)):
        values, mask = masked(lab, seed, rise)
        runs.append(read_run(str(write(lab.dataset(values), f"{seed}.nc"))))
        assert np.array_equal(runs[-1].mask, mask) and "9 of 20 cells" not in runs[-1].notes
    high, low = (make_scenario(run, (1900, 1919), 5) for run in runs)
    assert not high.weights[~mask].any() and high.weights.sum() == pytest.approx(1)
    chosen, known = inside(low.years, (1970, 1979)), np.arange(1900, 1940)
    columns = [values[:, 1:, :3] for values in (masked(lab, 1, 3.0)[0], masked(lab, 2, 1.5)[0])]
    # Cut out of the masked fields, columns 0-2 of rows 1-3 have all their values.
    cut = [
        make_scenario(
            read_run(str(write(lab.dataset(part, lab.LAT[1:], lab.LON[:3]), f"c{i}.nc"))),
            (1900, 1919),
            5,
        )
        for i, part in enumerate(columns)
    ]
    for name in BASELINES:
        guess = predict_baseline(name, [high], low, chosen, known)
        assert np.isfinite(guess).all()
    # The same area with the same weights gives the same scores.
    inner = np.zeros((4, 5), bool)
    inner[1:, :3] = True
    weights = np.where(inner, high.weights, 0)
    weights /= weights.sum()
    same = cut[0].weights / cut[0].weights.sum()
    guess = np.full((10, 4, 5), 1.0)
    scores = (
        spatial_rmse(guess, low.anomalies[chosen], weights),
        spatial_rmse(guess[:, 1:, :3], cut[1].anomalies[chosen], weights[1:, :3]),
    )
    assert scores[0] == pytest.approx(scores[1], abs=1e-6) and same.shape == (3, 3)
    floor = Noise(high.anomalies, None, weights, 10)
    cut_floor = Noise(cut[0].anomalies, None, weights[1:, :3], 10)
    assert floor.spatial == pytest.approx(cut_floor.spatial, abs=1e-6)


RCMIP = """Model,Scenario,Region,Variable,Unit,2020,2021,2022
M,low,World,Emissions|CO2,Mt CO2/yr,1,2,3
M,low,World,Emissions|CH4,Mt CH4/yr,4,5,6
M,low,R5ASIA,Emissions|CO2,Mt CO2/yr,0,0,0
M,high,World,Emissions|CO2,Mt CO2/yr,7,8,9
"""


def test_tables_of_scenario_databases(tmp_path) -> None:
    path = tmp_path / "rcmip.csv"
    path.write_text(RCMIP)
    years, values, names = read_series(f"{path}::low")
    assert years.tolist() == [2020, 2021, 2022] and names == ["Emissions|CO2", "Emissions|CH4"]
    assert values.tolist() == [[1, 4], [2, 5], [3, 6]]
    for text, message in ((path, "holds 2 scenarios"), (f"{path}::lwo", "did you mean 'low'")):
        with pytest.raises(DataError, match=message):
            read_series(text)


def test_years_between_are_filled_in_only_if_asked(tmp_path) -> None:
    yearly, decades = tmp_path / "y.csv", tmp_path / "d.csv"
    path = {year: max(0, year - 1950) * 0.03 for year in range(1860, 2101)}
    for file, step in ((yearly, 1), (decades, 10)):
        rows = [f"{year},{path[year]}" for year in range(1860, 2101, step)]
        file.write_text("\n".join(["year,regional_mean", *rows]))
    with pytest.raises(DataError, match=r"1860 and 1870 follow each other.*--interpolate"):
        read_series(decades)
    one, other = read_series(yearly), read_series(decades, interpolate=True)
    assert one[0].tolist() == other[0].tolist() and np.abs(one[1] - other[1]).max() < 1e-12
    yearly.write_text("year,x\n1900.5,1\n")
    with pytest.raises(DataError, match="whole numbers"):
        read_series(yearly)


@pytest.mark.parametrize(
    ("text", "canonical", "value"),
    [
        ("kg/m2/s", "kg m-2 s-1", 1.0),
        ("kg m**-2 s**-1", "kg m-2 s-1", 1.0),
        ("mm/day", "kg m-2 s-1", 1 / 86400),
        ("mm d**-1", "kg m-2 s-1", 1 / 86400),
        ("m/day", "kg m-2 s-1", 1000 / 86400),
        ("mm", "kg m-2", 1.0),
        ("inches", "kg m-2", 25.4),
    ],
)
def test_water_is_known_in_any_unit(text: str, canonical: str, value: float) -> None:
    assert unit_library.canonical(text, water=True) == canonical
    found = unit_library.convert(np.ones(1), text, canonical, water=True)
    assert found == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize("text", ["degrees C", "deg C", "DEG C", "Celsius", "°C", "C", "degC"])
def test_celsius_in_any_spelling(text: str) -> None:
    assert unit_library.canonical(text) == "K"
    assert unit_library.convert(np.zeros(1), text, "K") == pytest.approx(273.15)
    assert unit_library.convert(np.ones(1), text, "K", difference=True) == pytest.approx(1.0)


def test_differences_are_told_by_name_or_said(write, lab) -> None:
    for name in ("dtr", "diurnal_temperature_range", "tas_anomaly"):
        made = lab.dataset(np.full((3, 4, 5), 9.0), units="degC", name=name)
        made[name].attrs.pop("standard_name")
        assert (read_field(write(made, f"{name}.nc")).values == 9).all()
    made = lab.dataset(np.full((3, 4, 5), 9.0))
    with pytest.raises(DataError, match="say --anomalies"):
        read_field(write(made))
    assert (read_field(write(made, "b.nc"), difference=True).values == 9).all()


def test_months_of_rain_are_divided_by_their_own_days(write, lab) -> None:
    import cftime

    dates = [cftime.datetime(1900, month, 15, calendar="noleap") for month in range(1, 13)]
    times = cftime.date2num(dates, "days since 1850-01-01", "noleap")
    days = np.array([31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31], dtype=np.float32)
    values = np.ones((12, 4, 5), np.float32) * days[:, None, None]
    made = lab.dataset(values, calendar="noleap", times=times, units="mm/month", name="pr")
    made["pr"].attrs["standard_name"] = "precipitation_flux"
    found = read_field(write(made), units="mm/day")
    assert np.allclose(found.values, 1.0, atol=1e-6)


def test_rain_stays_positive_and_else_as_it_was(write, lab) -> None:
    climatology = np.array([[1.0, 2.0, 0.0]])
    scale = np.array([[1.0, 2.0, 0.01]])
    anomalies = np.array([[-0.5, -2.5, -1.0]])
    found = climatology + keep_positive(anomalies, climatology, scale)
    assert found[0, 0] == 0.5 and (found >= 0).all() and found[0, 1] < 0.1
    # Smooth at the knee.
    x = np.linspace(-0.95, -0.85, 1001)[:, None, None]
    y = keep_positive(x, np.ones((1, 1)), np.ones((1, 1)))[:, 0, 0]
    slopes = np.diff(y) / np.diff(x[:, 0, 0])
    assert np.abs(np.diff(slopes)).max() < 0.01 and (slopes > 0).all()
    rain = np.random.default_rng(0).gamma(0.6, 2.0, (80, 4, 5)).astype(np.float32)
    made = lab.dataset(rain, units="mm/day", name="pr")
    made["pr"].attrs["standard_name"] = "precipitation_flux"
    run = make_scenario(read_run(str(write(made))), (1900, 1919), 5)
    assert run.positive and run.climatology.mean() < 1e-4
    assert (run.climatology + run.admissible(run.anomalies - 1e-3) > -1e-15).all()


def test_zarr_without_empty_blocks(write, lab, tmp_path: Path) -> None:
    values = np.random.default_rng(0).gamma(0.6, 2.0, (80, 4, 5)).astype(np.float32)
    values[:20] = 0
    made = lab.dataset(values, units="mm/day", name="pr")
    made["pr"].attrs["standard_name"] = "precipitation_flux"
    how = {"pr": {"chunks": (20, 4, 5), "_FillValue": None}}
    path = write(made, "run.zarr", zarr_format=2, encoding=how)
    found = read_field(path, units="mm/day")
    assert (found.values[:20] == 0).all() and np.allclose(found.values, values, atol=1e-6)
    assert "1 of 4 chunks are not stored and read as 0" in found.notes


def test_scalar_coordinates_are_kept(write, lab) -> None:
    made = lab.dataset(lab.fields()).assign_coords(height=2.0)
    made["height"].attrs.update(units="m", standard_name="height", axis="Z", positive="up")
    (scalar,) = read_field(write(made)).scalars
    assert (scalar.name, scalar.value, scalar.attrs["positive"]) == ("height", 2.0, "up")


def test_other_quantities_are_not_joined_or_compared(write, lab) -> None:
    def run(name: str, part: slice, variable: str = "tas", **attrs: str) -> str:
        made = lab.dataset(lab.fields(), name=variable).isel(time=part)
        made[variable].attrs.update(attrs)
        return str(write(made, name))

    first = run("a.nc", slice(0, 40), cell_methods="area: time: mean")
    rest = slice(40, 80)
    for name, message, made in (
        (
            "b.nc",
            "surface_temperature, not air_temperature",
            {"standard_name": "surface_temperature"},
        ),
        ("c.nc", "a maximum of air_temperature, not a mean", {"cell_methods": "time: maximum"}),
        ("d.nc", "ts, not tas", {"standard_name": "", "variable": "ts"}),
        ("j.nc", "a difference of air_temperature, not a mean", {"long_name": "anomaly of tas"}),
    ):
        with pytest.raises(DataError, match=message):
            read_run(f"{first}+{run(name, rest, **made)}")
    for name, made in (
        ("e.nc", {"cell_methods": "time: mean (interval: 1 month)"}),
        ("f.nc", {"variable": "t2m"}),
        ("g.nc", {"standard_name": "unknown"}),
    ):
        assert len(read_run(f"{first}+{run(name, rest, **made)}").years) == 80
    whole = make_scenario(read_run(run("h.nc", slice(None))), (1900, 1919), 5)
    other = read_run(run("i.nc", slice(None), standard_name="surface_temperature"))
    with pytest.raises(DataError, match="surface_temperature, not air_temperature"):
        refuse_leak([whole], make_scenario(other, (1900, 1919), 5), (1970, 1979))


def test_yearly_sums_and_means_are_not_joined(write, lab) -> None:
    paths = []
    for index, methods in enumerate(("time: sum", "")):
        made = lab.dataset(lab.fields(), name="pr").isel(time=slice(40 * index, 40 * index + 40))
        made["pr"].attrs = {"units": "mm", "standard_name": "precipitation_amount"}
        made["pr"].attrs |= {"cell_methods": methods} if methods else {}
        paths.append(str(write(made, f"{index}.nc")))
    with pytest.raises(DataError, match=r"1.nc.* holds yearly means, not sums as .*0.nc"):
        read_run("+".join(paths))


def test_a_window_wider_than_the_run_is_told(write, lab) -> None:
    data = read_run(str(write(lab.dataset(lab.fields()))))
    told = make_scenario(data, (1900, 1919), 159)
    assert any("the predictor never changes" in note for note in told.field.notes)
    assert np.ptp(told.predictors) == 0
    usual = make_scenario(data, (1900, 1919), 31)
    assert usual.field.notes == data.notes and np.ptp(usual.predictors) > 0


@pytest.mark.parametrize("year", ["inf", "nan", "1e30", "2000.5"])
def test_what_is_no_year_is_named_with_its_line(tmp_path: Path, year: str) -> None:
    path = tmp_path / "co2.csv"
    path.write_text(f"year,co2\n\n1999,1\n{year},2\n")
    with pytest.raises(DataError, match="line 4: years must be whole numbers"):
        read_series(path)


def test_tables_without_what_is_needed_are_named(tmp_path: Path) -> None:
    path = tmp_path / "rcmip.csv"
    path.write_text("Model,Region,Variable,Unit,2000,2001\nm,World,co2,ppm,1,2\n")
    with pytest.raises(DataError, match=r"has no column 'Scenario' \(it has 'Model'"):
        read_series(path)
    path.write_text("year,co2\n2000,1\n2001\n")
    with pytest.raises(DataError, match="line 3: co2: '' is no number"):
        read_series(path)
