"""Long and wide frames from CSV, Parquet or memory, to a panel: column roles, gaps, resampling."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from longseq.core.errors import ConfigError, DataError
from longseq.core.files import require_file
from longseq.core.formats import Formats
from longseq.core.tables import DELIMITERS
from longseq.timeseries.data.columns import named_columns, numbers, refuse_names, resample
from longseq.timeseries.data.covariates import (
    Covariates,
    check_columns,
    holiday_values,
    static_values,
)
from longseq.timeseries.data.panel import Panel
from longseq.timeseries.data.roles import (
    ID_NAMES,
    TARGET_NAMES,
    Missing,
    Roles,
    find_roles,
    with_index,
)
from longseq.timeseries.data.samples import SAMPLES
from longseq.timeseries.data.source import Source
from longseq.timeseries.data.text import give_back, read_numbers, read_text
from longseq.timeseries.data.times import check_order, parse_times, regular_axis
from longseq.timeseries.frame_types import to_pandas

_CELLS = 400_000_000  # float64 values of a panel: 3.2 GB

__all__ = ["Missing", "Panel", "Roles", "panel_of", "read_frame", "read_panel", "refuse_missing"]


def read_panel(path: str | Path, missing: Missing = "ffill", roles: Roles | None = None) -> Panel:
    """Reads a frame; the layout is told by its columns, or by ``roles``.

    - long: columns ``unique_id``, ``ds``, ``y`` (or ``item_id``, ``timestamp``, ``target``), rows
      in order of time within a series; series may begin and end where they like;
    - wide: a time column (``ds``, ``date``, ``datetime``, ``timestamp``, ``time``) and one column
      a series;
    - ``.txt`` or ``.txt.gz``: comma-separated numbers without header or times; ``ds`` is then 0, 1,
      2, …

    Args:
        path: ``.csv``, ``.tsv``, ``.parquet``, ``.feather`` or ``.txt``; ``.gz`` may follow
            text; or the name of a packaged sample, ``electricity_demand``.
        missing: see ``Roles``, where ``roles`` are not given.
        roles: of the columns.

    Raises:
        DataError: naming the file, the record and what is wrong.
    """
    packaged = str(path) in SAMPLES.names() and not Path(path).exists()
    named = SAMPLES.path(str(path)) if packaged else path
    file = require_file(named, "time-series file", SAMPLES.names())
    told = roles or Roles(missing=missing)
    frame, first_line = read_frame(file, told.id)
    give_back()
    return panel_of(frame, first_line, source=file, roles=told)


def panel_of(
    frame: pd.DataFrame,
    first_line: int = 2,
    *,
    source: str | Path,
    missing: Missing = "ffill",
    roles: Roles | None = None,
) -> Panel:
    """Checks a frame and returns its series; for readers of other formats.

    Args:
        frame: long or wide, see ``read_panel``.
        first_line: of the file that the first row stands in, for messages.
        source: the file, for messages.
        missing: see ``Roles``, where ``roles`` are not given.
        roles: of the columns.

    Raises:
        DataError: naming the file, the record and what is wrong.
    """
    told, where = roles or Roles(missing=missing), Source(Path(source), first_line)
    where.european = bool(frame.attrs.get("european"))  # of a file with semicolons
    if frame.empty:
        raise where.error("has a header but no rows")
    if frame.columns.nlevels > 1:
        count = frame.columns.nlevels
        raise where.error(f"its columns have {count} names each", hint="leave one: droplevel(…)")
    frame = with_index(frame, told, where)
    frame = frame.rename(columns=str)
    if len(set(frame.columns)) < frame.shape[1]:
        raise where.error("two columns have the same name")
    id_, time, target = find_roles(frame, told, where)
    for kind in ("future", "past", "static"):
        check_columns(getattr(told, kind), frame.columns, where, kind)
    taken = [name for name in (id_, time, target) if name is not None]
    for name in told.covariates:
        if (*taken, *told.covariates).count(name) > 1:
            raise where.error(f"the column {name!r} has two roles")
    if id_ is not None and target is not None:
        return _from_long(frame, id_, time, target, told, where)
    return _from_wide(frame, time, target, told, where)


_UNPACK = "unpack it, or pack it by gzip: .csv.gz"
_SHEET = "save its sheet as CSV in UTF-8; in Python give the frame of pandas.read_excel"
_LINES = "write it as Parquet: pandas.read_json(…, lines=True, dtype=False).to_parquet(…)"
_OTHER = {
    **dict.fromkeys((".zip", ".bz2", ".xz", ".zst", ".7z"), _UNPACK),
    **dict.fromkeys((".xlsx", ".xls", ".xlsm", ".xlsb", ".ods"), _SHEET),
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), _LINES),
}

FORMATS: Formats[Callable[[Path], pd.DataFrame]] = Formats("table")
"""Tables of other formats: a reader takes the file and returns a data frame, long or wide."""


def read_frame(file: Path, id_: str | None = None) -> tuple[pd.DataFrame, int]:
    """Returns the table of a file and the line number of its first record (0 for Parquet and
    Feather, which have no lines).

    Args:
        file: CSV, TSV, Parquet, Feather, or of a format that is registered.
        id_: column with the series' names, where it is not called as usual.

    Raises:
        DataError: if it cannot be read.
    """
    if FORMATS.suffix_of(file):
        frame = FORMATS.read(file, file)
        try:
            return to_pandas(frame)[0], 0
        except ConfigError as error:
            what = type(frame).__name__
            text = f"its reader returned {what}, not a frame of pandas or polars"
            raise DataError(text, path=file) from error
    suffixes = [text for text in file.suffixes if text.lower() != ".gz"]
    kind = suffixes[-1].lower() if suffixes else ""
    try:
        if kind in (".parquet", ".pq"):
            return pd.read_parquet(file), 0
        if kind in (".feather", ".arrow"):
            return pd.read_feather(file), 0
        if kind in DELIMITERS:
            usual = ID_NAMES if id_ is None else (id_.lower(),)
            return read_text(file, DELIMITERS[kind], usual), 2
        if kind == ".txt":
            return read_numbers(file), 1
    except DataError:  # which is a ValueError, and says it all
        raise
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        text = "the compressed file is truncated or damaged"
        if "Not a gzipped file" in str(error):
            text = "is not packed by gzip, as its name says: leave .gz out of its name"
        raise DataError(text, path=file) from error
    except (
        pd.errors.ParserError,
        pd.errors.EmptyDataError,
        UnicodeDecodeError,
        ValueError,
        OSError,
        KeyError,
        TypeError,
        AttributeError,
        NotImplementedError,
        OverflowError,
        MemoryError,
        RecursionError,
    ) as error:
        text = " ".join(str(error).split())
        raise DataError(f"cannot be read as {kind or 'a table'}: {text}", path=file) from error
    raise DataError(
        f"is of unknown type {kind or '(no suffix)'}",
        path=file,
        hint=_OTHER.get(kind)
        or "give .csv, .tsv, .parquet, .feather or .txt; a reader of your own needs "
        "--import its_module",
    )


def _from_long(
    frame: pd.DataFrame, id_: str, time: str | None, target: str, told: Roles, where: Source
) -> Panel:
    assert time is not None
    empty = frame[id_].isna().to_numpy()
    if empty.any():
        raise where.error(f"{id_!r} is empty", int(np.flatnonzero(empty)[0]))
    codes, names = pd.factorize(frame[id_])
    twice = pd.Index(names.astype(str)).duplicated()
    if twice.any():  # 1 and "1", in a frame in memory
        at = int(np.flatnonzero(twice[codes])[0])
        text = f"{id_!r} is {frame[id_].iloc[at]!r}, and a series before it is called likewise"
        raise where.error(text, at, "make all names texts, or all of them numbers")
    kept = {name: numbers(frame[name], name, where) for name in (target, *told.future, *told.past)}
    ds = parse_times(frame[time], where, told.zone, codes, told.date_order)
    static: dict[str, np.ndarray] = {}
    for name in told.static:
        static |= static_values(frame, name, codes, where)
    unused = [n for n in frame.columns if n not in (id_, time, target, *told.covariates)]
    if unused:
        where.notes.append(f"columns not used: {', '.join(unused)}")
    return _assemble(
        ds, codes, pd.Index(names.astype(str)), kept.pop(target), kept, static, told, where
    )


def _from_wide(
    frame: pd.DataFrame, time: str | None, target: str | None, told: Roles, where: Source
) -> Panel:
    if told.static:
        raise where.error("static covariates need a long frame: a column with the series' names")
    if time is None:
        ds, series = pd.Index(np.arange(len(frame))), frame
    else:
        ds = parse_times(frame[time], where, told.zone, order=told.date_order)
        series = frame.drop(columns=time)
    series = series.drop(columns=list(told.covariates))
    if target is None:
        series = named_columns(series, where)
    if target is None or told.target is None:
        others = series if target is None else series.drop(columns=target)
        refuse_names(others, [name for name in TARGET_NAMES if name in frame], where)
    if target is not None:
        unused = [name for name in series.columns if name != target]
        series = series[[target]]
        if unused:
            where.notes.append(f"the series is {target}; columns not used: {', '.join(unused)}")
    elif told.id is None and where.first_line != 1 and series.shape[1] > 1:
        shown = ", ".join(series.columns[:6]) + (" …" if series.shape[1] > 6 else "")
        where.notes.append(f"every column is a series: {shown} (or name one by --target)")
    if series.shape[1] == 0:
        raise where.error("has times but no series")
    names = pd.Index(series.columns)
    # A covariate of a wide frame is that of every series.
    count = len(names)
    beside = {name: numbers(frame[name], name, where) for name in (*told.future, *told.past)}
    if told.resample is not None:
        columns = [numbers(series[name], name, where) for name in names]
        codes, rows = np.repeat(np.arange(count), len(frame)), np.arange(len(frame))
        times = ds[np.tile(rows, count)]
        beside = {name: np.tile(value, count) for name, value in beside.items()}
        return _assemble(times, codes, names, np.concatenate(columns), beside, {}, told, where)
    check_order(ds, np.zeros(len(frame), np.int64), pd.Index(["all"]), where)
    axis, freq = regular_axis(ds, where)
    at = axis.get_indexer(ds)
    table = _empty(axis, names, where)
    for i, name in enumerate(names):
        table[at, i] = numbers(series[name], name, where)
    tables = {}
    for name, value in beside.items():
        tables[name] = _empty(axis, names, where)
        tables[name][at] = value[:, None]
    return _panel(table, tables, {}, names, axis, freq, told, where)


def _assemble(
    ds: pd.Index,
    codes: np.ndarray,
    names: pd.Index,
    values: np.ndarray,
    beside: dict[str, np.ndarray],
    static: dict[str, np.ndarray],
    told: Roles,
    where: Source,
) -> Panel:
    """Makes a panel of values by time and series.

    Args:
        ds: time of every value.
        codes: number of the series of every value.
        names: of the series.
        values: NaN where missing.
        beside: covariates, likewise.
        static: by series.
        told: for missing values and resampling.
        where: the frame.
    """
    columns = {"": values, **beside}
    at = dict.fromkeys(columns, (ds, codes))
    if told.resample is not None:
        for name, value in columns.items():
            *at[name], columns[name] = resample(ds, codes, value, told.resample, where, name)
    else:
        check_order(ds, codes, names, where)
    # Times repeat in every series: they are made unique first, which keeps the union small.
    every = at[""][0].unique()
    for name in beside:
        every = every.union(at[name][0].unique())
    axis, freq = regular_axis(every.sort_values(), where)
    tables = {}
    for name, value in columns.items():
        tables[name] = _empty(axis, names, where)
        tables[name][axis.get_indexer(at[name][0]), at[name][1]] = value
    return _panel(tables.pop(""), tables, static, names, axis, freq, told, where)


def _empty(axis: pd.Index, names: pd.Index, where: Source) -> np.ndarray:
    if len(axis) * len(names) > _CELLS:
        raise where.error(
            f"{len(names):,} series on an axis of {len(axis):,} rows are more than one panel holds",
            hint="split the file, resample to a longer step, or read it in pieces: predict "
            "--in_pieces yes, fit --data LongFileData; in Python give predict a Parquet path",
        )
    return np.full((len(axis), len(names)), np.nan)


def _panel(
    table: np.ndarray,
    tables: dict[str, np.ndarray],
    static: dict[str, np.ndarray],
    names: pd.Index,
    axis: pd.Index,
    freq: Any,
    told: Roles,
    where: Source,
) -> Panel:
    future = {name: tables[name] for name in told.future}
    if told.holidays is not None:
        days = holiday_values(axis, freq, told.holidays)
        future[f"holidays:{told.holidays}"] = np.repeat(days[:, None], len(names), 1)
    rows = len(axis)
    if told.future:
        # Rows after the last value of all series are the future that covariates are known for.
        seen = np.flatnonzero((~np.isnan(table)).any(1))
        rows = int(seen[-1]) + 1 if len(seen) else rows
    past = {name: tables[name][:rows] for name in told.past}
    for name, value in past.items():
        empty = np.isnan(value).all(0)
        if empty.all():
            raise where.error(
                f"the past covariate {name!r} has no value",
                hint="leave it out, or give the rows up to the cutoff their values",
            )
        if empty.any():
            shown = ", ".join(map(str, names[empty][:6])) + (" …" if empty.sum() > 6 else "")
            where.notes.append(f"the past covariate {name!r} has no value for {shown}")
    covariates = Covariates(future, past, static, told.holidays)
    panel = Panel(
        table[:rows],
        tuple(map(str, names)),
        axis[:rows],
        freq,
        str(where.file),
        tuple(where.notes),
        covariates,
    )
    if told.missing == "error":
        refuse_missing(panel, where)
    return panel


def refuse_missing(
    panel: Panel, where: Source, missing: int | None = None, size: int | None = None
) -> None:
    """Refuses a panel that lacks a value.

    Args:
        panel: the series, or some of a file's.
        where: the file.
        missing: values that the whole file lacks; those of the panel if None.
        size: values that it would have; likewise.

    Raises:
        DataError: naming the first series that does, and the time.
    """
    holes = ~panel.observed
    if holes.any():
        missing = int(holes.sum()) if missing is None else missing
        column = int(np.flatnonzero(holes.any(0))[0])
        row = int(np.flatnonzero(holes[:, column])[0])
        raise DataError(
            f"value missing ({missing:,} of {size or holes.size:,} are)",
            path=where.file,
            record=f"{panel.ids[column]} at {panel.ds[row]}",
            hint="missing=ffill carries the last value forward in contexts and scores none of it",
        )
