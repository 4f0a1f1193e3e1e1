"""One variable of a file, checked and brought to one convention, read whole or in blocks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from longseq.core.errors import ConfigError, DataError
from longseq.weather.data import quantities
from longseq.weather.data import units as unit_library
from longseq.weather.data.attributes import (
    accumulated,
    bounds_of,
    check_chunks,
    plain_value,
    reduce_dimensions,
    scalars_of,
    units_of,
)
from longseq.weather.data.cf import choose, grid_of, is_zarr, kinds_of, open_dataset, resolve
from longseq.weather.data.field import Field, Scalar
from longseq.weather.data.grid import Grid
from longseq.weather.data.missing import Marks, Suspects
from longseq.weather.data.times import Times, decode_time, period_days
from longseq.weather.data.zarr_store import is_damage

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
        marks: what counts as missing beside the declared fill values.
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
    marks: Marks
    notes: tuple[str, ...]
    finite: np.ndarray = field(default_factory=lambda: np.zeros(0))
    seen: int = 0
    first_gap: int | None = None
    least: float = np.inf
    most: float = -np.inf
    dropped: bool = False

    def __post_init__(self) -> None:
        about = self.name, self.array.attrs, self.source_units, self.difference
        self.suspects = Suspects(self.marks, *quantities.suspicions(*about))

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
        values = self.raw(start, stop)
        if self.flipped:
            values = values[..., ::-1, :]
        if not np.array_equal(self.order, np.arange(len(self.order))):
            values = values[..., self.order]
        found, values = values, self.marks.apply(values)
        self.dropped = self.dropped or values is not found
        self.suspects.see(values)
        self._count(values, start)
        if self.source_units != self.units:
            values = self._convert(values, start, stop)
        if values.size and not np.isnan(values).all():
            least, most = float(np.nanmin(values)), float(np.nanmax(values))
            self.least, self.most = min(self.least, least), max(self.most, most)
            self._check_plausible(least, most)
        return values

    def raw(self, start: int, stop: int) -> np.ndarray:
        """Returns records as they lie in the file.

        Args:
            start: the first record.
            stop: after the last.
        """
        try:
            return np.asarray(self.array[..., start:stop, :, :].values)
        except ValueError as error:
            if not is_damage(error):
                raise
            text = f"cannot be read: {error}"
            raise DataError(text, path=self.path, record=self.name) from error

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
            values = self.marks.apply(np.asarray(self.array[..., record, :, :].values))
            if not np.isfinite(values[..., inverse]).all():
                return f", first on {self.times.dates[record]}"
        return ""

    def _convert(self, values: np.ndarray, start: int, stop: int) -> np.ndarray:
        source = self.source_units
        if (rate := unit_library.per_period(source)) is not None:
            # What fell in a month is a sum over its own days, not over a twelfth of a year.
            days = period_days(self.times, rate[0], start, stop)
            if days is not None:
                values = np.asarray(values, dtype=np.float64) / days[:, None, None]
                source = rate[1]
        try:
            return unit_library.convert(values, source, self.units, self.difference, self.water)
        except ConfigError as error:
            raise DataError(f"units: {error}", path=self.path, record=self.name) from error

    def _check_plausible(self, least: float, most: float) -> None:
        limits = quantities.plausible(self.name, self.attrs, self.units, self.water)
        if self.difference or limits is None or (limits[0] <= least and most <= limits[1]):
            return
        self.suspects.check(self.path, self.name)
        kelvin = unit_library.canonical(self.units) == "K"
        remedy = "say --anomalies" if kelvin else "declare marks of missing values"
        raise DataError(
            f"values from {least:.4g} to {most:.4g} {self.units} are no {limits[2]}",
            path=self.path,
            record=self.name,
            hint=f"its units say {self.source_units!r}: correct them, or {remedy}",
        )

    def _check_faint(self) -> None:
        """Checks that the greatest value is not as small as one of another unit would be."""
        faint = quantities.faint(self.name, self.attrs, self.units, self.water)
        if self.difference or faint is None or not 0 < self.most <= faint[0]:
            return
        raise DataError(
            f"has no value above {self.most:.4g} {self.units}: {faint[1]}",
            path=self.path,
            record=self.name,
            hint=f"its units say {self.source_units!r}: correct them, or say --anomalies",
        )

    def _negatives(self) -> list[str]:
        """Returns a note where what cannot be negative is so, but for noise.

        Raises:
            DataError: where it is more than that.
        """
        if self.difference or self.least >= 0:
            return []
        if not quantities.is_positive(self.name, self.attrs):
            return []
        if -self.least > quantities.NOISE * max(self.most, 0.0):
            raise DataError(
                f"has values down to {self.least:.4g} ({self.units}), and it cannot be negative",
                path=self.path,
                record=self.name,
                hint="declare marks of missing values (ncatted -a missing_value), or say "
                "--anomalies",
            )
        return [f"negative values down to {self.least:.4g} ({self.units}) are kept"]

    def field(self, values: np.ndarray, **changed: Any) -> Field:
        """Returns the field of values that were read.

        Args:
            values: (…, T, Y, X).
            **changed: other values of ``Field`` than the file's.
        """
        times = self.times
        own: dict[str, Any] = {"time": times.dates, "bounds": times.bounds, "notes": self.notes}
        own |= changed
        members = values.shape[0] if values.ndim == 4 else 1
        notes = [*own.pop("notes"), *([f"{members} members"] if members > 1 else [])]
        self.suspects.check(self.path, self.name)
        self._check_faint()
        notes += self._negatives()
        if self.dropped:
            notes.append(f"values {self.marks} count as missing")
        if (mask := self.mask()) is not None:
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
    with open_dataset(file, variable) as data:
        name = choose(data, variable, file)
        kinds = kinds_of(data[name], data)
        array = reduce_dimensions(data[name], kinds, file)
        time = data[kinds["time"]]
        if "climatology" in time.attrs:
            raise DataError("is a climatology, not a run of years", path=file, record=name)
        times = decode_time(time.values, dict(time.attrs), file, *bounds_of(data, time))
        grid, flipped, order, notes = grid_of(data, data[name], file)
        notes += times.notes
        if is_zarr(file):
            notes += check_chunks(file, name)
        attrs = {key: plain_value(array.attrs[key]) for key in _KEPT if key in array.attrs}
        told = {**attrs, "units_metadata": array.attrs.get("units_metadata", "")}
        inferred = difference is None and quantities.is_difference(name, told)
        difference = inferred if difference is None else difference
        if quantities.is_direction(attrs, str(array.attrs.get("units", ""))):
            text = "is a direction, whose means over time and area are not those of its numbers"
            raise DataError(text, path=file, record=name, hint="take the components of the vector")
        water = quantities.is_water(name, array.attrs)
        found, target, more = units_of(array, units, water, name, file)
        more += quantities.per_day(array.attrs, target)
        if inferred and found != target and target == "K":
            more.append("without an offset: its name or attributes say differences or a spread")
        if quantities.is_accumulated(name, array.attrs, target):
            more += accumulated(attrs, times)
        made = Source(
            array,
            file,
            name,
            times,
            grid,
            flipped,
            order,
            attrs,
            scalars_of(data, array),
            target,
            found,
            difference,
            water,
            Marks.of(data[name], not is_zarr(file)),
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
