"""ClimateBench's layout and scores, beside xarray's own arithmetic."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from longseq.core.errors import ConfigError, DataError
from longseq.core.shell.cli import main
from longseq.weather.climatebench import (
    Archive,
    CO2PatternScaling,
    principal_components,
    read_inputs,
)
from longseq.weather.data.module import ScenarioData

LAT, LON = np.linspace(-90, 90, 6), np.arange(0, 360, 45.0)
SPANS = {"historical": (1980, 2014), "hist-GHG": (1980, 2014), "ssp126": (2015, 2100)}
SPANS |= {"ssp585": (2015, 2100), "ssp245": (2015, 2100)}
RISE = {"historical": 1, "hist-GHG": 0.7, "ssp126": 2, "ssp245": 3, "ssp585": 5}
OUTPUTS = {"tas": (1, "K"), "diurnal_temperature_range": (-0.1, "K"), "pr": (1e-6, "kg m-2 s-1")}


def write_archive(folder: Path, units: bool = True) -> Path:
    """Writes a small archive: members, whole-number years, anomalies, inputs without units."""
    folder.mkdir()
    pattern = 1 + 0.5 * np.sin(np.deg2rad(LAT))[:, None] + 0.2 * np.cos(np.deg2rad(LON))
    for seed, (name, (first, last)) in enumerate(SPANS.items()):
        rng, years = np.random.default_rng(seed), np.arange(first, last + 1)
        level = np.clip((years - 1980) / 120, 0, None) * RISE[name]
        content = {}
        for variable, (size, unit) in OUTPUTS.items():
            noise = 0.2 * rng.standard_normal((3, len(years), 6, 8))
            values = size * (level[:, None, None] * pattern + noise)
            dtype = np.float64 if variable == "pr" else np.float32
            attrs = {"units": unit} if units else {}
            content[variable] = (("member", "time", "lat", "lon"), values.astype(dtype), attrs)
        coords = {"member": [1, 2, 3], "time": years}
        coords |= {"lat": ("lat", LAT, {"units": "degrees_north"})}
        coords |= {"lon": ("lon", LON, {"units": "degrees_east"})}
        xr.Dataset(content, coords).to_netcdf(folder / f"outputs_{name}.nc", engine="h5netcdf")
        fields = np.abs(rng.standard_normal((2, len(years), 6, 8))) * level[:, None, None]
        grid = ("time", "latitude", "longitude")
        xr.Dataset(
            {
                "CO2": ("time", 300 * level),
                "CH4": ("time", 0.3 + 0.1 * level),
                "SO2": (grid, 1e-11 * fields[0]),
                "BC": (grid, 1e-12 * fields[1]),
            },
            {"time": years, "latitude": LAT, "longitude": LON},
        ).to_netcdf(folder / f"inputs_{name}.nc", engine="h5netcdf")
    return folder


def oracle(folder: Path, predictions: Path, variable: str, scale: float) -> list[float]:
    """Returns NRMSE s, g, t by xarray from the files alone."""
    truth = xr.open_dataset(folder / "outputs_ssp245.nc", engine="h5netcdf")[variable]
    truth = (scale * truth.astype("f8")).mean("member").sel(time=slice(2080, 2100))
    made = xr.open_dataset(predictions, engine="h5netcdf", decode_times=False)[variable]
    made = scale * made.astype("f8").assign_coords(time=truth.time.values)
    weights = np.cos(np.deg2rad(truth.lat))

    def mean(values: xr.DataArray) -> xr.DataArray:
        return values.weighted(weights).mean(["lat", "lon"])

    size = float(np.abs(mean(truth.mean("time"))))
    spatial = float(np.sqrt(mean((truth.mean("time") - made.mean("time")) ** 2))) / size
    whole = float(np.sqrt(((mean(truth) - mean(made)) ** 2).mean())) / size
    return [spatial, whole, spatial + 5 * whole]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_archive(tmp_path_factory.mktemp("cb") / "data")


def _compare(folder: Path, out: Path, *more: str) -> int:
    argv = ["weather", "compare", "--protocol", "climatebench", "--train", str(folder), *more]
    return main([*argv, "--folder", str(out), "--out", str(out / "t.csv")])


@pytest.mark.parametrize("units", [True, False])
def test_scores_are_those_of_xarray(units: bool, tmp_path: Path, capsys) -> None:
    folder = write_archive(tmp_path / "data", units)
    argv = ["--test", "ssp245", "--models", "lps,uniform,lagged,zero"]
    assert _compare(folder, tmp_path, *argv, "--predictions", str(tmp_path / "p")) == 0
    said = capsys.readouterr().out
    assert "ssp370, hist-aer are not there" in said and "total NRMSE" in said
    rows = list(csv.DictReader((tmp_path / "t.csv").open()))
    assert [row["variable"] for row in rows[::4]] == list(OUTPUTS)
    for row in rows:
        # ClimateBench has mm/day; relative errors do not depend on it.
        scale = 86400.0 if row["variable"] == "pr" else 1.0
        file = tmp_path / "p" / f"{row['variable']}_{row['model']}.nc"
        expected = oracle(folder, file, row["variable"], scale)
        found = [float(row[name]) for name in ("spatial", "global", "total")]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)


def test_the_emulator_is_trained_on_the_protocol(archive: Path, tmp_path: Path) -> None:
    argv = ["--test", "ssp245", "--variable", "tas", "--models", "lps,emulator"]
    argv += ["--seeds", "0,1", "--predictions", str(tmp_path / "p")]
    more = ["--trainer.max_steps=2", "--model.d_model=8", "--model.mixer_kwargs={d_state: 4}"]
    assert _compare(archive, tmp_path, *argv, *more) == 0
    rows = list(csv.DictReader((tmp_path / "t.csv").open()))
    assert [row["model"] for row in rows] == ["lps", "emulator", "emulator"]
    assert [row["seed"] for row in rows[1:]] == ["0", "1"]
    # Every seed has a file of its own.
    names = {"tas_lps.nc", "tas_emulator_seed0.nc", "tas_emulator_seed1.nc"}
    assert {path.name for path in (tmp_path / "p").iterdir()} == names
    assert np.isfinite(float(rows[1]["total"]))


def test_the_pattern_of_global_warming_has_a_mean_slope_of_one() -> None:
    rng = np.random.default_rng(0)
    weights = np.cos(np.deg2rad(LAT))[:, None] * np.ones(8)
    weights /= weights.sum()
    fields = rng.standard_normal((60, 6, 8)) + np.arange(60)[:, None, None] * 0.05
    warming = (fields * weights).sum((1, 2))
    model = CO2PatternScaling().fit(np.arange(60.0), warming, fields)
    assert float((model.pattern.slopes[0] * weights).sum()) == pytest.approx(1, abs=1e-12)
    assert float((model.pattern.intercept * weights).sum()) == pytest.approx(0, abs=1e-12)


def test_the_historical_years_count_once(archive: Path, tmp_path: Path) -> None:
    made = Archive(archive)
    assert made.train == ["ssp126", "ssp585", "hist-GHG"]
    predictors = made.write_predictors(tmp_path)
    data = ScenarioData(
        [made.run(name) for name in made.train],
        variable="tas",
        valid=None,
        forcing=[predictors[name] for name in made.train],
        anomalies=True,
    )
    assert [int(run.counted.sum()) for run in data.train_runs] == [121, 86, 35]
    assert [int(data.scored(run, "train").sum()) for run in data.train_runs] == [121, 86, 35]


def test_a_run_that_is_given_twice_is_refused(runs) -> None:
    data = ScenarioData([runs[0], runs[0]], valid=None, baseline="1900-1919")
    with pytest.raises(ConfigError, match="no year that the training runs before it lack"):
        _ = data.train_runs


def test_the_order_of_rows_and_columns_changes_nothing(archive: Path, tmp_path: Path) -> None:
    with xr.open_dataset(archive / "inputs_ssp585.nc", decode_times=False) as data:
        turned = data.isel(latitude=slice(None, None, -1)).roll(longitude=1, roll_coords=True)
        turned.to_netcdf(tmp_path / "turned.nc", engine="h5netcdf")
    one, other = read_inputs(archive / "inputs_ssp585.nc"), read_inputs(tmp_path / "turned.nc")
    assert all(np.array_equal(a, b) for a, b in zip(one.fields, other.fields))


def test_principal_components_have_unit_variance_and_span_the_fields(archive: Path) -> None:
    fields = np.concatenate(
        [read_inputs(archive / f"inputs_{name}.nc").fields[0] for name in ("historical", "ssp585")]
    )
    mean, axes = principal_components(fields, 5)
    scores = (fields - mean) @ axes
    np.testing.assert_allclose(scores.T @ scores / (len(fields) - 1), np.eye(5), atol=1e-12)
    u, _, _ = np.linalg.svd(fields - mean, full_matrices=False)
    expected = np.abs(u[:, :5]) * np.sqrt(len(fields) - 1)
    np.testing.assert_allclose(np.abs(scores), expected, atol=1e-9)
    assert principal_components(np.ones((4, 3)), 5)[1].shape == (3, 0)


@pytest.mark.parametrize(
    ("break_it", "argv", "text"),
    [
        (lambda f: (f / "inputs_ssp585.nc").unlink(), ["--test", "ssp245"], "no inputs_ssp585.nc"),
        (lambda f: None, ["ssp245", "--test", "ssp245"], "both trained on and scored"),
        (lambda f: None, ["--test", "ssp245", "--months", "JJA"], "--months is no option"),
        (lambda f: None, ["--test", "ssp119"], "has no inputs_ssp119.nc"),
        (lambda f: None, ["--test", "ssp245", "--variable", "huss"], "--variable: one of tas"),
    ],
)
def test_what_does_not_fit_is_refused(
    break_it: Callable[[Path], None], argv: list[str], text: str, tmp_path: Path, capsys
) -> None:
    folder = write_archive(tmp_path / "data")
    break_it(folder)
    assert _compare(folder, tmp_path, *argv, "--models", "lps") == 2
    assert text in capsys.readouterr().err


def test_inputs_in_other_units_are_refused(archive: Path, tmp_path: Path) -> None:
    def copy(folder: str, **units: str) -> Path:
        (tmp_path / folder).mkdir()
        for path in archive.glob("*.nc"):
            target = tmp_path / folder / path.name
            if path.name.startswith("inputs_"):
                with xr.open_dataset(path, engine="h5netcdf", decode_times=False) as data:
                    data["SO2"].attrs["units"] = units.get(path.stem, "kg m-2 s-1")
                    data.to_netcdf(target, engine="h5netcdf")
            else:
                target.symlink_to(path)
        return tmp_path / folder

    same = Archive(copy("same", inputs_ssp245="kg/m2/s"))
    assert "ssp245" in same.write_predictors(tmp_path / "p")
    with pytest.raises(DataError, match=r"inputs_ssp245.nc: SO2: is in g m-2 s-1"):
        Archive(copy("other", inputs_ssp245="g m-2 s-1")).write_predictors(tmp_path / "q")
