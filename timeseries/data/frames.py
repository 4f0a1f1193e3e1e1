"""Long (``unique_id, ds, y``) and wide CSV or Parquet frames in, a regular panel out; frames
out."""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from longseq.core.errors import ConfigError, DataError, did_you_mean
from longseq.core.files import require_file
from longseq.core.tables import DELIMITERS
from longseq.timeseries.data.samples import SAMPLES

TIME_NAMES = ("ds", "date", "datetime", "timestamp", "time")
LONG = ("unique_id", "ds", "y")
Missing = Literal["error", "ffill"]
_HINT = "--data.missing=ffill carries the last value forward"


@dataclass(frozen=True)
class Panel:
    """Series on one regular time axis.

    Args:
        values: float64 (T, C), T rows of C series, no gaps.
        ids: name of every series.
        ds: time of every row: a ``DatetimeIndex``, or integers for files without times.
        freq: step of ``ds``: a pandas offset, or 1.
        source: file that it came from, for messages.
        filled: number of values that were missing and carried forward.
    """

    values: np.ndarray
    ids: tuple[str, ...]
    ds: pd.Index
    freq: Any
    source: str = ""
    filled: int = 0

    def __len__(self) -> int:
        return len(self.ds)

    @property
    def dated(self) -> bool:
        """Whether the rows have calendar times."""
        return isinstance(self.ds, pd.DatetimeIndex)

    def future(self, row: int, horizon: int) -> pd.Index:
        """Returns the times of rows ``row … row + horizon - 1``, beyond the end of the panel if
        need be.

        Args:
            row: first row.
            horizon: number of rows.
        """
        known = self.ds[row : row + horizon]
        more = horizon - len(known)
        if more == 0:
            return known
        if not self.dated:
            return pd.Index(np.arange(horizon) + (self.ds[-1] + 1 + row - len(self)))
        skip = max(0, row - len(self))
        beyond = pd.date_range(self.ds[-1], periods=more + skip + 1, freq=self.freq)[1 + skip :]
        return known.append(beyond)

    def select(self, names: list[str] | None) -> Panel:
        """Returns the panel with only the named series, in that order; itself for None.

        Raises:
            ConfigError: for an unknown name.
        """
        if names is None:
            return self
        for name in names:
            if name not in self.ids:
                raise ConfigError(
                    f"{self.source}: no series {name!r}; {did_you_mean(name, self.ids)}"
                )
        columns = [self.ids.index(name) for name in names]
        return Panel(
            self.values[:, columns], tuple(names), self.ds, self.freq, self.source, self.filled
        )

    def season(self) -> int:
        """Returns the usual season in rows: a day for steps below a day, else a week, a year, or
        1."""
        if not self.dated:
            return 1
        offset = self.freq
        if isinstance(offset, pd.offsets.Tick) or type(offset).__name__ == "Day":
            step = pd.Timedelta(self.ds[1] - self.ds[0])
            for span in (pd.Timedelta(days=1), pd.Timedelta(days=7)):
                if step < span and span % step == pd.Timedelta(0):
                    return int(span / step)
            return 52 if step == pd.Timedelta(days=7) else 1
        name = type(offset).__name__
        periods = {"Month": 12, "Quarter": 4, "BusinessDay": 5}
        return next((n for key, n in periods.items() if key in name), 1)


def read_panel(path: str | Path, missing: Missing = "error") -> Panel:
    """Reads a frame; the layout is told by its columns.

    - long: columns ``unique_id``, ``ds``, ``y`` (others are ignored), rows in order of time within
      a series;
    - wide: a time column (``ds``, ``date``, ``datetime``, ``timestamp`` or ``time``) and one column
      a series;
    - ``.txt`` or ``.txt.gz``: comma-separated numbers without header or times; ``ds`` is then 0, 1,
      2, …

    Args:
        path: ``.csv``, ``.tsv``, ``.parquet`` or ``.txt``; ``.gz`` may follow text; or the name of
            a packaged sample, ``electricity_demand``.
        missing: what a missing value or row is: an error, or filled with the last value before it.

    Raises:
        DataError: naming the file, the record and what is wrong.
    """
    packaged = str(path) in SAMPLES.names() and not Path(path).exists()
    file = require_file(SAMPLES.path(str(path)) if packaged else path, "time-series file")
    return panel_of(*_read_frame(file), source=file, missing=missing)


def panel_of(
    frame: pd.DataFrame, first_line: int = 2, *, source: str | Path, missing: Missing = "error"
) -> Panel:
    """Checks a frame and returns its series; for readers of other formats.

    Args:
        frame: long or wide, see ``read_panel``.
        first_line: of the file that the first row stands in, for messages.
        source: the file, for messages.
        missing: see ``read_panel``.

    Raises:
        DataError: naming the file, the record and what is wrong.
    """
    file = Path(source)
    if frame.empty:
        raise DataError("has a header but no rows", path=file)
    if set(LONG) <= set(map(str, frame.columns)):
        return _from_long(frame, file, missing, first_line)
    near = [name for name in LONG if name in frame.columns]
    if "unique_id" in near:
        absent = next(name for name in LONG if name not in near)
        raise DataError(
            f"looks like a long frame but has no column {absent!r}",
            path=file,
            hint=f"long frames have {', '.join(LONG)}",
        )
    return _from_wide(frame, file, missing, first_line)


def _read_frame(file: Path) -> tuple[pd.DataFrame, int]:
    """Returns the table and the line number of its first record (0 for Parquet, which has no
    lines)."""
    suffixes = [text for text in file.suffixes if text != ".gz"]
    kind = suffixes[-1] if suffixes else ""
    try:
        if kind in (".parquet", ".pq"):
            return pd.read_parquet(file), 0
        if kind in DELIMITERS:
            return pd.read_csv(file, sep=DELIMITERS[kind]), 2
        if kind == ".txt":
            return pd.read_csv(file, header=None), 1
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError("the compressed file is truncated or damaged", path=file) from error
    except (
        pd.errors.ParserError,
        pd.errors.EmptyDataError,
        UnicodeDecodeError,
        ValueError,
        OSError,
    ) as error:
        text = " ".join(str(error).split())
        raise DataError(f"cannot be read as {kind or 'a table'}: {text}", path=file) from error
    raise DataError(
        f"is of unknown type {kind or '(no suffix)'}",
        path=file,
        hint="give .csv, .tsv, .parquet or .txt",
    )


def _where(row: int, first_line: int) -> str:
    return f"line {row + first_line}" if first_line else f"row {row}"


def _numbers(column: pd.Series, name: str, file: Path, first_line: int) -> np.ndarray:
    """Returns a column as float64; NaN where it is empty.

    Raises:
        DataError: at the first value that is no finite number.
    """
    values = pd.to_numeric(column, errors="coerce").to_numpy(np.float64, copy=True)
    bad = (np.isnan(values) & column.notna().to_numpy()) | np.isinf(values)
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        value = column.iloc[row]
        shown = repr(value) if isinstance(value, str) else str(value)
        text = f"{name!r} is {shown}, a finite number is needed"
        raise DataError(text, path=file, record=_where(row, first_line))
    return values


def _times(column: pd.Series, file: Path, first_line: int) -> pd.Index:
    """Returns a column of integers or dates as an index.

    Raises:
        DataError: at the first value that is no time.
    """
    if pd.api.types.is_integer_dtype(column):
        return pd.Index(column.to_numpy(np.int64))
    times = pd.to_datetime(column, errors="coerce", format=None)
    if times.isna().any():
        row = int(np.flatnonzero(times.isna().to_numpy())[0])
        text = f"{column.name!r} is {column.iloc[row]!r}, a date and time (or an integer) is needed"
        raise DataError(text, path=file, record=_where(row, first_line))
    if times.dt.tz is not None:
        times = times.dt.tz_convert("UTC").dt.tz_localize(None)
    return pd.DatetimeIndex(times)


def _check_order(ds: pd.Index, record: str, rows: np.ndarray, file: Path, first_line: int) -> None:
    """Checks that times ascend strictly.

    Raises:
        DataError: at the first duplicate or step back.
    """
    later = np.asarray(ds[1:] > ds[:-1])
    if later.all():
        return
    at = int(np.flatnonzero(~later)[0]) + 1
    what = "is a duplicate" if ds[at] == ds[at - 1] else f"comes after {ds[at - 1]}"
    where = f"{_where(int(rows[at]), first_line)}{record}"
    raise DataError(
        f"the time {ds[at]} {what}",
        path=file,
        record=where,
        hint="sort by time and keep one row a time",
    )


def _step(ds: pd.Index, file: Path) -> tuple[pd.Index, Any]:
    """Returns the regular axis that ``ds`` lies on, and its step.

    Raises:
        DataError: if there is none.
    """
    if len(ds) < 3:
        raise DataError(f"has {len(ds)} times, at least 3 are needed", path=file)
    if not isinstance(ds, pd.DatetimeIndex):
        return pd.Index(np.arange(ds[0], ds[-1] + 1)), 1
    gaps = np.diff(ds.to_numpy())
    if (gaps == gaps[0]).all():
        return ds, pd.tseries.frequencies.to_offset(pd.Timedelta(gaps[0]))
    month = ds[0].month
    offsets = pd.offsets
    for offset in (
        *(offsets.MonthBegin(), offsets.MonthEnd(), offsets.BusinessDay()),
        *(offsets.QuarterBegin(startingMonth=month), offsets.QuarterEnd(startingMonth=month)),
        *(offsets.YearBegin(month=month), offsets.YearEnd(month=month)),
    ):
        axis = pd.date_range(ds[0], periods=len(ds), freq=offset)
        if len(axis) == len(ds) and (axis == ds).all():
            return ds, offset
    smallest = gaps.min()
    off = (gaps % smallest).astype(np.int64) != 0
    if off.any():
        at = int(np.flatnonzero(off)[0])
        least = pd.Timedelta(smallest)
        text = (
            f"the step from {ds[at]} to {ds[at + 1]} is no multiple of the smallest step, {least}"
        )
        raise DataError(text, path=file, hint="bring the times to one regular step")
    step = pd.Timedelta(smallest)
    return pd.date_range(ds[0], ds[-1], freq=step), pd.tseries.frequencies.to_offset(step)


def _regular(table: pd.DataFrame, file: Path, missing: Missing) -> Panel:
    """Makes a panel of a table indexed by time: gaps filled or refused."""
    axis, freq = _step(table.index, file)
    table = table.reindex(axis)
    values = table.to_numpy(np.float64)
    holes = np.isnan(values)
    ids = tuple(str(name) for name in table.columns)
    if holes.any():
        column = int(np.flatnonzero(holes.any(0))[0])
        row = int(np.flatnonzero(holes[:, column])[0])
        record = f"{ids[column]} at {axis[row]}"
        if missing == "error":
            text = f"value missing ({int(holes.sum())} of {holes.size} are)"
            raise DataError(text, path=file, record=record, hint=_HINT)
        start = np.isnan(values[0])
        if start.any():
            record = f"{ids[int(np.flatnonzero(start)[0])]} at {axis[0]}"
            text = "the first value is missing and has none before it to carry forward"
            raise DataError(
                text, path=file, record=record, hint="let all series begin at the same time"
            )
        # Forward only: a value interpolated between two neighbours would look ahead.
        values = table.ffill().to_numpy(np.float64)
    return Panel(values, ids, axis, freq, str(file), int(holes.sum()))


def _from_long(frame: pd.DataFrame, file: Path, missing: Missing, first_line: int) -> Panel:
    empty = frame["unique_id"].isna().to_numpy()
    if empty.any():
        row = int(np.flatnonzero(empty)[0])
        raise DataError("'unique_id' is empty", path=file, record=_where(row, first_line))
    values = _numbers(frame["y"], "y", file, first_line)
    ds = _times(frame["ds"], file, first_line)
    ids = frame["unique_id"].astype(str).to_numpy()
    columns = {}
    for name in dict.fromkeys(ids):
        rows = np.flatnonzero(ids == name)
        _check_order(ds[rows], f" ({name})", rows, file, first_line)
        columns[name] = pd.Series(values[rows], index=ds[rows])
    return _regular(pd.DataFrame(columns), file, missing)


def _from_wide(frame: pd.DataFrame, file: Path, missing: Missing, first_line: int) -> Panel:
    if first_line == 1:
        ds, series = pd.Index(np.arange(len(frame))), frame
    else:
        lower = {str(name).lower(): name for name in frame.columns}
        found = next((lower[name] for name in TIME_NAMES if name in lower), None)
        if found is None:
            text = f"has no time column among {', '.join(map(str, frame.columns[:5]))}"
            raise DataError(text, path=file, hint=f"call it one of {', '.join(TIME_NAMES)}")
        ds, series = _times(frame[found], file, first_line), frame.drop(columns=found)
    if series.shape[1] == 0:
        raise DataError("has times but no series", path=file)
    if len(set(map(str, series.columns))) < series.shape[1]:
        raise DataError("two series have the same name", path=file)
    _check_order(ds, "", np.arange(len(ds)), file, first_line)
    columns = {
        str(name): _numbers(series[name], str(name), file, first_line) for name in series.columns
    }
    return _regular(pd.DataFrame(columns, index=ds), file, missing)
