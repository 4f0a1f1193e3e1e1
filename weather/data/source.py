"""One variable of a file, checked and brought to one convention, read whole or in blocks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from longseq.core.errors import ConfigError, DataError
from longseq.weather.data import units as unit_library
from longseq.weather.data.cf import choose, is_zarr, kinds_of, open_dataset, resolve
from longseq.weather.data.coords import kind_of, read_grid
from longseq.weather.data.field import Field, Scalar, take_years, year_plan, yearly_axis
from longseq.weather.data.grid import Grid
from longseq.weather.data.times import Times, decode_time, interval_days

_KEPT = ("standard_name", "long_name", "cell_methods")


@dataclass
class Source:
    """A variable of an open file.

    Args:
        array: an xarray array on ((member,) time, latitude, longitude).
        path: its file.
        name: of the variable.
        times: decoded.
        grid: its cells.
        flipped: whether the file's rows run from north to south.
        order: of the file's columns.
        attrs: CF attributes to keep.
        scalars: scalar coordinates.
        units: of what ``read`` returns.
        source_units: of the file.
        difference: whether values are differences.
        water: whether the quantity is water.
        notes: what is changed on reading.
    """

    array: Any
    path: Path
    name: str
    times: Times
    grid: Grid
    flipped: bool
    order: np.ndarray
    attrs: dict[str, Any]
    scalars: tuple[Scalar, ...]
    units: str
    source_units: str
    difference: bool
    water: bool
    notes: tuple[str, ...]
    finite: np.ndarray = field(default_factory=lambda: np.zeros(0))
    seen: int = 0
    first_gap: int | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one record ((M,) Y, X)."""
        members = self.array.shape[:-3]
        return (*members, *self.grid.shape)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Returns records (…, t, Y, X) in one convention and in ``units``; counts missing values.

        Args:
            start: the first record.
            stop: after the last.
        """
        values = np.asarray(self.array[..., start:stop, :, :].values)
        if self.flipped:
            values = values[..., ::-1, :]
        if not np.array_equal(self.order, np.arange(len(self.order))):
            values = values[..., self.order]
        self._count(values, start)
        if self.source_units != self.units:
            values = self._convert(values, start, stop)
        if not self.difference and self.units in unit_library.PLAUSIBLE:
            self._check_plausible(values)
        return values

    def _count(self, values: np.ndarray, start: int) -> None:
        """Counts the finite values of every cell, and notes the first record with a new gap."""
        if not self.finite.size:
            self.finite = np.zeros(self.grid.shape, dtype=np.int64)
        if values.dtype.kind != "f":
            self.finite += int(np.prod(values.shape[:-2]))
        else:
            if np.isinf(values).any():
                raise DataError("has infinite values", path=self.path, record=self.name)
            self.finite += np.isfinite(values).sum(tuple(range(values.ndim - 2)))
        self.seen += int(np.prod(values.shape[:-2]))
        if self.first_gap is None and bool(((self.finite > 0) & (self.finite < self.seen)).any()):
            self.first_gap = start

    def mask(self) -> np.ndarray | None:
        """Returns which cells have values, from all that was read; None if all have.

        Raises:
            DataError: if a cell has values at some times only.
        """
        if (self.finite == self.seen).all():
            return None
        some = (self.finite > 0) & (self.finite < self.seen)
        if some.any() or not self.finite.any():
            lost = int((self.seen - self.finite).sum())
            share = f"{lost:,} of {self.seen * self.finite.size:,} values are missing"
            cells = int(some.sum()) or self.finite.size
            at = self._first_missing(some)
            raise DataError(
                f"{share}, in {cells:,} cells at some times only{at}",
                path=self.path,
                record=self.name,
                hint="fill them, or mask these cells at all times",
            )
        return self.finite > 0

    def _first_missing(self, some: np.ndarray) -> str:
        """Returns the first date at which a cell lacks what it has at other times."""
        if self.first_gap is None or not some.any():
            return ""
        rows = np.arange(self.grid.shape[0])[:: -1 if self.flipped else 1]
        inverse = np.empty_like(some)
        inverse[np.ix_(rows, self.order)] = some
        for record in range(len(self.times.dates)):
            values = np.asarray(self.array[..., record, :, :].values)
            if not np.isfinite(values[..., inverse]).all():
                return f", first on {self.times.dates[record]}"
        return ""

    def _convert(self, values: np.ndarray, start: int, stop: int) -> np.ndarray:
        source = self.source_units
        if source.lower().endswith(("/month", " month-1", "/mon")):
            # What fell in a month is a sum over its own days, not over a twelfth of a year.
            days = self._month_days(start, stop)
            if days is not None:
                values = np.asarray(values, dtype=np.float64) / days[:, None, None]
                source = re.sub(r"(/mon(th)?| month-1)$", "/day", source, flags=re.I)
        try:
            return unit_library.convert(values, source, self.units, self.difference, self.water)
        except ConfigError as error:
            raise DataError(f"units: {error}", path=self.path, record=self.name) from error

    def _month_days(self, start: int, stop: int) -> np.ndarray | None:
        """Returns the days of records that are single months; None if they are not."""
        if self.times.bounds is not None:
            days = interval_days(self.times.bounds[start:stop])
            return days if np.all((days > 27) & (days < 32)) else None
        dates = self.times.dates
        months = np.array([date.year * 12 + date.month for date in dates])
        if len(dates) > 1 and np.all(np.diff(months) == 1):
            return np.array([float(date.daysinmonth) for date in dates[start:stop]])
        return None

    def _check_plausible(self, values: np.ndarray) -> None:
        low, high = unit_library.PLAUSIBLE[self.units]
        if not values.size or np.isnan(values).all():
            return
        least, most = float(np.nanmin(values)), float(np.nanmax(values))
        if least < low or most > high:
            text = f"values from {least:.4g} to {most:.4g} {self.units} are no temperatures"
            raise DataError(
                text,
                path=self.path,
                record=self.name,
                hint=f"its units say {self.source_units!r}: correct them, or say --anomalies",
            )

    def field(self, values: np.ndarray, **changed: Any) -> Field:
        """Returns the field of values that were read.

        Args:
            values: (…, T, Y, X).
            **changed: other values of ``Field`` than the file's.
        """
        own: dict[str, Any] = {
            "time": self.times.dates,
            "bounds": self.times.bounds,
            "notes": self.notes,
            **changed,
        }
        members = values.shape[0] if values.ndim == 4 else 1
        notes = [*own.pop("notes"), *([f"{members} members"] if members > 1 else [])]
        mask = self.mask()
        if mask is not None:
            lost = int((~mask).sum())
            notes.append(f"{lost:,} of {mask.size:,} cells have no values and are left out")
        return Field(
            np.ascontiguousarray(values, dtype=np.float32),
            grid=self.grid,
            name=self.name,
            units=self.units,
            calendar=self.times.calendar,
            path=str(self.path),
            attrs=self.attrs,
            mask=mask,
            scalars=self.scalars,
            notes=tuple(notes),
            **own,
        )


@contextmanager
def open_source(
    path: str | Path,
    variable: str | None = None,
    units: str | None = None,
    difference: bool | None = None,
) -> Iterator[Source]:
    """Yields a variable of a file, its coordinates and units checked, its values not yet read.

    Args:
        path: file, Zarr store, or the name of a packaged sample.
        variable: its name or standard name; None if the file has only one.
        units: wanted; None for the canonical ones of the quantity.
        difference: whether values are differences (anomalies, ranges); None to tell by name and
            attributes.

    Raises:
        DataError: for what the file lacks or has wrong, in one line.
    """
    file = resolve(path)
    with open_dataset(file) as data:
        name = choose(data, variable, file)
        kinds = kinds_of(data[name], data)
        array = _reduce(data[name], kinds, file)
        time = data[kinds["time"]]
        if "climatology" in time.attrs:
            raise DataError("is a climatology, not a run of years", path=file, record=name)
        bounds = str(time.attrs.get("bounds", ""))
        edges = data[bounds].values if bounds in data.variables else None
        times = decode_time(time.values, dict(time.attrs), file, edges)
        grid, flipped, order, notes = read_grid(data, kinds["latitude"], kinds["longitude"], file)
        notes += times.notes
        if is_zarr(file):
            notes += _check_chunks(file, name)
        attrs = {key: _plain(array.attrs[key]) for key in _KEPT if key in array.attrs}
        told = {**attrs, "units_metadata": array.attrs.get("units_metadata", "")}
        if difference is None:
            difference = unit_library.is_difference(name, told)
        water = unit_library.is_water(name, attrs)
        found, target, more = _units(array, units, water, name, file)
        made = Source(
            array,
            file,
            name,
            times,
            grid,
            flipped,
            order,
            attrs,
            _scalars(data, array),
            target,
            found,
            difference,
            water,
            tuple(notes + more),
        )
        made.path = Path(str(path))
        yield made


def read_field(
    path: str | Path,
    variable: str | None = None,
    units: str | None = None,
    difference: bool | None = None,
) -> Field:
    """Reads a variable on (time, latitude, longitude) from CF NetCDF or Zarr.

    Latitudes are turned to run from south to north and longitudes to ascend without a jump, so
    files that differ in these conventions only give bit-identical values. Units are converted to
    ``units``, or to the canonical ones of the quantity (K, kg m-2 s-1, Pa, m s-1, 1).

    Args:
        path: file, Zarr store, or the name of a packaged sample.
        variable: its name or standard name; None if the file has only one.
        units: wanted; None for the canonical ones.
        difference: whether values are differences; None to tell by name and attributes.

    Raises:
        DataError: for what the file lacks or has wrong, in one line.
    """
    with open_source(path, variable, units, difference) as source:
        return source.field(source.read(0, len(source.times.dates)))


def read_years(
    path: str | Path,
    variable: str | None = None,
    units: str | None = None,
    difference: bool | None = None,
) -> Field:
    """Reads yearly means, a block of records at a time: files may be larger than the memory.

    Args:
        path: as in ``read_field``.
        variable: likewise.
        units: likewise.
        difference: likewise.

    Raises:
        DataError: likewise, and for missing or incomplete years.
    """
    with open_source(path, variable, units, difference) as source:
        times = source.times
        plan, _, notes = year_plan(times.dates, times.calendar, times.bounds, str(path))
        values = take_years(source.read, plan, source.shape)
        if all(year.stop - year.start == 1 for year in plan):
            return source.field(values, notes=(*source.notes, *notes))
        return source.field(values, **yearly_axis(plan, times.calendar, source.notes, notes))


def _reduce(array: Any, kinds: dict[str, str], path: Path) -> Any:
    """Drops dimensions of size 1 and orders the rest as (member,) time, latitude, longitude."""
    core = [kinds[kind] for kind in ("time", "latitude", "longitude")]
    member = kinds.get("member")
    others = [dim for dim in array.dims if dim not in core and dim != member]
    for dim in others:
        if array.sizes[dim] != 1:
            text = f"has {array.sizes[dim]} entries along {dim!r}"
            hint = "select one of them beforehand"
            raise DataError(text, path=path, record=str(array.name), hint=hint)
    array = array.squeeze(others) if others else array
    if member is not None and array.sizes[member] == 1:
        array, member = array.squeeze(member, drop=True), None
    return array.transpose(*([member] if member is not None else []), *core)


def _scalars(data: Any, array: Any) -> tuple[Scalar, ...]:
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
        attrs = {key: _plain(value) for key, value in variable.attrs.items() if key != "bounds"}
        found.append(Scalar(name, float(variable.values.item()), attrs))
    return tuple(found)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else str(value)


def _check_chunks(path: Path, name: str) -> list[str]:
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


def _units(
    array: Any, wanted: str | None, water: bool, name: str, path: Path
) -> tuple[str, str, list[str]]:
    """Returns the unit of a file, the wanted or canonical one, and notes."""
    source = str(array.attrs.get("units", "")).strip()
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
