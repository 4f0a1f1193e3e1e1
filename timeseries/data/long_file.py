"""A long Parquet file in pieces: complete series, some at a time, in memory that does not grow with
the file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from longseq.core.errors import ConfigError, DataError
from longseq.core.files import require_file
from longseq.timeseries.data.columns import numbers
from longseq.timeseries.data.frames import refuse_missing
from longseq.timeseries.data.panel import Panel
from longseq.timeseries.data.roles import Roles, find_roles
from longseq.timeseries.data.source import Source
from longseq.timeseries.data.times import check_order, parse_times, regular_axis

BATCH = 2**18  # rows that are read at once
CELLS = 2**22  # values of a piece's panel
TIMES = 5_000_000  # distinct times of a file
ROW_BYTES = 150  # of a row of a file that is read whole: the frame, the panel and their copies
READ_WHOLE = "read it whole: --in_pieces no, in Python give pandas.read_parquet(path)"
_NUMBERS = ("integer", "floating", "decimal", "boolean", "null")
SHARE = 0.25  # of the machine's memory that a file may take before it is read in pieces


@dataclass(frozen=True)
class Piece:
    """Complete series in the order of the file.

    Args:
        first_row: of the file.
        names: of the series (C,), as text.
        counts: rows of every series (C,).
        times: of every row (R,).
        values: float64 (R,), NaN where missing.
    """

    first_row: int
    names: np.ndarray
    counts: np.ndarray
    times: pd.Index
    values: np.ndarray

    @property
    def bounds(self) -> np.ndarray:
        """First row of every series, and one past the last row (C + 1,)."""
        return np.concatenate([[0], np.cumsum(self.counts)])

    @property
    def codes(self) -> np.ndarray:
        """Number of the series of every row (R,)."""
        return np.repeat(np.arange(len(self.names)), self.counts)


@dataclass(frozen=True)
class Survey:
    """What must be known of a whole file before a piece of it can be understood.

    Args:
        series: number of series.
        axis: regular times of all series.
        freq: their step.
        notes: what was understood and a user should know, a sentence each.
        empty: the first series that has no value; None if there is none.
        missing: values that series lack on the axis: before they begin, in gaps, after they end.
    """

    series: int
    axis: pd.Index
    freq: Any
    notes: tuple[str, ...]
    empty: str | None
    missing: int


class LongFile:
    """A long Parquet file whose rows stand series by series, read in pieces.

    A row group, or a part of one, is in memory at a time, and the series that goes on in the next
    one. The file is read three times: its times, which say what a text or number means and which
    step is regular; its series, which are checked; and its pieces. Beside a piece 8 bytes for every
    series are kept, and the distinct times.

    Args:
        path: the file.
        roles: of its columns; no covariates, and no resampling, which look at all series at once.

    Raises:
        DataError: if it is no such file.
        ConfigError: for roles that need the whole file.
    """

    def __init__(self, path: str | Path, roles: Roles | None = None) -> None:
        self.roles = roles or Roles()
        self.path = require_file(path, "time-series file")
        if self.path.suffix.lower() not in (".parquet", ".pq"):
            raise DataError(
                "is no Parquet file, which alone can be read in pieces",
                path=self.path,
                hint="rewrite it once: polars.scan_csv(…).sort(id, time).sink_parquet(…)",
            )
        if self.roles.resample or self.roles.covariates or self.roles.holidays:
            what = "resample" if self.roles.resample else "a covariate"
            raise ConfigError(
                f"{path}: {what} looks at all series at once, which a file read in pieces does not "
                f"give: take fewer series, or {READ_WHOLE}"
            )
        file = self._open()
        schema, metadata = file.schema_arrow.remove_metadata(), file.metadata
        # An index without a name that pandas wrote is no column.
        names = [name for name in schema.names if not name.startswith("__index_level_")]
        self.rows, self.groups = metadata.num_rows, metadata.num_row_groups
        sizes = [metadata.row_group(i).num_rows for i in range(self.groups)]
        self.group_starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        where = Source(self.path, 0)
        if len(set(names)) < len(names):
            raise where.error("two columns have the same name")
        self.id, self.time, self.target = self._columns(schema, names, where)
        self.unused = [n for n in names if n not in (self.id, self.time, self.target)]
        if not self.rows:
            raise where.error("has a header but no rows")

    def _open(self) -> pq.ParquetFile:
        try:
            return pq.ParquetFile(self.path, pre_buffer=False, buffer_size=2**20)
        except (pa.ArrowException, OSError) as error:
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> DataError:
        text = " ".join(str(error).split())
        return DataError(f"cannot be read as .parquet: {text}", path=self.path)

    def _columns(self, schema: pa.Schema, names: list[str], where: Source) -> tuple[str, str, str]:
        found = find_roles(
            pd.DataFrame({name: pd.Series(dtype=object) for name in names}), self.roles, where
        )
        id_, time, target = found
        if id_ is None or time is None or target is None:
            raise where.error(
                "is a wide frame, which cannot be read in pieces",
                hint="a long one can: name its columns (--id --time --target), or make one by "
                "polars.scan_parquet(…).unpivot(index=time)",
            )
        for field in map(schema.field, found):
            own = (field.metadata or {}).get(b"ARROW:extension:name", b"").decode()
            if own or isinstance(field.type, pa.BaseExtensionType):  # periods are stored as counts
                raise where.error(f"{field.name!r} is of {own or field.type}: {READ_WHOLE}")
        kind = schema.field(target).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not any(getattr(pa.types, f"is_{one}")(kind) for one in _NUMBERS):
            raise where.error(
                f"{target!r} is of {kind}, numbers are needed to read a file in pieces",
                hint="cast the column to float and write the file again",
            )
        return id_, time, target

    def batches(self, columns: list[str]) -> Iterator[pa.Table]:
        """Yields some columns, at most ``BATCH`` rows at a time and none without rows."""
        try:
            for batch in self._open().iter_batches(BATCH, columns=columns):
                if len(batch):
                    yield pa.Table.from_batches([batch])
        except (pa.ArrowException, OSError) as error:
            raise self._damaged(error) from error

    @cached_property
    def _clock(self) -> tuple[pd.Index, pd.Index, tuple[str, ...]]:
        """The distinct times as written, what they are, and notes."""
        seen, row = pd.Index([], dtype=object), 0
        for batch in self.batches([self.time]):
            column = batch.column(0)
            if column.null_count:
                at = int(np.flatnonzero(column.is_null().to_numpy())[0])
                raise Source(self.path, 0, first_row=row).error(
                    f"{self.time!r} is empty, a date and time (or an integer) is needed", at
                )
            written, _ = _written(column)
            seen = written.unique() if not len(seen) else seen.append(written).unique()
            row += len(batch)
            if len(seen) > TIMES:
                raise Source(self.path, 0).error(
                    f"has more than {TIMES:,} distinct times: it has no regular step",
                    hint="average them over a step first, as resample does for smaller files",
                )
        source = Source(self.path, 0)
        column = pd.Series(seen, name=self.time)
        times = parse_times(column, source, order=self.roles.date_order)
        # What a named zone makes of a clock depends on the series, and is not a note of the file.
        return seen, times, tuple(source.notes) if self.roles.zone is None else ()

    @cached_property
    def survey(self) -> Survey:
        """What the whole file says; the file is read for it once.

        Raises:
            DataError: if a series stands in two places, times do not ascend, or anything else that
                would be wrong of the file as a whole.
        """
        hashes, axis, observed = np.empty(0, np.uint64), None, 0
        empty: str | None = None
        for piece in self.pieces():
            where = Source(self.path, 0, first_row=piece.first_row)
            new = pd.util.hash_array(piece.names.astype(object), categorize=False)
            repeated = np.isin(new, hashes)
            order = np.argsort(new, kind="stable")
            repeated[order[1:]] |= new[order][1:] == new[order][:-1]
            if repeated.any():
                at = int(np.flatnonzero(repeated)[0])
                id_, time = self.id, self.time
                raise where.error(
                    f"the series {str(piece.names[at])!r} begins again after another one: a file "
                    "that is read in pieces must stand series by series",
                    int(piece.bounds[at]),
                    f"sort it once: polars.scan_parquet({str(self.path)!r}).sort({id_!r}, "
                    f"{time!r}).sink_parquet('sorted.parquet'); or, with memory for all of it, "
                    f"{READ_WHOLE}",
                )
            hashes = np.concatenate([hashes, new])
            check_order(piece.times, piece.codes, pd.Index(piece.names), where)
            times = piece.times.unique()
            axis = times if axis is None else axis.union(times)
            observed += int((~np.isnan(piece.values)).sum())
            last = np.where(~np.isnan(piece.values), np.arange(len(piece.values)), -1)
            last = np.maximum.reduceat(last, piece.bounds[:-1])
            if (last < 0).any() and empty is None:
                empty = str(piece.names[last < 0][0])
        assert axis is not None
        source = Source(self.path, 0)
        if self.unused:
            source.notes.append(f"columns not used: {', '.join(self.unused)}")
        axis, freq = regular_axis(axis.sort_values(), source)
        if not observed:
            raise source.error("no series has a value")
        notes = (*self._clock[2], *source.notes)
        missing = len(hashes) * len(axis) - observed
        return Survey(len(hashes), axis, freq, notes, empty, missing)

    def panels(self) -> Iterator[Panel]:
        """Yields panels of complete series on the times of the whole file, in the file's order."""
        axis, freq = self.survey.axis, self.survey.freq
        for piece in self.pieces():
            where = Source(self.path, 0, first_row=piece.first_row)
            rows, bounds = self.rows_of(piece), piece.bounds
            some = max(1, CELLS // len(axis))
            for start in range(0, len(piece.names), some):
                names = piece.names[start : start + some]
                part = slice(bounds[start], bounds[start + len(names)])
                table = np.full((len(axis), len(names)), np.nan)
                table[rows[part], piece.codes[part] - start] = piece.values[part]
                panel = Panel(table, tuple(map(str, names)), axis, freq, str(self.path))
                if self.roles.missing == "error":
                    size = self.survey.series * len(axis)
                    refuse_missing(panel, where, self.survey.missing, size)
                yield panel

    def rows_of(self, piece: Piece) -> np.ndarray:
        """Returns the place of a piece's times on the axis of the whole file (R,).

        Raises:
            DataError: if the file was changed since it was surveyed.
        """
        rows = self.survey.axis.get_indexer(piece.times)
        if (rows < 0).any():
            raise DataError("was changed while it was read", path=self.path)
        return rows

    def pieces(self) -> Iterator[Piece]:
        """Yields the whole file, complete series at a time."""
        for part in self._complete():
            yield self._piece(*part)

    def read(self, first: int, count: int) -> Piece:
        """Returns complete series by their rows.

        Args:
            first: the first of them.
            count: how many they are.
        """
        groups = np.searchsorted(self.group_starts, [first, first + count - 1], side="right") - 1
        columns, begin = [self.id, self.time, self.target], int(self.group_starts[groups[0]])
        try:
            table = self._open().read_row_groups(range(groups[0], groups[1] + 1), columns)
        except (pa.ArrowException, OSError) as error:
            raise self._damaged(error) from error
        table = table.slice(first - begin, count)
        names, counts = self._runs(table.column(self.id), first)
        return self._piece(first, names, counts, table)

    def _piece(self, first: int, names: np.ndarray, counts: np.ndarray, table: pa.Table) -> Piece:
        where = Source(self.path, 0, first_row=first)
        column = table.column(self.target)
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        if pa.types.is_null(column.type):
            column = column.cast(pa.float64())
        values = numbers(column.to_pandas(), self.target, where)
        seen, plain, _ = self._clock
        written, codes = _written(table.column(self.time))
        at = seen.get_indexer(written)
        if (at < 0).any():
            raise DataError("was changed while it was read", path=self.path)
        times = plain[at[codes]]
        if self.roles.zone is not None:
            groups = np.repeat(np.arange(len(names)), counts)
            series = pd.Series(times, name=self.time)
            times = parse_times(series, where, self.roles.zone, groups)
        return Piece(first, names, counts, times, values)

    def _complete(self) -> Iterator[tuple[int, np.ndarray, np.ndarray, pa.Table]]:
        """Yields complete series: their first row, names, numbers of rows, and rows."""
        opened: pa.Table | None = None  # rows of the series that may go on in the next batch
        first, name = 0, None
        for batch in self.batches([self.id, self.time, self.target]):
            begun = first + (0 if opened is None else len(opened))
            ids, counts = self._runs(batch.column(self.id), begun)
            table = batch if opened is None else pa.concat_tables([opened, batch])
            if opened is not None:
                if ids[0] == name:
                    counts[0] += len(opened)
                else:
                    ids = np.concatenate([[name], ids])
                    counts = np.concatenate([[len(opened)], counts])
            done = int(counts[:-1].sum())
            if done:
                yield first, ids[:-1], counts[:-1], table.slice(0, done)
            first, name, opened = first + done, ids[-1], table.slice(done)
        assert opened is not None
        yield first, np.array([name], object), np.array([len(opened)]), opened

    def _runs(self, column: pa.ChunkedArray, first: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns names and lengths of runs of one name."""
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        if column.type in (pa.string_view(), pa.binary_view()):
            column = column.cast(pa.large_string())
        runs = pc.run_end_encode(column.combine_chunks())
        ids = runs.values.to_pandas()
        counts = np.diff(np.asarray(runs.run_ends), prepend=0)
        if ids.isna().any():
            at = int(counts[: int(np.flatnonzero(ids.isna())[0])].sum())
            raise Source(self.path, 0, first_row=first).error(f"{self.id!r} is empty", at)
        return np.asarray(pd.Index(ids).astype(str), object), counts.astype(np.int64)


def _written(column: pa.ChunkedArray) -> tuple[pd.Index, np.ndarray]:
    """Returns the distinct times of a column as written, and the number of each row's."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    encoded = column.combine_chunks().dictionary_encode()
    return pd.Index(encoded.dictionary.to_pandas()), np.asarray(encoded.indices)


def memory() -> int:
    """Returns the machine's memory in bytes; 16 GiB where it does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 2**34


def is_large(path: str | Path, roles: Roles | None = None, always: bool = False) -> bool:
    """Returns whether a long Parquet file would take more than a quarter of the machine's memory if
    it were read whole.

    Args:
        path: of any file.
        roles: of its columns.
        always: count every long Parquet file as large.
    """
    file = Path(path)
    if file.suffix.lower() not in (".parquet", ".pq") or not file.is_file():
        return False
    try:
        small = pq.read_metadata(file).num_rows * ROW_BYTES <= SHARE * memory()
        if small and not always:
            return False
        names = pq.read_schema(file).names
    except (pa.ArrowException, OSError):
        return False  # and reading it says what is wrong
    frame = pd.DataFrame({name: pd.Series(dtype=object) for name in names})
    id_, _, target = find_roles(frame, roles or Roles(), Source(file, 0))
    return id_ is not None and target is not None
