"""Yearly means of a file, and of files whose ends cut years: one a month, years from December."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from longseq.core.errors import DataError
from longseq.weather.data import quantities
from longseq.weather.data.attributes import accumulated
from longseq.weather.data.field import (
    Field,
    Scalar,
    is_sum,
    kind_of_years,
    summed,
    take_years,
    year_plan,
    yearly_axis,
)
from longseq.weather.data.levels import other_level
from longseq.weather.data.missing import Marks
from longseq.weather.data.seasons import WHOLE, Part
from longseq.weather.data.source import Source, open_source
from longseq.weather.data.times import Times


def read_years(
    path: str | Path,
    variable: str | None = None,
    units: str | None = None,
    difference: bool | None = None,
    part: Part = WHOLE,
) -> Field:
    """Reads yearly means, a block of records at a time: files may be larger than the memory.

    Args:
        path: as in ``read_field``.
        variable: likewise.
        units: likewise.
        difference: likewise.
        part: of every year; all of it by default.

    Raises:
        DataError: likewise, and for missing or incomplete years.
    """
    with open_source(path, variable, units, difference) as source:
        return years_of(source, str(path), part)


def years_of(source: Source, path: str, part: Part) -> Field:
    """Returns the yearly means of a source, which is read a block of records at a time.

    Args:
        source: whose values are not yet read.
        path: for messages.
        part: of every year.
    """
    times = source.times
    plan, _, notes = year_plan(times.dates, times.calendar, times.bounds, path, part)
    plan = summed(plan) if is_sum(source.attrs) else plan
    values = take_years(source.read, plan, source.shape)
    if not part.months and all(year.stop - year.start == 1 for year in plan):
        kept = slice(plan[0].start, plan[-1].stop)
        edges = None if times.bounds is None else times.bounds[kept]
        about = {"time": times.dates[kept], "bounds": edges}
        return source.field(values, notes=(*source.notes, *notes), **about)
    axis = yearly_axis(plan, times.calendar, source.notes, notes, part, kind_of_years(source.attrs))
    return source.field(values, **axis)


class _Records:
    """Records of several files that follow each other, read as those of one array.

    Args:
        files: in their order, with the number of their records.
        how: the remaining arguments of ``open_source``.
        first: of the files, opened; all records come turned as its own are.
    """

    def __init__(self, files: Sequence[tuple[str, int]], how: tuple[Any, ...], first: Source):
        self.files, self.how, self.attrs = files, how, first.array.attrs
        self.shape = (*first.array.shape[:-3], sum(count for _, count in files), *first.grid.shape)
        self.flipped, self.back = first.flipped, np.argsort(first.order)
        self.stack, self.open = ExitStack(), ("", first)

    def __getitem__(self, key: tuple[Any, ...]) -> _Block:
        wanted = range(self.shape[-3])[key[-3]]
        single = isinstance(wanted, int)
        chosen = range(wanted, wanted + 1) if isinstance(wanted, int) else wanted
        found, start = [], 0
        for file, count in self.files:
            low, high = max(chosen.start - start, 0), min(chosen.stop - start, count)
            if low < high:
                found.append(self._values(file, low, high))
            start += count
        values = np.concatenate(found, -3)
        return _Block(values[..., 0, :, :] if single else values)

    def _values(self, file: str, low: int, high: int) -> np.ndarray:
        if self.open[0] != file:
            self.stack.close()
            self.open = file, self.stack.enter_context(open_source(file, *self.how))
        source = self.open[1]
        values = source.raw(low, high)
        values = values[..., ::-1, :] if source.flipped != self.flipped else values
        return np.asarray(source.marks.apply(values[..., source.order][..., self.back]))


class _Block:
    """Values as xarray hands them out."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values


def read_chain(
    text: str,
    files: Sequence[str],
    variable: str | None = None,
    units: str | None = None,
    difference: bool | None = None,
    part: Part = WHOLE,
    why: str = "",
) -> Field:
    """Reads the yearly means of files that follow each other record by record.

    Args:
        text: how the run is called.
        files: in any order.
        variable: as in ``read_years``.
        units: likewise.
        difference: likewise.
        part: likewise.
        why: the files are joined record by record, for messages.

    Raises:
        DataError: for files that overlap or differ, and as ``read_years`` does.
    """
    how = (variable, units, difference)
    found: list[tuple[str, Times]] = []
    for file in files:
        with open_source(file, *how) as source:
            found.append((file, source.times))
    _check_calendars(found)
    found.sort(key=lambda one: (one[1].dates[0], one[1].dates[-1]))
    times = _in_order(found, why)
    with open_source(found[0][0], *how) as first:
        extremes, slack = dict.fromkeys(first.marks.extremes), first.marks.slack
        for file, _ in found[1:]:
            with open_source(file, *how) as other:
                _check_alike(first, other)
                extremes |= dict.fromkeys(other.marks.extremes)
                slack = max(slack, other.marks.slack)
        records = _Records([(file, len(own.dates)) for file, own in found], how, first)
        # Every file's own marks are applied as it is read; those of the first may be packed other.
        marks = Marks(slack=slack, extremes=tuple(extremes))
        notes = [*first.notes, f"{len(files)} files joined, record by record"]
        attrs = dict(first.attrs)
        if times.bounds is None and quantities.is_accumulated(first.name, attrs, first.units):
            notes += accumulated(attrs, times)
        about: dict[str, Any] = {
            "path": Path(text),
            "times": times,
            "notes": tuple(dict.fromkeys(notes)),
        }
        whole = replace(first, array=records, marks=marks, **about)
        with records.stack:
            return replace(years_of(whole, text, part), path=text)


def _check_calendars(found: Sequence[tuple[str, Times]]) -> None:
    """Checks that files have one calendar: dates of two cannot be put in order."""
    name, one = found[0]
    for file, other in found[1:]:
        if other.calendar != one.calendar:
            text = f"has the calendar {other.calendar!r}, {name} {one.calendar!r}"
            raise DataError(text, path=file)


def _in_order(found: Sequence[tuple[str, Times]], why: str) -> Times:
    """Returns the times of files one after the other, checked not to overlap."""
    name, one = found[0]
    for file, other in found[1:]:
        if other.dates[0] <= one.dates[-1]:
            text = f"begins on {other.dates[0]}, and {name} ends on {one.dates[-1]}"
            hint = "drop what overlaps; of several members, join each one's files: ncrcat in out"
            hint += f"; joined record by record, for {why}" if why else ""
            raise DataError(text, path=file, hint=hint)
        name, one = file, other
    edges = [own.bounds for _, own in found]
    kept = [edge for edge in edges if edge is not None]
    return Times(
        np.concatenate([own.dates for _, own in found]),
        one.calendar,
        np.concatenate(kept) if len(kept) == len(edges) else None,
    )


def _check_alike(one: Source, other: Source) -> None:
    """Checks that the records of two files are of one quantity, unit, level, grid and of as many
    members."""
    levels: tuple[Sequence[Scalar], ...] = (one.scalars, other.scalars)
    differs = other_level(*levels) or quantities.other_quantity(
        one.name, one.attrs, other.name, other.attrs
    )
    if differs:
        text = f"holds {differs} as {one.path}"
    elif not one.grid.same(other.grid):
        text = f"lies on another grid ({other.grid}) than {one.path} ({one.grid})"
    elif (one.source_units, one.difference) != (other.source_units, other.difference):
        text = f"is in {other.source_units}, {one.path} in {one.source_units}"
    elif one.array.shape[:-3] != other.array.shape[:-3]:
        text = f"has other members than {one.path}"
    else:
        return
    raise DataError(text, path=other.path, record=other.name)
