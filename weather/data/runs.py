"""A run from the archive's files: one, several that follow each other, and members."""

from __future__ import annotations

import glob
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from longseq.core.errors import DataError
from longseq.weather.data.cf import resolve
from longseq.weather.data.field import Field, Scalar, is_sum, kind_of_years
from longseq.weather.data.levels import other_level
from longseq.weather.data.quantities import other_quantity
from longseq.weather.data.seasons import WHOLE, IncompleteYears, Part
from longseq.weather.data.source import open_source
from longseq.weather.data.yearly import read_chain, read_years

SAME = "if they are the same, give both the same standard_name and cell_methods: ncatted -a"


def run_files(text: str) -> list[str]:
    """Returns the files of a run.

    Args:
        text: a path, a pattern such as ``tas_*.nc``, or several of both joined by ``+``, as
            ``tas_historical.nc+tas_ssp585.nc``. What exists under its whole name is taken as it is.

    Raises:
        DataError: for a pattern that no file matches.
    """
    found: list[str] = []
    parts = [text] if resolve(text).exists() else [part.strip() for part in text.split("+")]
    for part in parts:
        if not resolve(part).exists() and any(sign in part for sign in "*?["):
            names = sorted(glob.glob(part))
            if not names:
                raise DataError("no file matches the pattern", path=part)
            found += names
        else:
            found.append(part)
    return found


def read_run(
    text: str,
    variable: str | None = None,
    units: str | None = None,
    difference: bool | None = None,
    part: Part = WHOLE,
) -> Field:
    """Reads the yearly means of a run; its files are joined in time, record by record where they
    cut years, and those of the same years become members.

    Args:
        text: as in ``run_files``.
        variable: name or standard name; None if the files have one.
        units: to convert to; None for the canonical ones.
        difference: whether values are differences; None to tell by name and attributes.
        part: of every year; all of it by default.

    Raises:
        DataError: for files that do not fit together, and as ``read_years`` does.
    """
    files = run_files(text)
    how = (variable, units, difference, part)
    if len(files) == 1:
        return read_years(files[0], *how)
    try:
        _check_single(files, variable, units, difference)
        shortened = bool(part.months) or part.whole
        return _joined(text, [read_years(file, *how) for file in files], shortened)
    except IncompleteYears as error:
        return read_chain(text, files, *how, why=str(error))


def _check_single(files: Sequence[str], *how: Any) -> None:
    """Checks, before any value is read as one of a whole year, that files of one record each are
    not of months or days: without an interval a record says nothing of what it covers.

    Raises:
        IncompleteYears: where some are of other months of one year, or of more than two days.
    """
    found: dict[int, set[tuple[int, int]]] = {}
    for file in files:
        with open_source(file, *how) as source:
            if len(source.times.dates) > 1 or source.times.bounds is not None:
                return
            date = source.times.dates[0]
            own = found.setdefault(date.year, set())
            own.add((date.month, date.day))
            if len({month for month, _ in own}) > 1 or len(own) > 2:
                text = f"has one record, on {date}, and other files hold others of its year"
                raise IncompleteYears(text, path=file)


def _joined(text: str, parts: Sequence[Field], shortened: bool) -> Field:
    """Returns the years of several files as one field, ``shortened`` where years may be left out.

    Raises:
        IncompleteYears: where records of one file may complete those of another.
    """
    for part in parts[1:]:
        check_alike(parts[0], part)
        if part.calendar != parts[0].calendar:
            calendars = f"{part.calendar!r}, {parts[0].path} {parts[0].calendar!r}"
            raise DataError(f"has the calendar {calendars}", path=part.path)
    spans: dict[tuple[int, int], list[Field]] = {}
    for part in sorted(parts, key=lambda one: (one.years[0], one.years[-1])):
        spans.setdefault((int(part.years[0]), int(part.years[-1])), []).append(part)
    joined = _in_time([_members(group) for group in spans.values()], shortened)
    return replace(joined, path=text, notes=(*joined.notes, f"{len(parts)} files joined"))


def _members(group: Sequence[Field]) -> Field:
    """Returns files of the same years as members of one field."""
    if len(group) == 1:
        return group[0]
    # One record a year without intervals may be a month, of which other files hold the others.
    if any(one.time[0].month != group[0].time[0].month for one in group):
        text = f"has a record on {group[1].time[0]}, {group[0].path} on {group[0].time[0]}"
        raise IncompleteYears(text, path=group[1].path)
    parts = [one.values if one.values.ndim == 4 else one.values[None] for one in group]
    for index, part in enumerate(parts):
        for earlier in parts[:index]:
            if part.shape == earlier.shape and np.array_equal(part, earlier, equal_nan=True):
                raise DataError(f"holds the same values as {group[0].path}", path=group[index].path)
    return replace(group[0], values=np.concatenate(parts))


def _in_time(parts: Sequence[Field], shortened: bool) -> Field:
    """Returns fields one after the other, checked to leave no gap and not to overlap; a gap may be
    a winter or a year that lies in two files."""
    for one, other in itertools.pairwise(parts):
        step = int(other.years[0]) - int(one.years[-1])
        if step != 1:
            what = "overlap" if step < 1 else "leave a gap"
            text = f"its years {other.years[0]}-{other.years[-1]} and {one.years[0]}-"
            text += f"{one.years[-1]} of {one.path} {what}"
            raise (IncompleteYears if shortened and step > 1 else DataError)(text, path=other.path)
    if len(parts) == 1:
        return parts[0]
    members = [one.values.shape[0] if one.values.ndim == 4 else 1 for one in parts]
    if len(set(members)) > 1:
        counts = ", ".join(map(str, members))
        text = f"its parts have {counts} members: as many are needed in all"
        raise DataError(text, path=parts[0].path)
    edges = [one.bounds for one in parts]
    bounds = None if any(edge is None for edge in edges) else np.concatenate(edges)  # type: ignore[arg-type]
    return replace(
        parts[0],
        values=np.concatenate([one.values for one in parts], -3),
        time=np.concatenate([one.time for one in parts]),
        bounds=bounds,
        notes=tuple(dict.fromkeys(note for one in parts for note in one.notes)),
    )


def check_quantity(
    name: str, attrs: Mapping[str, Any], scalars: Sequence[Scalar], path: str, other: Field
) -> None:
    """Checks that a field is of a quantity that is known by its name and attributes.

    Args:
        name: of the quantity's variable.
        attrs: its attributes.
        scalars: its scalar coordinates.
        path: where it is, for the message.
        other: the field.

    Raises:
        DataError: if another standard name, method or level tells otherwise, or one has yearly sums
            and the other yearly means.
    """
    if differs := other_level(scalars, other.scalars):
        text, hint = f"holds {differs} as {path}", "take the same level of both"
        raise DataError(text, path=other.path, record=other.name, hint=hint)
    differs = other_quantity(name, attrs, other.name, other.attrs)
    if not differs and is_sum(attrs) != is_sum(other.attrs):
        differs = f"yearly {kind_of_years(other.attrs)}, not {kind_of_years(attrs)}"
    if differs:
        text = f"holds {differs} as {path}"
        raise DataError(text, path=other.path, record=other.name, hint=SAME)


def check_alike(one: Field, other: Field) -> None:
    """Checks that two fields are of one quantity, on one grid with one mask, in one unit.

    Raises:
        DataError: naming both files and what differs.
    """
    if not one.grid.same(other.grid):
        text = f"lies on another grid ({other.grid}) than {one.path} ({one.grid})"
        raise DataError(text, path=other.path, hint="regrid one of them")
    check_quantity(one.name, one.attrs, one.scalars, str(one.path), other)
    if one.units != other.units:
        raise DataError(f"is in {other.units}, {one.path} in {one.units}", path=other.path)
    first, second = (
        np.ones(data.shape, bool) if data.mask is None else data.mask for data in (one, other)
    )
    if not np.array_equal(first, second):
        text = f"has values in {int(second.sum()):,} cells, {one.path} in {int(first.sum()):,}"
        raise DataError(text, path=other.path, hint="mask them alike")


def check_history(first: int | None, years: np.ndarray, path: str) -> None:
    """Checks that a history begins no later than those of the training: a memory would take the
    missing years for years without change.

    Args:
        first: year in which the training runs begin; None if it is not known.
        years: of the history (T).
        path: its file, for messages.

    Raises:
        DataError: if it does.
    """
    if first is not None and years[0] > first:
        raise DataError(
            f"begins in {years[0]}, the training runs in {first}: the emulator needs the history",
            path=path,
            hint=f"put the years from {first} before it, as historical.nc+{Path(path).name}",
        )
