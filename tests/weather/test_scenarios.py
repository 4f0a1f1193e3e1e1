"""Tables of forcings to global warming to maps, and realisations of variability."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from longseq.core.shell.cli import main
from longseq.weather.energy_balance import EnergyBalance
from longseq.weather.variability import Variability
from longseq.weather.warming import ERF, FAIR, FAIR_PARTS, global_warming

YEARS = np.arange(1850, 2031)


def write_table(path: Path, variables: dict[str, np.ndarray], scenarios=("a", "b")) -> Path:
    with path.open("w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["Model", "Scenario", "Region", "Variable", "Unit", *YEARS])
        for number, scenario in enumerate(scenarios, 1):
            for name, values in variables.items():
                unit = "K" if "Temperature" in name else "W/m^2"
                rows.writerow(["M", scenario, "World", name, unit, *(number * values)])
                rows.writerow(["M", scenario, "World|Land", name, unit, *(9 * values)])
    return path


RISE = np.linspace(0, 3, len(YEARS))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A global run whose pattern has a mean of one, over the globe's own warming."""
    lat, lon = np.arange(-75, 76, 30.0), np.arange(0, 360, 60.0)
    level = EnergyBalance().temperatures(RISE)[:, 0]
    pattern = np.ones((6, 6)) + 0.5 * np.sin(np.deg2rad(lat))[:, None]
    noise = np.random.default_rng(0).standard_normal((len(YEARS), 6, 6))
    values = 280 + level[:, None, None] * pattern + 0.2 * noise
    attrs = {"units": "K", "standard_name": "air_temperature"}
    path = tmp_path_factory.mktemp("world") / "run.nc"
    xr.Dataset(
        {"tas": (("time", "lat", "lon"), values.astype("f4"), attrs)},
        {
            "time": YEARS,
            "lat": ("lat", lat, {"units": "degrees_north"}),
            "lon": ("lon", lon, {"units": "degrees_east"}),
        },
    ).to_netcdf(path, engine="h5netcdf")
    return str(path)


def _argv(table: Path, world: str, out: Path, *more: str) -> list[str]:
    argv = ["weather", "scenarios", str(table), "--train", world, "--out", str(out)]
    return [*argv, "--baseline", "1850-1879", "--period", "1990-2030", "--smooth", "11", *more]


def test_every_scenario_becomes_maps(world: str, tmp_path: Path, capsys) -> None:
    table = write_table(tmp_path / "erf.csv", {ERF: RISE})
    out = tmp_path / "out"
    assert main(_argv(table, world, out, "--members", "3")) == 0
    said = capsys.readouterr().out
    assert "[2/2]" in said and "three boxes of heat of typical size" in said
    boxes = EnergyBalance().temperatures(RISE)[:, 0]
    expected = boxes - boxes[:30].mean()
    for number, name in enumerate("ab", 1):
        made = xr.open_dataset(out / f"{name}.nc", engine="h5netcdf")
        assert made["time"].dt.year.values[[0, -1]].tolist() == [1990, 2030]
        np.testing.assert_allclose(made["global_warming"], number * expected[140:], atol=1e-5)
        weights = np.cos(np.deg2rad(made.lat))
        mean = made["tas_anomaly"].weighted(weights).mean(["lat", "lon"])
        np.testing.assert_allclose(mean, number * expected[140:], atol=0.06)
        members = made["tas_anomaly_realisation"]
        assert members.dims == ("realization", "time", "lat", "lon") and members.shape[0] == 3
        spread = float((members - made["tas_anomaly"]).std())
        assert spread == pytest.approx(0.2, rel=0.1)
    assert len((out / "warming.csv").read_text().splitlines()) == len(YEARS) + 1


def test_the_draws_of_scenarios_differ_and_a_seed_repeats_them(world: str, tmp_path: Path) -> None:
    table = write_table(tmp_path / "t.csv", {"Surface Air Temperature Change": 0 * RISE})
    found = []
    for run in ("one", "two"):
        assert main(_argv(table, world, tmp_path / run, "--members", "2", "--seed", "5")) == 0
        for name in "ab":
            made = xr.open_dataset(tmp_path / run / f"{name}.nc", engine="h5netcdf")
            found.append(made["tas_anomaly_realisation"].values)
    np.testing.assert_array_equal(found[0], found[2])
    assert np.abs(found[0] - found[1]).max() > 0.1


def test_warming_comes_from_the_parts_where_they_are_there(tmp_path: Path) -> None:
    parts = dict.fromkeys(FAIR_PARTS, RISE * 0.1)
    table = write_table(tmp_path / "parts.csv", {**parts, ERF: RISE})
    found = global_warming(table, "a")
    expected = FAIR.temperatures(RISE * 0.1 * sum(FAIR_PARTS.values()))[:, 0]
    np.testing.assert_allclose(found.values, expected, rtol=1e-9)
    assert "stands for FaIR" in found.how
    own = global_warming(table, "a", EnergyBalance())
    np.testing.assert_allclose(own.values, EnergyBalance().temperatures(RISE)[:, 0], rtol=1e-9)


def test_an_energy_balance_is_fitted_to_given_temperatures(world: str, tmp_path: Path) -> None:
    table = write_table(tmp_path / "erf.csv", {ERF: RISE})
    truth = EnergyBalance((6.0, 60.0), (1.0, 0.8))
    rows = zip(YEARS, truth.temperatures(RISE)[:, 0], truth.temperatures(2 * RISE)[:, 0])
    fitted = tmp_path / "gmt.csv"
    fitted.write_text("year,a,b\n" + "".join(f"{y},{a:.6f},{b:.6f}\n" for y, a, b in rows))
    out = tmp_path / "out"
    assert main(_argv(table, world, out, "--fit_to", str(fitted))) == 0
    made = np.genfromtxt(out / "warming.csv", delimiter=",", names=True)
    level = truth.temperatures(RISE)[:, 0]
    np.testing.assert_allclose(made["a"], level - level[:30].mean(), atol=2e-3)


@pytest.mark.parametrize(
    ("variables", "more", "text"),
    [
        ({"Emissions|CO2": RISE}, [], "emissions"),
        ({"Population": RISE}, [], "has neither Surface Air Temperature Change nor"),
        ({ERF: RISE}, ["--baseline", "1800-1850"], "lacks"),
        ({ERF: RISE}, ["--members", "-1"], "--members is at least 0"),
        ({ERF: np.where(YEARS == 1900, np.nan, RISE)}, [], "follow each other"),
    ],
)
def test_what_cannot_be_made_is_refused(
    variables, more: list[str], text: str, world: str, tmp_path: Path, capsys
) -> None:
    table = write_table(tmp_path / "t.csv", variables)
    assert main(_argv(table, world, tmp_path / "out", *more)) == 2
    assert text in capsys.readouterr().err


def test_a_region_is_no_globe(tmp_path: Path, capsys) -> None:
    table = write_table(tmp_path / "t.csv", {ERF: RISE})
    argv = ["weather", "scenarios", str(table), "--train", "A1B_north_america"]
    argv += ["--baseline", "1860-1889", "--out", str(tmp_path / "o")]
    assert main(argv) == 2
    assert "is a region: its mean is not the global warming" in capsys.readouterr().err


def test_realisations_have_the_variance_and_the_memory_that_were_fitted() -> None:
    rng, years = np.random.default_rng(3), 4000
    weights = np.full((3, 4), 1 / 12)
    score = np.zeros(years)
    for year in range(1, years):
        score[year] = 0.7 * score[year - 1] + np.sqrt(1 - 0.49) * rng.standard_normal()
    pattern = np.linspace(-1, 1, 12).reshape(3, 4)
    run = score[:, None, None] * pattern + 0.1 * rng.standard_normal((years, 3, 4))
    made = Variability.fit(run, weights, count=1)
    assert made.memory[0] == pytest.approx(0.7, abs=0.05)
    drawn = made.sample(20, 400, seed=1).astype(np.float64)
    np.testing.assert_allclose(drawn.var((0, 1)), run.var(0), rtol=0.15)
    lagged = (drawn[:, 1:] * drawn[:, :-1]).mean((0, 1))[0, 0] / drawn.var((0, 1))[0, 0]
    assert lagged == pytest.approx((run[1:] * run[:-1]).mean(0)[0, 0] / run.var(0)[0, 0], abs=0.06)
    assert Variability.fit(np.zeros((9, 3, 4)), weights).sample(2, 3).max() == 0
