"""Yearly series: forcings or a regional mean, from tables, RCMIP and IIASA files, and NetCDF."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from longseq.core.errors import DataError, did_you_mean
from longseq.core.tables import SUFFIXES as TABLES
from longseq.core.tables import Row, read_rows
from longseq.weather.data.attributes import bounds_of
from longseq.weather.data.cf import grid_of, is_zarr, kinds_of, open_dataset, resolve
from longseq.weather.data.coords import kind_of
from longseq.weather.data.missing import Marks
from longseq.weather.data.times import decode_time

Table = dict[str, np.ndarray]
# Columns before the years in the wide layout of RCMIP and the IIASA databases.
_WIDE = ("model", "scenario", "region", "variable", "unit")
_WORLD = ("World", "world", "Global")
_LAST_YEAR = 10**9


def read_series(
    path: str | Path,
    names: Sequence[str] | None = None,
    interpolate: bool = False,
    gaps: bool = False,
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Reads yearly series: forcings, or a regional mean.

    Args:
        path: table (.csv, .tsv, .parquet) with a column ``year``; a table in the layout of RCMIP
            and IIASA, its scenario after two colons (``rcmip.csv::ssp126``); or NetCDF with
            variables on time, those on (time, latitude, longitude) averaged over the area.
        names: of the series to take, in order; None for all.
        interpolate: whether years between those of the file are filled in linearly.
        gaps: whether series may lack values, which are NaN.

    Returns:
        Years (T), values (T, K) and names (K).

    Raises:
        DataError: for missing columns, values or years, and unsorted years.
    """
    text, _, scenario = str(path).partition("::")
    file = resolve(text)
    table: Table
    if file.suffix.lower() in TABLES:
        years, table = _read_table(file, scenario)
    else:
        years, table = _read_netcdf(file)
    chosen = list(table) if names is None else list(names)
    for name in chosen:
        if name not in table:
            hint = f"call the column of it {name}" if file.suffix.lower() in TABLES else None
            text = f"has no series {name!r} (it has {', '.join(table) or 'none'})"
            raise DataError(text, path=path, hint=hint)
    if not chosen:
        raise DataError("has no series over time", path=path)
    values = np.stack([table[name] for name in chosen], 1)
    steps = np.diff(years)
    if np.any(steps <= 0):
        where = int(np.flatnonzero(steps <= 0)[0]) + 1
        raise DataError("years must ascend strictly", path=path, record=f"year {years[where]}")
    if np.any(steps > 1) and not interpolate:
        at = int(np.flatnonzero(steps > 1)[0])
        raise DataError(
            f"the years {years[at]} and {years[at + 1]} follow each other: one value a year is "
            f"needed",
            path=path,
            hint="--interpolate fills in the years between linearly",
        )
    for name, column in zip(chosen, values.T):
        Marks().of_one(column, path, name)  # NetCDF's own marks are no values any more
    if not gaps and not np.isfinite(values).all():
        row, column = np.argwhere(~np.isfinite(values))[0]
        raise DataError(f"{chosen[column]} is missing", path=path, record=f"year {years[row]}")
    if np.any(steps > 1):
        whole = np.arange(years[0], years[-1] + 1)
        values = np.stack([np.interp(whole, years, column) for column in values.T], 1)
        years = whole
    return years, values, chosen


def list_scenarios(path: str | Path) -> list[str]:
    """Returns the names of the scenarios of a table in the layout of RCMIP and IIASA.

    Raises:
        DataError: if it has another layout.
    """
    file = resolve(path)
    rows = read_rows(file)
    labels = _labels(file, rows)
    if not {"scenario", "variable", "region"} <= labels.keys():
        hint = "columns Scenario, Region, Variable and the years are needed"
        raise DataError("is no table of scenarios", path=file, hint=hint)
    return list(dict.fromkeys((row[labels["scenario"]] or "").strip() for row in rows))


def read_units(path: str | Path) -> dict[str, str]:
    """Returns variable → unit of a scenario of a table in the layout of RCMIP and IIASA, or of
    NetCDF; empty for other tables.

    Args:
        path: of the file, the scenario of a table after two colons.
    """
    text, _, scenario = str(path).partition("::")
    file = resolve(text)
    if file.suffix.lower() not in TABLES:
        with open_dataset(file) as data:
            return {
                str(name): str(array.attrs.get("units", "")).strip()
                for name, array in data.data_vars.items()
            }
    rows = read_rows(file)
    labels = _labels(file, rows)
    if not {"scenario", "variable", "region", "unit"} <= labels.keys():
        return {}
    scenario = scenario or rows[0][labels["scenario"]].strip()
    found = {}
    for row in rows:
        own, region, name, unit = (
            (row[labels[one]] or "").strip() for one in ("scenario", "region", "variable", "unit")
        )
        if own == scenario and region in _WORLD:  # other regions may have units of their own
            found[name] = unit
    return found


def _labels(file: Path, rows: Sequence[Row]) -> dict[str, str]:
    """Returns the columns of a table that are labels in the wide layout, by their names in lower
    case, and checks that no two are one label or one year."""
    found: dict[str, str] = {}
    for column in (name for name in (rows[0] if rows else {}) if name):
        key = str(int(column)) if column.isdecimal() else column.lower()
        if key in found and (key in _WIDE or column.isdecimal()):
            text = f"has two columns for one: {found[key]!r} and {column!r}"
            raise DataError(text, path=file, record="line 1", hint="rename or drop one")
        found[key] = column
    return {key: column for key, column in found.items() if key in _WIDE}


def _number(text: str | None, name: str, file: Path, line: int) -> float:
    try:
        if "_" in (text or ""):  # which Python reads over: 1_5 is no 15
            raise ValueError
        return float(text or "")
    except ValueError as error:
        where = f"line {line}"
        raise DataError(
            f"{name}: {(text or '')[:40]!r} is no number", path=file, record=where
        ) from error


def _read_table(file: Path, scenario: str) -> tuple[np.ndarray, Table]:
    rows = read_rows(file)
    columns = [name for name in rows[0] if name] if rows else []
    if {"variable", "region"} <= {name.lower() for name in columns}:
        return _read_wide(file, rows, scenario)
    if scenario:
        raise DataError(f"has no scenarios, {scenario!r} cannot be chosen", path=file)
    year = [name for name in columns if name.strip().lower() == "year"]
    if len(year) != 1:
        raise _no_year(file, rows, columns, year)
    table: dict[str, list[float]] = {name: [] for name in columns}
    for row in rows:
        for name in table:
            table[name].append(_number(row[name], name, file, row.line))
    numbers = np.array(table.pop(year[0]))
    wrong = (numbers != np.round(numbers)) | ~(np.abs(numbers) < _LAST_YEAR)
    if wrong.any():
        found, where = numbers[wrong][0], f"line {rows[int(wrong.argmax())].line}"
        raise DataError(f"years must be whole numbers, this is {found:g}", path=file, record=where)
    return numbers.astype(int), {name.strip(): np.array(own) for name, own in table.items()}


def _no_year(file: Path, rows: list[Row], columns: list[str], year: list[str]) -> DataError:
    """Returns what to say of a table that has no single column of years."""
    if not rows:
        return DataError("needs a column 'year' and rows below it", path=file)
    if year:
        return DataError(f"has several columns of years: {', '.join(year)}", path=file)
    hint = None
    if len(columns) == 1 and ";" in columns[0]:
        hint = "its cells are parted by semicolons: write commas, and points in numbers"
    text = f"has no column 'year' (it has {', '.join(map(repr, columns[:6]))})"
    return DataError(text, path=file, hint=hint)


def _read_wide(file: Path, rows: list[Row], scenario: str) -> tuple[np.ndarray, Table]:
    """Reads the layout of RCMIP and IIASA: a row per variable, a column per year."""
    labels = _labels(file, rows)
    if "scenario" not in labels:
        text = f"has no column 'Scenario' (it has {', '.join(map(repr, list(rows[0])[:6]))})"
        raise DataError(text, path=file)
    by_year = {int(name): name for name in rows[0] if name and name.isdecimal()}
    years = sorted(by_year)
    known = list(dict.fromkeys((row[labels["scenario"]] or "").strip() for row in rows))
    if not years:
        raise DataError("has no columns of years", path=file)
    if not scenario and len(known) > 1:
        hint = f"name one: {file.name}::{known[0]}"
        raise DataError(f"holds {len(known)} scenarios", path=file, hint=hint)
    scenario = scenario or known[0]
    if scenario not in known:
        hint = did_you_mean(scenario, known)
        raise DataError(f"has no scenario {scenario!r}", path=file, hint=hint)
    table: Table = {}
    for row in rows:
        own, region, name = (
            (row[labels[one]] or "").strip() for one in ("scenario", "region", "variable")
        )
        if own != scenario or region not in _WORLD:
            continue
        if name in table:
            text = f"{name} occurs twice for {scenario}, {region}"
            raise DataError(text, path=file, record=f"line {row.line}")
        texts = [row[by_year[year]] for year in years]
        table[name] = np.array(
            [_number(t, name, file, row.line) if t and t.strip() else np.nan for t in texts]
        )
    # Years that no variable has (a database's empty decades) are no years of the file.
    there = np.isfinite(np.stack(list(table.values()))).any(0) if table else np.zeros(0, bool)
    if not there.any():
        raise DataError(f"has no values of {scenario} for the World", path=file)
    return np.array(years)[there], {name: column[there] for name, column in table.items()}


def _read_netcdf(file: Path) -> tuple[np.ndarray, Table]:
    table: Table = {}
    with open_dataset(file) as data:
        times = [
            str(dim)
            for dim in data.dims
            if dim in data.variables and kind_of(str(dim), dict(data[dim].attrs)) == "time"
        ]
        if not times:
            raise DataError("has no time coordinate", path=file)
        time = data[times[0]]
        dates = decode_time(time.values, dict(time.attrs), file, *bounds_of(data, time)).dates
        named = {str(data[name].attrs.get("bounds")) for name in data.variables}
        for name, array in data.data_vars.items():
            own = times[0] in array.dims and array.dtype.kind in "fiu"
            if not own or str(name) in named or str(name).endswith("bnds"):
                continue
            if kind_of(str(name), dict(array.attrs)) is not None:  # further times
                continue
            marks = Marks.of(array, not is_zarr(file))
            values = marks.of_one(np.asarray(array.values, dtype=np.float64), file, str(name))
            kinds = kinds_of(array, data)
            if set(kinds) == {"time", "latitude", "longitude"} and array.ndim == 3:
                grid, flipped, order, _ = grid_of(data, array, file)
                field = array.transpose(kinds["time"], kinds["latitude"], kinds["longitude"])
                values = marks.of_one(np.asarray(field.values, dtype=np.float64), file, str(name))
                values = (values[:, ::-1] if flipped else values)[..., order]
                there = np.isfinite(values)
                mask = there.all(0)
                if not mask.any() or (there.any(0) & ~mask).any():
                    lost = int((~there).sum())
                    raise DataError(
                        f"{lost:,} of {there.size:,} values are missing, in some cells at some "
                        "times only",
                        path=file,
                        record=str(name),
                        hint="fill them, or mask these cells at all times",
                    )
                weights = grid.weights(mask=mask)
                values = np.einsum("tyx,yx->t", np.where(mask, values, 0.0), weights)
            elif array.ndim != 1:
                text = f"is on ({', '.join(map(str, array.dims))}): neither a series nor a field"
                hint = f"sum or average it to (time, latitude, longitude); or ncks -x -v {name}"
                raise DataError(text, path=file, record=str(name), hint=hint)
            table[str(name)] = values
    years = np.array([date.year for date in dates])
    if np.any(np.diff(years) == 0):
        raise DataError("has more than one record a year", path=file, hint="give yearly means")
    return years, table
