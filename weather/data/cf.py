"""CF NetCDF and Zarr in: opened safely, one variable, checked and brought to one convention."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from longseq.core.errors import ConfigError, DataError, did_you_mean
from longseq.core.files import require_file
from longseq.weather.data import units as unit_table
from longseq.weather.data.coords import check_latitude, check_longitude, decode_time, kind_of
from longseq.weather.data.field import Field
from longseq.weather.data.samples import SAMPLES

_KEPT = ("standard_name", "long_name", "cell_methods")
SUFFIXES = (".nc", ".nc4", ".netcdf", ".cdf", ".zarr")


def is_zarr(path: Path) -> bool:
    """Returns whether a folder is a Zarr store."""
    return path.is_dir() and any(
        (path / name).exists() for name in ("zarr.json", ".zgroup", ".zmetadata")
    )


def resolve(path: str | Path) -> Path:
    """Returns the file of a path, or of a packaged sample's name.

    Args:
        path: file, Zarr store, or a name such as "A1B_north_america".
    """
    if str(path) in SAMPLES.files and not Path(path).exists():
        return SAMPLES.path(str(path))
    return Path(path)


@contextmanager
def open_dataset(path: str | Path) -> Iterator[Any]:
    """Yields an xarray data set, its times undecoded; NetCDF-3, NetCDF-4 or Zarr, without dask.

    Args:
        path: the file or Zarr store.

    Raises:
        DataError: if it is missing, empty, damaged or of another kind.
    """
    import xarray as xr

    file = resolve(path)
    if is_zarr(file):
        how: dict[str, Any] = {"engine": "zarr", "consolidated": False}
    else:
        if file.is_dir():
            hint = "give one .nc file or .zarr store"
            raise DataError("is a folder, and no Zarr store", path=file, hint=hint)
        how = {"engine": _engine(require_file(file, "NetCDF file"))}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = xr.open_dataset(file, decode_times=False, chunks=None, cache=False, **how)
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        RuntimeError,
        AttributeError,
        IndexError,
    ) as error:
        kind = "Zarr store" if is_zarr(file) else "NetCDF file"
        raise DataError(
            f"the {kind} is truncated or damaged", path=file, hint="copy it again"
        ) from error
    try:
        yield data
    except (OSError, RuntimeError) as error:
        raise DataError("reading failed: the file is truncated or damaged", path=file) from error
    finally:
        data.close()


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
        raise DataError(
            "is GRIB", path=file, hint="convert it to NetCDF: cdo -f nc4 copy in.grib out.nc"
        )
    raise DataError("is not a NetCDF file", path=file, hint="give a CF NetCDF file or a Zarr store")


def _kinds(variable: Any, data: Any) -> dict[str, str]:
    """Returns what each dimension of a variable is: kind → dimension."""
    found: dict[str, str] = {}
    for dim in variable.dims:
        attrs = dict(data[dim].attrs) if dim in data.variables else {}
        kind = kind_of(str(dim), attrs)
        if kind is not None:
            found.setdefault(kind, str(dim))
    return found


def _choose(data: Any, variable: str | None, path: str | Path) -> str:
    """Returns the name of the variable to read."""
    fields = [
        str(name)
        for name in data.data_vars
        if {"time", "latitude", "longitude"} <= _kinds(data[name], data).keys()
        and data[name].dtype.kind in "fiu"
    ]
    if variable is not None:
        matching = [
            name for name in data.data_vars if data[name].attrs.get("standard_name") == variable
        ]
        if variable in data.data_vars:
            matching = [variable]
        if not matching:
            hint = did_you_mean(variable, fields or [str(name) for name in data.data_vars])
            raise DataError(f"has no variable {variable!r}", path=path, hint=hint)
        if str(matching[0]) not in fields:
            dims = ", ".join(map(str, data[matching[0]].dims))
            text = f"is on ({dims}), not on time, latitude and longitude"
            raise DataError(text, path=path, record=str(matching[0]))
        return str(matching[0])
    if not fields:
        names = ", ".join(map(str, data.data_vars)) or "none"
        text = f"has no variable on time, latitude and longitude (variables: {names})"
        raise DataError(text, path=path)
    if len(fields) > 1:
        hint = "name one with --variable"
        raise DataError(f"has {len(fields)} variables: {', '.join(fields)}", path=path, hint=hint)
    return fields[0]


def _is_difference(attrs: dict[str, Any]) -> bool:
    """Returns whether a temperature is a difference, so that degC → K takes no offset."""
    words = " ".join(
        str(attrs.get(key, "")) for key in ("standard_name", "units_metadata", "long_name")
    ).lower()
    methods = str(attrs.get("cell_methods", "")).lower()
    return (
        any(word in words for word in ("anomaly", "difference", "range"))
        or "range" in methods.split()
    )


def read_field(path: str | Path, variable: str | None = None, units: str | None = None) -> Field:
    """Reads a variable on (time, latitude, longitude) from CF NetCDF or Zarr.

    Latitudes are turned to run from south to north and longitudes to ascend in [0, 360), so files
    that differ in these conventions only give bit-identical values. Units are converted to
    ``units``, or to the canonical ones of the quantity (K, kg m-2 s-1, Pa, m s-1, 1).

    Args:
        path: file, Zarr store, or the name of a packaged sample.
        variable: its name or standard name; None if the file has only one.
        units: wanted; None for the canonical ones.

    Raises:
        DataError: for what the file lacks or has wrong, in one line.
    """
    file = resolve(path)
    with open_dataset(file) as data:
        name = _choose(data, variable, file)
        array = data[name]
        kinds = _kinds(array, data)
        array, members = _reduce(array, kinds, file)
        for kind in ("time", "latitude", "longitude"):
            if kinds[kind] not in data.variables:
                raise DataError("has no coordinate variable", path=file, record=kinds[kind])
        time_attrs = dict(data[kinds["time"]].attrs)
        dates, calendar = decode_time(data[kinds["time"]].values, time_attrs, file)
        lat, flipped = check_latitude(
            data[kinds["latitude"]].values, dict(data[kinds["latitude"]].attrs), file
        )
        raw_lon = np.asarray(data[kinds["longitude"]].values, dtype=np.float64)
        lon, order = check_longitude(raw_lon, dict(data[kinds["longitude"]].attrs), file)
        if is_zarr(file):
            _check_chunks(file, name)
        values = np.asarray(array.values)
        attrs = {
            key: _plain(array.attrs[key])
            for key in (*_KEPT, "units_metadata")
            if key in array.attrs
        }
        source = str(array.attrs.get("units", "")).strip()
    if flipped:
        values = values[..., ::-1, :]
    values = values[..., order]
    notes = ["latitude turned to run from south to north"] if flipped else []
    if raw_lon.min() < 0 or raw_lon.max() >= 360 or np.any(np.diff(order) < 0):
        notes.append("longitude turned to ascend in [0, 360)")
    _check_missing(values, dates, name, file)
    values, target, changed = _to_units(
        values, source, units, _is_difference({**attrs, "name": name}), name, file
    )
    if changed:
        notes.append(f"units converted from {source} to {target}")
    if members > 1:
        notes.append(f"{members} members")
    values = np.ascontiguousarray(values, dtype=np.float32)
    attrs.pop("units_metadata", None)
    return Field(values, dates, lat, lon, name, target, calendar, str(path), attrs, tuple(notes))


def _reduce(array: Any, kinds: dict[str, str], path: Path) -> tuple[Any, int]:
    """Drops dimensions of size 1 and orders the rest as (member,) time, latitude, longitude."""
    core = [kinds[kind] for kind in ("time", "latitude", "longitude")]
    member = kinds.get("member")
    others = [dim for dim in array.dims if dim not in core and dim != member]
    for dim in others:
        if array.sizes[dim] != 1:
            text = f"has {array.sizes[dim]} entries along {dim!r}"
            raise DataError(
                text, path=path, record=str(array.name), hint="select one of them beforehand"
            )
    array = array.squeeze(others, drop=True) if others else array
    if member is not None and array.sizes[member] == 1:
        array, member = array.squeeze(member, drop=True), None
    count = array.sizes[member] if member is not None else 1
    return array.transpose(*([member] if member is not None else []), *core), count


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else str(value)


def _check_chunks(path: Path, name: str) -> None:
    """Checks that no chunk of a Zarr array is absent, which would silently read as its fill
    value."""
    import zarr

    array: Any = zarr.open_group(str(path), mode="r")[name]
    there, needed = int(array.nchunks_initialized), int(array.nchunks)
    if there < needed:
        raise DataError(
            f"{needed - there} of its {needed} chunks are missing",
            path=path,
            record=name,
            hint="copy the store again",
        )


def _check_missing(values: np.ndarray, dates: np.ndarray, name: str, path: Path) -> None:
    if values.dtype.kind != "f":
        return
    bad = ~np.isfinite(values)
    if bad.any():
        records = bad.reshape(-1, *values.shape[-3:]).any(0).any((1, 2))
        first = dates[int(records.argmax())]
        share = f"{int(bad.sum()):,} of {values.size:,} values"
        text = f"{share} are missing or not finite, first on {first}"
        raise DataError(text, path=path, record=name, hint="fill or cut them beforehand")


def _to_units(
    values: np.ndarray, source: str, wanted: str | None, difference: bool, name: str, path: Path
) -> tuple[np.ndarray, str, bool]:
    """Returns the values in the wanted or canonical unit, its name, and whether they were
    changed."""
    if not source:
        raise DataError("has no units", path=path, record=name, hint="add the CF attribute units")
    known = unit_table.normal_form(source)
    if known is None:
        if wanted is not None and wanted != source:
            raise DataError(
                f"units {source!r} are unknown, {wanted!r} is needed", path=path, record=name
            )
        return values, source, False
    target = (
        unit_table.canonical(known)
        if wanted is None
        else (unit_table.normal_form(wanted) or wanted)
    )
    if target != known:
        try:
            values = unit_table.convert(values, known, target, difference)
        except ConfigError as error:
            raise DataError(f"units: {error}", path=path, record=name) from error
    bounds = unit_table.PLAUSIBLE.get(unit_table.family(known))
    if bounds is not None and not difference and values.size:
        low, high = (
            unit_table.convert(np.array(bound), unit_table.canonical(known), target)
            for bound in bounds
        )
        if values.min() < low or values.max() > high:
            text = (
                f"values from {values.min():.4g} to {values.max():.4g} {target} are no temperatures"
            )
            raise DataError(
                text, path=path, record=name, hint=f"its units say {source!r}: correct them"
            )
    return values, target, target != known
