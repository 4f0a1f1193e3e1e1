"""Fixtures of the weather tests: one thread, and small climate runs as NetCDF files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import cftime
import numpy as np
import pytest
import torch
import xarray as xr

YEARS = np.arange(1900, 1980)
LAT, LON = np.array([-30.0, 0.0, 15.0, 45.0]), np.array([10.0, 100.0, 200.0, 300.0, 350.0])


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


def fields(seed: int = 0, rise: float = 3.0, shared: int = 40) -> np.ndarray:
    """Returns yearly temperatures (T, Y, X): a pattern that grows after the shared years, and
    noise."""
    common, own = np.random.default_rng(99), np.random.default_rng(seed)
    pattern = 1 + 0.5 * np.sin(np.arange(20)).reshape(4, 5)
    noise = common.standard_normal((len(YEARS), 4, 5))
    noise[shared:] = own.standard_normal((len(YEARS) - shared, 4, 5))
    level = np.clip((YEARS - YEARS[shared]) / (YEARS[-1] - YEARS[shared]), 0, 1) * rise
    return (280 + level[:, None, None] * pattern + 0.1 * noise).astype(np.float32)


def dataset(
    values: np.ndarray,
    lat: np.ndarray = LAT,
    lon: np.ndarray = LON,
    calendar: str = "360_day",
    units: str = "K",
    times: np.ndarray | None = None,
    name: str = "tas",
) -> xr.Dataset:
    """Returns a CF data set, one record a year."""
    epoch = "days since 1850-01-01"
    if times is None:
        dates = [
            cftime.datetime(int(year), 6, 1, calendar=calendar) for year in YEARS[: len(values)]
        ]
        times = cftime.date2num(dates, epoch, calendar)
    return xr.Dataset(
        {
            name: (
                ("time", "lat", "lon"),
                values,
                {"standard_name": "air_temperature", "units": units},
            )
        },
        {
            "time": (
                "time",
                times,
                {"units": epoch, "calendar": calendar, "standard_name": "time"},
            ),
            "lat": ("lat", lat, {"units": "degrees_north", "standard_name": "latitude"}),
            "lon": ("lon", lon, {"units": "degrees_east", "standard_name": "longitude"}),
        },
        {"Conventions": "CF-1.8"},
    )


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Writes a data set as NetCDF or Zarr and returns its path."""

    def make(data: xr.Dataset, name: str = "run.nc", **kwargs) -> Path:
        path = tmp_path / name
        if path.suffix == ".zarr":
            data.to_zarr(path, consolidated=False, **kwargs)
        else:
            data.to_netcdf(path, engine=kwargs.pop("engine", "h5netcdf"), **kwargs)
        return path

    return make


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A training run and a test run that share their first 40 years."""
    folder = tmp_path_factory.mktemp("runs")
    paths = []
    for name, seed, rise in (("high", 1, 3.0), ("low", 2, 1.5)):
        dataset(fields(seed, rise)).to_netcdf(folder / f"{name}.nc", engine="h5netcdf")
        paths.append(str(folder / f"{name}.nc"))
    return paths[0], paths[1]


SPANS = [
    "--data.baseline=1900-1919",
    "--data.valid=1950-1955",
    "--data.period=1970-1979",
    "--data.smooth=5",
]


def fit_arguments(train: str, test: str | None = None, *more: str) -> list[str]:
    """Returns the arguments of a short training."""
    argv = ["weather", "fit", "--config", "emulator", f"--data.train=[{train}]", *SPANS]
    argv += [
        f"--data.test={test or 'null'}",
        "--model.height=4",
        "--model.width=5",
        "--model.d_model=8",
    ]
    argv += ["--model.n_layers=1", "--model.mixer_kwargs={d_state: 4}", "--trainer.max_steps=2"]
    return [*argv, "--trainer.val_check_interval=2", *more]


@pytest.fixture(scope="session")
def lab() -> SimpleNamespace:
    """What makes small climate runs."""
    return SimpleNamespace(
        fields=fields, dataset=dataset, fit=fit_arguments, YEARS=YEARS, LAT=LAT, LON=LON
    )
