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
from longseq.weather.data.field import Scalar
from longseq.weather.data.grid import Grid

_EPOCH = "days since 1850-01-01 00:00:00"
_MISSING = np.float32(1e20)  # as CMIP has it


@dataclass(frozen=True)
class Variable:
    """A variable to write, on (time, latitude, longitude).

    Args:
        name: in the file.
        values: (T, Y, X); (M, T, Y, X) with realisations; (T) for a series.
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


def plain_provenance(model: str, inputs: Sequence[str | Path], command: str) -> dict[str, str]:
    """Returns the global attributes that say how a file was made, without a checkpoint.

    The date in ``history`` is that of SOURCE_DATE_EPOCH where it is set.

    Args:
        model: its name.
        inputs: files that it was made from.
        command: as it could be typed again.
    """
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    now = datetime.fromtimestamp(int(epoch), UTC) if epoch else datetime.now(UTC)
    return {
        "source": f"longseq {__version__}, statistical emulator ({model})",
        "history": f"{now:%Y-%m-%dT%H:%M:%SZ} {command}",
        "model": model,
        "longseq_version": __version__,
        "input_files": ", ".join(Path(file).name for file in inputs),
    }


def provenance(
    model: str, checkpoint: str | Path, inputs: Sequence[str | Path], command: str
) -> dict[str, str]:
    """Returns the global attributes that say how a checkpoint's prediction was made.

    Args:
        model: its name.
        checkpoint: file of the weights, whose SHA-256 is recorded.
        inputs: files that the prediction was made from.
        command: as it could be typed again.
    """
    return {
        **plain_provenance(model, inputs, command),
        "checkpoint": Path(checkpoint).name,
        "checkpoint_sha256": sha256(checkpoint),
    }


def to_dataset(
    variables: Sequence[Variable],
    time: np.ndarray,
    calendar: str,
    grid: Grid,
    attrs: Mapping[str, Any],
    bounds: np.ndarray | None = None,
    mask: np.ndarray | None = None,
    scalars: Sequence[Scalar] = (),
) -> Any:
    """Returns a CF xarray data set of yearly fields.

    Args:
        variables: to write.
        time: cftime dates (T), one per year.
        calendar: of the dates.
        grid: of the fields.
        attrs: global attributes.
        bounds: start and end of every year, cftime dates (T, 2); None where they are not known.
        mask: bool (Y, X), False in cells without values, which are written as missing.
        scalars: scalar coordinates.
    """
    import cftime
    import xarray as xr

    def number(dates: Any) -> np.ndarray:
        return np.asarray(cftime.date2num(dates, _EPOCH, calendar), dtype=np.float64)

    axes = {
        "lat": (grid.lat, grid.lat_bounds, "latitude", "Y", "degrees_north"),
        "lon": (grid.lon, grid.lon_bounds, "longitude", "X", "degrees_east"),
    }
    about = {"standard_name": "time", "axis": "T", "units": _EPOCH, "calendar": calendar}
    content: dict[str, Any] = {}
    if bounds is not None:
        about["bounds"] = "time_bnds"
        content["time_bnds"] = (("time", "bnds"), number(bounds))
    coords: dict[str, Any] = {"time": ("time", number(time), about)}
    flat = grid.lat.ndim == 1
    rows: tuple[str, ...] = ("lat", "lon") if flat else ("y", "x")
    for name, (centres, edges, standard, axis, units) in axes.items():
        own = {"standard_name": standard, "units": units, "bounds": f"{name}_bnds"}
        dims = (name,) if flat else rows
        if flat:
            own["axis"] = axis
        coords[name] = (dims, np.asarray(centres, dtype=np.float64), own)
        corners = "bnds" if flat else "vertices"
        content[f"{name}_bnds"] = ((*dims, corners), np.asarray(edges, dtype=np.float64))
    areas = getattr(grid, "areas", None)
    if areas is not None:
        about_area = {"standard_name": "cell_area", "units": "m2"}
        content["cell_area"] = (rows, areas, about_area)
    for scalar in scalars:
        coords[scalar.name] = ((), np.float64(scalar.value), dict(scalar.attrs))
    for variable in variables:
        own = {key: value for key, value in variable.attrs.items() if value not in (None, "")}
        values = np.asarray(variable.values, dtype=np.float32)
        if mask is not None and values.ndim > 1:
            values = np.where(mask, values, np.float32(np.nan))
        if areas is not None and values.ndim > 1:
            own["cell_measures"] = "area: cell_area"
        axes_of = {1: ("time",), 3: ("time", *rows), 4: ("realization", "time", *rows)}
        content[variable.name] = (axes_of[values.ndim], values, {**own, "units": variable.units})
        if values.ndim == 4:
            numbers = np.arange(1, len(values) + 1, dtype=np.int32)
            about_member = {"standard_name": "realization", "axis": "E", "units": "1"}
            coords["realization"] = ("realization", numbers, about_member)
    made = xr.Dataset(content, coords, {"Conventions": "CF-1.8", **attrs})
    for name in made.data_vars:
        if str(name).endswith("_bnds"):
            # Only fields have scalar coordinates; xarray would give them to bounds too.
            made[name].encoding["coordinates"] = None
    return made


def _as_characters(data: Any) -> Any:
    """Returns a data set whose texts are stored as characters (NC_CHAR), as CF has them, not as
    strings of variable length."""
    made = data.copy()
    for attrs in (made.attrs, *(made[name].attrs for name in made.variables)):
        for key, value in attrs.items():
            if isinstance(value, str) and value:
                attrs[key] = np.bytes_(value.encode())
    return made


def write_dataset(data: Any, path: str | Path) -> Path:
    """Writes a data set as NetCDF-4 (compressed) or Zarr; an earlier file stays whole until the new
    one is.

    Args:
        data: from ``to_dataset``.
        path: ending in .nc or .zarr.
    """
    target = check_output(path)
    names = [name for name in data.data_vars if not str(name).endswith("_bnds")]
    masked = [name for name in names if bool(np.isnan(data[name].values).any())]
    plain: dict[Any, Any] = {name: {"_FillValue": None} for name in data.variables}
    if target.suffix.lower() == ".nc":
        packed = {
            name: {
                "zlib": True,
                "complevel": 4,
                "shuffle": True,
                "_FillValue": _MISSING if name in masked else None,
            }
            for name in names
        }
        with atomic_path(target) as temporary:
            _as_characters(data).to_netcdf(
                temporary, engine="h5netcdf", encoding={**plain, **packed}
            )
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
