"""What a variable says of itself beside its values: dimensions of one, scalars, units, blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from longseq.core.errors import ConfigError, DataError
from longseq.weather.data import quantities
from longseq.weather.data import units as unit_library
from longseq.weather.data.coords import kind_of
from longseq.weather.data.field import Scalar
from longseq.weather.data.times import Times


def reduce_dimensions(array: Any, kinds: dict[str, str], path: Path) -> Any:
    """Drops dimensions of size 1 and orders the rest as (member,) time, latitude, longitude."""
    core = [kinds[kind] for kind in ("time", "latitude", "longitude")]
    member = kinds.get("member")
    others = [dim for dim in array.dims if dim not in core and dim != member]
    for dim in others:
        if array.sizes[dim] != 1:
            text = f"has {array.sizes[dim]} entries along {dim!r}"
            hint = f"select one of them beforehand: ncks -d {dim},0 in out"
            if dim == "expver":  # ERA5 and its preliminary months, each missing where the other is
                hint = "join them: d.sel(expver=1).combine_first(d.sel(expver=5)) in xarray"
            raise DataError(text, path=path, record=str(array.name), hint=hint)
    array = array.squeeze(others) if others else array
    if member is not None and array.sizes[member] == 1:
        array, member = array.squeeze(member, drop=True), None
    return array.transpose(*([member] if member is not None else []), *core)


def scalars_of(data: Any, array: Any) -> tuple[Scalar, ...]:
    """Returns the scalar coordinates of a variable, those of dropped dimensions included."""
    text = str(array.attrs.get("coordinates", array.encoding.get("coordinates", "")))
    names = dict.fromkeys((*text.split(), *map(str, array.coords)))
    found = []
    for name in names:
        variable = array.coords[name] if name in array.coords else data.variables.get(name)
        if variable is None or variable.size != 1 or variable.dtype.kind not in "fiu":
            continue
        if name in array.dims or kind_of(name, dict(variable.attrs)) is not None:
            continue
        attrs = {
            key: plain_value(value) for key, value in variable.attrs.items() if key != "bounds"
        }
        found.append(Scalar(name, float(variable.values.item()), attrs))
    return tuple(found)


def bounds_of(data: Any, time: Any) -> tuple[np.ndarray | None, str]:
    """Returns the bounds (T, 2) that a time coordinate names, None without them, and their units
    where the file gives them units of their own.

    Args:
        data: an xarray data set.
        time: its coordinate.
    """
    name = str(time.attrs.get("bounds", time.encoding.get("bounds", "")))
    if name not in data.variables:
        return None, ""
    units = str(data[name].attrs.get("units", "")).strip()
    return data[name].values, units if " since " in units or " as %" in units else ""


def accumulated(attrs: dict[str, Any], times: Times) -> list[str]:
    """Marks amounts of intervals as sums over them in ``attrs``, as CF takes extensive quantities
    (section 7.3), and returns a note.

    Args:
        attrs: of the variable, changed in place.
        times: its times.
    """
    if times.bounds is not None:
        attrs["cell_methods"] = f"{attrs.get('cell_methods', '')} time: sum".strip()
        return ["amounts without cell_methods taken as sums over their intervals (time: sum)"]
    steps = np.diff(times.dates)
    if not len(steps) or np.median(steps).days >= 300:
        return []
    return [
        "amounts without cell_methods and time bounds: yearly means are taken of them, no sums "
        "(write cell_methods 'time: sum' for these)"
    ]


def plain_value(value: Any) -> Any:
    """Returns a number, or a text, bytes of Latin-1 in it as the signs they mean."""
    if isinstance(value, np.generic):
        return value.item()
    text = str(value)
    if any("\udc80" <= sign <= "\udcff" for sign in text):
        text = text.encode("utf-8", "surrogateescape").decode("latin-1")
    return text


def check_chunks(path: Path, name: str) -> list[str]:
    """Checks that no chunk of a Zarr array is absent that would silently read as missing.

    An absent chunk holds the array's fill value. Where that is a number and no mark of missing
    values, as zarr's default 0 is, blocks of nothing but it are not written, by design.
    """
    import zarr

    array: Any = zarr.open_group(str(path), mode="r")[name]
    there, needed = int(array.nchunks_initialized), int(array.nchunks)
    if there >= needed:
        return []
    # Without a fill value, as xarray makes arrays of format 2 that have no _FillValue, zarr leaves
    # out and reads blocks of zeros. xarray takes a fill value of format 2 for the mark itself.
    fill = 0 if array.fill_value is None else array.fill_value
    marked = any(mark in array.attrs for mark in ("_FillValue", "missing_value"))
    plain = np.isfinite(fill) and not marked
    if not plain:
        raise DataError(
            f"{needed - there} of its {needed} chunks are missing",
            path=path,
            record=name,
            hint="copy the store again",
        )
    return [f"{needed - there} of {needed} chunks are not stored and read as {fill:g}"]


def units_of(
    array: Any, wanted: str | None, water: bool, name: str, path: Path
) -> tuple[str, str, list[str]]:
    """Returns the unit of a file, the wanted or canonical one, and notes."""
    source = str(plain_value(array.attrs.get("units", ""))).strip()
    if "practical_salinity" in str(array.attrs.get("standard_name", "")) and (
        source.lower().startswith(("psu", "pss"))
    ):
        source = "1"  # as CF has it; without that name psu are g/kg
    if not source:
        if wanted is not None and unit_library.parse(wanted) is not None:
            return wanted, wanted, [f"has no units: taken to be in {wanted}, as --units says"]
        hint = "add the CF attribute units, or say --units"
        raise DataError("has no units", path=path, record=name, hint=hint)
    if unit_library.parse(source) is None:
        if wanted is not None and wanted != source:
            text = f"units {source!r} are unknown to UDUNITS, {wanted!r} is needed"
            raise DataError(text, path=path, record=name)
        return source, source, [f"units {source!r} are unknown to UDUNITS and kept"]
    if problem := quantities.quantity_problem(source, array.attrs, water):
        hint = "correct its units or its standard_name: ncatted -a units"
        raise DataError(problem, path=path, record=name, hint=hint)
    target = wanted if wanted is not None else unit_library.canonical(source, water)
    if unit_library.parse(target) is None:
        raise DataError(f"the unit {target!r} is unknown to UDUNITS", path=path, record=name)
    try:
        unit_library.convert(np.zeros(1), source, target, water=water)
    except ConfigError as error:
        raise DataError(f"units: {error}", path=path, record=name) from error
    if unit_library.parse(source) == unit_library.parse(target):
        return target, target, []
    return source, target, [f"units converted from {source} to {target}"]
