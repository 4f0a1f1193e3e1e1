"""CF NetCDF and Zarr out: coordinates with bounds, provenance in global attributes, whole or not at
all."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from longseq.core import __version__
from longseq.core.errors import ConfigError, DataError
from longseq.core.files import atomic_path

_EPOCH = "days since 1850-01-01 00:00:00"


@dataclass(frozen=True)
class Variable:
    """A variable to write, on (time, latitude, longitude).

    Args:
        name: in the file.
        values: (T, Y, X).
        units: of the values.
        attrs: further CF attributes.
    """

    name: str
    values: np.ndarray
    units: str
    attrs: Mapping[str, Any]


def check_output(path: str | Path) -> Path:
    """Returns ``path`` if its suffix says NetCDF or Zarr.

    Raises:
        ConfigError: otherwise.
    """
    file = Path(path)
    if file.suffix.lower() not in (".nc", ".zarr"):
        raise ConfigError(f"{file}: the output must end in .nc or .zarr")
    return file


def sha256(path: str | Path) -> str:
    """Returns the SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def provenance(
    model: str, checkpoint: str | Path, inputs: Sequence[str | Path], command: str
) -> dict[str, str]:
    """Returns the global attributes that say how a prediction was made.

    The date in ``history`` is that of SOURCE_DATE_EPOCH where it is set.

    Args:
        model: its name.
        checkpoint: file of the weights, whose SHA-256 is recorded.
        inputs: files that the prediction was made from.
        command: as it could be typed again.
    """
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    now = datetime.fromtimestamp(int(epoch), UTC) if epoch else datetime.now(UTC)
    return {
        "source": f"longseq {__version__}, statistical emulator ({model})",
        "history": f"{now:%Y-%m-%dT%H:%M:%SZ} {command}",
        "model": model,
        "checkpoint": Path(checkpoint).name,
        "checkpoint_sha256": sha256(checkpoint),
        "longseq_version": __version__,
        "input_files": ", ".join(Path(file).name for file in inputs),
    }


def cell_bounds(centres: np.ndarray, low: float, high: float) -> np.ndarray:
    """Returns cell bounds (N, 2) halfway between centres."""
    if len(centres) == 1:
        return np.array([[low, high]])
    middle = (centres[1:] + centres[:-1]) / 2
    first, last = centres[0] - (middle[0] - centres[0]), centres[-1] + (centres[-1] - middle[-1])
    edges = np.concatenate([[first], middle, [last]])
    return np.stack([edges[:-1], edges[1:]], 1)


def to_dataset(
    variables: Sequence[Variable],
    time: np.ndarray,
    calendar: str,
    lat: np.ndarray,
    lon: np.ndarray,
    attrs: Mapping[str, Any],
) -> Any:
    """Returns a CF xarray data set of yearly fields.

    Args:
        variables: to write.
        time: cftime dates (T), one a year.
        calendar: of the dates.
        lat: degrees north (Y), ascending.
        lon: degrees east (X), ascending.
        attrs: global attributes.
    """
    import cftime
    import xarray as xr

    def number(dates: Any) -> np.ndarray:
        return np.asarray(cftime.date2num(dates, _EPOCH, calendar), dtype=np.float64)

    bounds = [
        [cftime.datetime(int(date.year) + shift, 1, 1, calendar=calendar) for shift in (0, 1)]
        for date in time
    ]
    lat_bounds = np.clip(cell_bounds(np.asarray(lat), -90.0, 90.0), -90.0, 90.0)
    coords = {
        "time": (
            "time",
            number(time),
            {
                "standard_name": "time",
                "axis": "T",
                "units": _EPOCH,
                "calendar": calendar,
                "bounds": "time_bnds",
            },
        ),
        "lat": (
            "lat",
            np.asarray(lat, dtype=np.float64),
            {
                "standard_name": "latitude",
                "axis": "Y",
                "units": "degrees_north",
                "bounds": "lat_bnds",
            },
        ),
        "lon": (
            "lon",
            np.asarray(lon, dtype=np.float64),
            {
                "standard_name": "longitude",
                "axis": "X",
                "units": "degrees_east",
                "bounds": "lon_bnds",
            },
        ),
    }
    content: dict[str, Any] = {
        "time_bnds": (("time", "bnds"), number(np.array(bounds, dtype=object))),
        "lat_bnds": (("lat", "bnds"), lat_bounds),
        "lon_bnds": (("lon", "bnds"), cell_bounds(np.asarray(lon), 0.0, 360.0)),
    }
    for variable in variables:
        own = {key: value for key, value in variable.attrs.items() if value not in (None, "")}
        values = np.asarray(variable.values, dtype=np.float32)
        content[variable.name] = (("time", "lat", "lon"), values, {**own, "units": variable.units})
    return xr.Dataset(content, coords, {"Conventions": "CF-1.8", **attrs})


def write_dataset(data: Any, path: str | Path) -> Path:
    """Writes a data set as NetCDF-4 (compressed) or Zarr; an earlier file stays whole until the new
    one is.

    Args:
        data: from ``to_dataset``.
        path: ending in .nc or .zarr.
    """
    target = check_output(path)
    names = [name for name in data.data_vars if not str(name).endswith("_bnds")]
    plain: dict[Any, Any] = {name: {"_FillValue": None} for name in data.variables}
    if target.suffix.lower() == ".nc":
        packed = {
            name: {"zlib": True, "complevel": 4, "shuffle": True, "_FillValue": None}
            for name in names
        }
        with atomic_path(target) as temporary:
            data.to_netcdf(temporary, engine="h5netcdf", encoding={**plain, **packed})
        return target
    if target.is_file():
        raise DataError("is a file, a folder for the Zarr store is needed", path=target)
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.stem}."))
    try:
        data.to_zarr(folder / "new", mode="w", consolidated=False)
        if target.exists():
            os.replace(target, folder / "old")
        os.replace(folder / "new", target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return target
