"""CF NetCDF and Zarr opened safely, and which variable of a file is the field."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from longseq.core.errors import DataError, did_you_mean
from longseq.core.files import require_file
from longseq.core.formats import Formats
from longseq.weather.data.axes import check_axes, why_none, with_axes
from longseq.weather.data.coords import is_rotated, kind_of, read_grid
from longseq.weather.data.curvilinear import read_curvilinear
from longseq.weather.data.grib import open_grib
from longseq.weather.data.grid import Grid
from longseq.weather.data.heaps import check_heaps
from longseq.weather.data.missing import check_packing
from longseq.weather.data.places import (
    check_places,
    curvilinear_of,
    is_projection,
    mapping_of,
    named_by,
)
from longseq.weather.data.rotated import with_places
from longseq.weather.data.samples import SAMPLES
from longseq.weather.data.texts import check_texts
from longseq.weather.data.zarr_store import check_codecs, is_zarr, zeros_are_values

SUFFIXES = (".nc", ".nc4", ".netcdf", ".cdf", ".zarr", ".grib", ".grb", ".grib2", ".grb2")


def resolve(path: str | Path) -> Path:
    """Returns the file of a path, or of a packaged sample's name.

    Args:
        path: file, Zarr store, or a name such as "A1B_north_america".
    """
    if str(path) in SAMPLES.files and not Path(path).exists():
        return SAMPLES.path(str(path))
    return Path(path)


FORMATS: Formats[Callable[[Path], Any]] = Formats("data set")
"""Fields in other formats: a reader takes the path and returns an xarray Dataset that follows the
CF conventions, its times undecoded (numbers, with units and calendar as attributes)."""


@contextmanager
def open_dataset(path: str | Path, variable: str | None = None) -> Iterator[Any]:
    """Yields an xarray data set, its times undecoded; NetCDF-3, NetCDF-4, Zarr or GRIB, without
    dask.

    Args:
        path: the file or Zarr store.
        variable: the one that is wanted, which GRIB files open by; None for all.

    Raises:
        DataError: if it is missing, empty, damaged or of another kind.
    """
    import xarray as xr

    file = resolve(path)
    if FORMATS.suffix_of(file):
        data = FORMATS.read(file, file)
        if not isinstance(data, xr.Dataset):
            what = type(data).__name__
            raise DataError(f"its reader returned {what}, not an xarray Dataset", path=file)
        try:
            yield with_places(with_axes(data, variable))
        finally:
            data.close()
        return
    if is_zarr(file):
        check_codecs(file)
        how: dict[str, Any] = {"engine": "zarr", "consolidated": False}
    else:
        if file.is_dir():
            hint = "give one .nc file or .zarr store"
            raise DataError("is a folder, and no Zarr store", path=file, hint=hint)
        how = {"engine": _engine(require_file(file, "NetCDF file", SAMPLES.names()))}
        if how["engine"] == "h5netcdf":
            check_heaps(file)
            check_texts(file)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if how["engine"] == "cfgrib":
                data = open_grib(file, variable)
            else:
                data = xr.open_dataset(file, decode_times=False, chunks=None, cache=False, **how)
            check_packing(data, variable, file)
            if how["engine"] == "zarr":
                data = zeros_are_values(data, file, how)
            data = with_places(with_axes(data, variable))
    except DataError:
        raise
    except Exception as error:  # of damaged files xarray and what it reads with may raise anything
        _check_attributes(file, variable, how)
        kind = "Zarr store" if is_zarr(file) else "NetCDF file"
        raise DataError(
            f"the {kind} is truncated or damaged", path=file, hint="copy it again"
        ) from error
    try:
        yield data
    except MemoryError as error:
        raise DataError("does not fit into memory, or its sizes are damaged", path=file) from error
    except (OSError, RuntimeError) as error:
        raise DataError("reading failed: the file is truncated or damaged", path=file) from error
    finally:
        data.close()


def _check_attributes(file: Path, variable: str | None, how: dict[str, Any]) -> None:
    """Checks attributes of a file that xarray cannot decode, where it can be read undecoded.

    Raises:
        DataError: for what packed values are scaled by, or names of coordinates that are no text.
    """
    import xarray as xr

    try:
        data = xr.open_dataset(file, decode_cf=False, chunks=None, cache=False, **how)
    except Exception:  # noqa: BLE001 - damaged indeed, which the caller says
        return
    with data:
        check_packing(data, variable, file)
        for name, array in data.variables.items():
            for key in ("coordinates", "bounds", "grid_mapping", "cell_measures"):
                value = array.attrs.get(key, "")
                if not isinstance(value, str):
                    found = np.asarray(value).tolist()
                    text = f"its attribute {key} is {found!r}, and must be one text"
                    hint = f"correct it: ncatted -a {key},{name},o,c,'NAMES' in"
                    raise DataError(text, path=file, record=str(name), hint=hint)


def _groups(path: str | Path) -> list[str]:
    """Returns the names of the groups of a NetCDF-4 file or a Zarr store."""
    import h5py

    file = resolve(path)
    if is_zarr(file):
        import zarr

        return sorted(zarr.open_group(str(file), mode="r").group_keys())
    if not file.is_file() or not h5py.is_hdf5(file):
        return []
    with h5py.File(file) as content:
        return [name for name, part in content.items() if isinstance(part, h5py.Group)]


def _engine(file: Path) -> str:
    with file.open("rb") as stream:
        head = stream.read(8)
    if head == b"\x89HDF\r\n\x1a\n":
        return "h5netcdf"
    if head[:4] in (b"CDF\x01", b"CDF\x02"):
        return "scipy"
    if head[:4] == b"CDF\x05":
        raise DataError(
            "is NetCDF-3 of the 64-bit data kind",
            path=file,
            hint="convert it: nccopy -k nc4 in out",
        )
    if head[:4] == b"GRIB":
        return "cfgrib"
    packed = {
        b"\x1f\x8b": "gzip",
        b"PK": "zip",
        b"BZ": "bzip2",
        b"\xfd7": "xz",
        b"\x28\xb5": "zstd",
    }
    if head[:2] in packed:
        text = f"is packed with {packed[head[:2]]}"
        raise DataError(text, path=file, hint="unpack it first")
    raise DataError("is not a NetCDF file", path=file, hint="give a CF NetCDF file or a Zarr store")


def kinds_of(variable: Any, data: Any) -> dict[str, str]:
    """Returns what each dimension of a variable is: kind → dimension."""
    found: dict[str, str] = {}
    names = curvilinear_of(variable, data)
    if names is not None:
        found["latitude"], found["longitude"] = map(str, data[names[0]].dims)
    for dim in variable.dims:
        attrs = dict(data[dim].attrs) if dim in data.variables else {}
        kind = kind_of(str(dim), attrs)
        if kind is not None and str(dim) not in found.values():
            found.setdefault(kind, str(dim))
    return found


def choose(data: Any, variable: str | None, path: str | Path) -> str:
    """Returns the name of the variable to read.

    Args:
        data: an xarray data set.
        variable: its name or standard name; None if the file has only one on a grid over time.
        path: file, for messages.

    Raises:
        DataError: for none, several, or one on other dimensions, saying on which.
    """
    fields = [
        str(name)
        for name in data.data_vars
        if {"time", "latitude", "longitude"} <= kinds_of(data[name], data).keys()
        and data[name].dtype.kind in "fiu"
        and _has_axes(data[name], data)
    ]
    if variable is not None:
        matching = [
            name
            for name in data.data_vars
            if variable
            in (data[name].attrs.get(key) for key in ("standard_name", "GRIB_shortName"))
        ]
        if variable in data.data_vars:
            matching = [variable]
        usable = [str(name) for name in matching if name in fields]
        if len(usable) > 1:
            text = f"has {len(usable)} variables {variable!r}: {', '.join(usable)}"
            raise DataError(text, path=path, hint="name one with --variable")
        matching = usable or matching
        if not matching:
            hint = did_you_mean(variable, fields or [str(name) for name in data.data_vars])
            raise DataError(f"has no variable {variable!r}", path=path, hint=hint)
        if str(matching[0]) not in fields:
            text = f"is on {_why_not(data[matching[0]], data)}"
            raise DataError(text, path=path, record=str(matching[0]))
        return str(matching[0])
    if not fields:
        edges = {str(data[name].attrs.get("bounds")) for name in data.variables}
        numbers = [
            array
            for name, array in data.data_vars.items()
            if array.dtype.kind in "fiu"
            and name not in edges
            and not str(name).endswith(("_bnds", "_bounds", "_vertices"))
        ]
        if not numbers:
            groups = _groups(path)
            if groups:
                text = f"has no variable at its root, but groups: {', '.join(groups)}"
                hint = f"take one out: ncks -G : -g {groups[0]} in.nc out.nc"
                if is_zarr(resolve(path)):
                    hint = f"give one of them: {Path(path) / groups[0]}"
                raise DataError(text, path=path, hint=hint)
            raise DataError("has no variable of numbers", path=path)
        first = max(numbers, key=lambda array: array.ndim)
        text = f"has no variable on time, latitude and longitude: {first.name} is on "
        raise DataError(text + _why_not(first, data), path=path)
    if len(fields) > 1:
        hint = "name one with --variable"
        raise DataError(f"has {len(fields)} variables: {', '.join(fields)}", path=path, hint=hint)
    return fields[0]


def _has_axes(array: Any, data: Any) -> bool:
    """Returns whether a variable on time, latitude and longitude has the coordinates of all."""
    kinds = kinds_of(array, data)
    if kinds["time"] not in data.variables:
        return False
    if curvilinear_of(array, data) is not None:
        return True
    axes = kinds["latitude"] in data.variables and kinds["longitude"] in data.variables
    return axes and not mapping_of(array, data)


def _why_not(array: Any, data: Any) -> str:
    """Returns the dimensions of a variable and what keeps them from being a grid over time."""
    dims = f"({', '.join(map(str, array.dims))})"
    named = [name for name in named_by(array) if name in data.variables]
    flat = [n for n in named if kind_of(n, dict(data[n].attrs)) in ("latitude", "longitude")]
    kinds = kinds_of(array, data)
    mapping = mapping_of(array, data)
    if curvilinear_of(array, data) is not None:
        lost = [kind for kind in ("time", "latitude", "longitude") if kind not in kinds]
        lacks = " and ".join(lost) or "a time coordinate"
        return f"{dims}, without {lacks}{why_none(array, data)}"
    if mapping == "healpix":
        return f"{dims}, a HEALPix grid (regrid it: cdo remapbil,r360x180 in out)"
    axes = [(dim, _attrs(data, dim)) for dim in map(str, array.dims)]
    if mapping or any(
        is_rotated(dim, attrs) or str(attrs.get("standard_name", "")).startswith("projection_")
        for dim, attrs in axes
    ):
        known = any(one.attrs.get("grid_mapping_name") for one in data.variables.values())
        return (
            f"{dims}, a rotated or projected grid without latitudes and longitudes of its cells "
            + (
                "(regrid it: cdo remapbil,r360x180 in out)"
                if known
                else "(add those of the model's grid file: ncks -A -v lat,lon grid.nc in)"
            )
        )
    if any(data[name].ndim > 1 for name in flat):
        return f"{dims}, and its latitudes and longitudes are not on two of these"
    points = [name for name in flat if name not in array.dims and data[name].ndim == 1]
    if any(data[name].dims[0] in array.dims for name in points):
        return f"{dims}, cells or points without rows and columns (regrid or grid them first)"
    lost = [dim for dim in array.dims if dim not in data.variables]
    missing = [kind for kind in ("time", "latitude", "longitude") if kind not in kinds]
    if missing:
        return f"{dims}, without {' and '.join(missing)}{why_none(array, data)}"
    return f"{dims}, and there is no coordinate variable {', '.join(map(str, lost))}"


def _attrs(data: Any, dim: str) -> dict[str, Any]:
    return dict(data[dim].attrs) if dim in data.variables else {}


def grid_of(data: Any, array: Any, path: str | Path) -> tuple[Grid, bool, np.ndarray, list[str]]:
    """Returns the grid of a variable, whether its rows are to be turned, the order of its columns,
    and what that changes.

    Args:
        data: an xarray data set.
        array: a variable of it that ``choose`` accepts.
        path: file, for messages.

    Raises:
        DataError: for wrong units, values, order or bounds.
    """
    check_axes(array, data, path)
    check_places(array, data, path)
    kinds, names = kinds_of(array, data), curvilinear_of(array, data)
    dims = kinds["latitude"], kinds["longitude"]
    if names is None:
        *read, notes = read_grid(data, *dims, path)
        others = [one for one in map(str, data.variables) if is_projection(data, one)]
        if others:
            notes.append(f"{others[0]} is not its map projection: {' and '.join(dims)} are true")
        return *read, notes
    grid, notes = read_curvilinear(data, array, names, dims, path)
    return grid, False, np.arange(grid.shape[1]), notes
