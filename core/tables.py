"""Tables in and out; the suffix says which kind: .csv, .tsv or .parquet, and any other is an
error."""

from __future__ import annotations

import csv
import importlib.util
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from longseq.core.errors import ConfigError, DataError
from longseq.core.files import atomic_path, check_writable, require_file

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

DELIMITERS = {".csv": ",", ".tsv": "\t"}
SUFFIXES = (*DELIMITERS, ".parquet")
_LONGEST_CELL = 2**31 - 1  # characters; the csv module stops at 131,072, a short sequence


def check_table(path: str | Path) -> str:
    """Returns the suffix of a table that is to be written, so that a wrong one fails before the
    work is done.

    Args:
        path: the file.

    Raises:
        ConfigError: unless it is ``.csv``, ``.tsv`` or ``.parquet``, or for Parquet without
            pyarrow.
    """
    kind = Path(path).suffix.lower()
    if kind not in SUFFIXES:
        raise ConfigError(f"{path}: a table must end in .csv, .tsv or .parquet")
    check_writable(path)
    if kind == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise ConfigError(
            f"{path}: Parquet needs pyarrow: pip install pyarrow; .csv and .tsv do not"
        )
    return kind


def write_rows(path: str | Path, columns: Mapping[str, str], rows: Iterable[Sequence[Any]]) -> None:
    """Writes rows, whole or not at all.

    Args:
        path: the file.
        columns: a column's name → the format of its values in text: "" for text, "d" for whole
            numbers, "r" for real ones with every digit, or for example ".6f"; Parquet keeps real
            numbers as they are.
        rows: values in the order of the columns; None for none.

    Raises:
        ConfigError: for another suffix.
    """
    kind = check_table(path)
    if kind == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        kinds = [
            {"": pa.string(), "d": pa.int64()}.get(how, pa.float64()) for how in columns.values()
        ]
        values = [list(column) for column in zip(*rows)] or [[] for _ in columns]
        arrays = [pa.array(column, dtype) for column, dtype in zip(values, kinds)]
        with atomic_path(path) as temporary:
            pq.write_table(pa.table(arrays, names=list(columns)), temporary)
        return
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=DELIMITERS[kind], lineterminator="\n")
        writer.writerow(columns)
        for row in rows:
            pairs = zip(row, columns.values(), strict=True)
            writer.writerow(["" if value is None else _text(value, how) for value, how in pairs])


def _text(value: Any, how: str) -> str:
    return repr(float(value)) if how == "r" else format(value, how)


def write_frame(frame: pd.DataFrame, path: str | Path) -> None:
    """Writes a pandas frame without its index, whole or not at all.

    Args:
        frame: the table.
        path: the file.

    Raises:
        ConfigError: for another suffix.
    """
    kind = check_table(path)
    with atomic_path(path) as temporary:
        if kind == ".parquet":
            frame.to_parquet(temporary, index=False)
        else:
            frame.to_csv(temporary, index=False, sep=DELIMITERS[kind])


def write_batches(
    path: str | Path,
    schema: pa.Schema,
    batches: Iterable[pa.Table],
    encodings: Mapping[str, str] | None = None,
) -> None:
    """Writes Arrow tables as they come, in constant memory; the file has its name when it is whole.

    Args:
        path: the file.
        schema: of every table; its metadata is kept in Parquet. Dictionaries are written as text
            elsewhere.
        batches: tables of consecutive rows.
        encodings: of columns in Parquet, for example "DELTA_BINARY_PACKED"; the others are
            dictionaries. The file is then compressed by zstd.

    Raises:
        ConfigError: for another suffix.
    """
    kind = check_table(path)
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.csv as pacsv
    import pyarrow.parquet as pq

    if kind == ".parquet":
        how: dict[str, Any] = {}
        if encodings:
            others = [name for name in schema.names if name not in encodings]
            how = {"use_dictionary": others, "column_encoding": encodings, "compression": "zstd"}
        with atomic_path(path) as temporary, pq.ParquetWriter(temporary, schema, **how) as writer:
            for batch in batches:
                writer.write_table(batch)
        return
    plain = pa.schema(
        [(field.name, getattr(field.type, "value_type", field.type)) for field in schema]
    )
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        # Arrow quotes every text or none: as in ``write_rows``, only what must be quoted is.
        writers = {}
        for quoting in ("none", "needed"):
            style = pacsv.WriteOptions(
                include_header=False, delimiter=DELIMITERS[kind], quoting_style=quoting
            )
            writers[quoting] = pacsv.CSVWriter(file, plain, write_options=style)
        header = io.StringIO()
        csv.writer(header, delimiter=DELIMITERS[kind], lineterminator="\n").writerow(schema.names)
        file.write(header.getvalue().encode())
        special = f'[{DELIMITERS[kind]}"\r\n]'
        for batch in batches:
            text = batch.cast(plain)
            columns = (text.column(i) for i, one in enumerate(plain.types) if one == pa.string())
            quoted = any(
                pc.any(pc.match_substring_regex(pc.unique(one), special)).as_py() for one in columns
            )
            writers["needed" if quoted else "none"].write_table(text)
        for writer in writers.values():
            writer.close()


def arrow_column(values: Sequence[str] | np.ndarray) -> pa.Array:
    """Returns strings or numbers as an Arrow array.

    ``pyarrow.array`` asks whether its argument is of pandas and imports pandas for that, 70 MB and
    half a second; this does not.

    Args:
        values: strings, or a contiguous one-dimensional array of numbers, which is not copied.
    """
    import pyarrow as pa

    if isinstance(values, np.ndarray):
        kind = pa.from_numpy_dtype(values.dtype)
        return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(values)])
    texts = [value.encode() for value in values]
    ends = np.cumsum([0, *map(len, texts)], dtype=np.int64)
    parts = [None, pa.py_buffer(ends), pa.py_buffer(b"".join(texts))]
    return pa.Array.from_buffers(pa.large_string(), len(texts), parts).cast(pa.string())


def read_batches(path: str | Path, columns: Mapping[str, pa.DataType]) -> Iterator[pa.RecordBatch]:
    """Yields some columns of a table in batches, in constant memory.

    Args:
        path: the file.
        columns: a column's name → its Arrow type.

    Raises:
        DataError: if the file is missing, of another suffix, or has no such columns.
    """
    import pyarrow as pa
    import pyarrow.csv as pacsv
    import pyarrow.parquet as pq

    file = require_file(path, "table")
    kind = _kind_of(file)
    try:
        if kind == ".parquet":
            source = pq.ParquetFile(file)
            # KeyError where one is absent.
            pa.schema([source.schema_arrow.field(name) for name in columns])
            yield from source.iter_batches(columns=list(columns))
            return
        convert = pacsv.ConvertOptions(column_types=dict(columns), include_columns=list(columns))
        parse = pacsv.ParseOptions(delimiter=DELIMITERS[kind])
        with pacsv.open_csv(file, parse_options=parse, convert_options=convert) as reader:
            yield from reader
    except (pa.ArrowInvalid, pa.ArrowKeyError, KeyError) as error:
        raise DataError(
            f"cannot be read as a table with {', '.join(columns)}: {error}", path=file
        ) from error


class Row(dict[str, str]):
    """A row of a table: column → cell, and the line of the file in which it ends.

    Args:
        cells: of the row.
        line: from 1; that of the names of the columns counts.
    """

    def __init__(self, cells: Mapping[str, str], line: int) -> None:
        super().__init__(cells)
        self.line = line


def read_rows(path: str | Path) -> list[Row]:
    """Returns the rows of a .csv or .tsv file, or those of a .parquet file as text.

    Blanks round the names of columns and before cells do not count, nor do empty lines.

    Args:
        path: the file.

    Raises:
        DataError: if the file is missing, of another suffix, damaged or no text in UTF-8, if a
            row has more cells than there are columns, two columns have one name, a quote is not
            closed, or a column holds lists or bytes.
    """
    file = require_file(path, "table")
    kind = _kind_of(file)
    if kind == ".parquet":
        return _parquet_rows(file)
    limit = csv.field_size_limit(_LONGEST_CELL)
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            return list(_text_rows(stream, file, DELIMITERS[kind]))
    except UnicodeDecodeError as error:
        raise DataError(f"is not a {kind[1:].upper()} file in UTF-8", path=file) from error
    finally:
        csv.field_size_limit(limit)


def _text_rows(stream: Iterable[str], file: Path, delimiter: str) -> Iterator[Row]:
    # Unless it is strict, the reader takes all lines behind an open quote for one cell.
    reader = csv.DictReader(stream, delimiter=delimiter, skipinitialspace=True, strict=True)
    last = 0
    try:
        names = [name.strip() for name in reader.fieldnames or ()]
        reader.fieldnames = names
        _check_names(names, file)
        last = reader.line_num
        for row in reader:
            last = reader.line_num
            # Of cells that no column names, DictReader makes a list under None.
            if any(cell.strip() for cell in row.pop(None, ())):
                hint = f"put a text with {delimiter!r} inside into double quotes"
                if len(names) == 1 and ";" in names[0]:
                    hint = "its cells are parted by semicolons: write commas, and points in numbers"
                text = f"has more cells than there are columns ({len(row)})"
                raise DataError(text, path=file, record=f"line {last}", hint=hint)
            yield Row(row, last)
    except csv.Error as error:
        text = f"cannot be read as cells: {error}"
        hint = "close double quotes, and write those inside a cell twice"
        raise DataError(text, path=file, record=f"line {last + 1}", hint=hint) from error


def _check_names(names: Sequence[str], file: Path) -> None:
    """Checks that no two columns have one name: a row would keep the last of them."""
    for index, name in enumerate(names):
        if name and name in names[:index]:
            text = f"has two columns {name!r}"
            raise DataError(text, path=file, record="line 1", hint="rename or drop one")


def _parquet_rows(file: Path) -> list[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        names = [name.strip() for name in pq.read_schema(file).names]
        _check_names(names, file)
        table = pq.read_table(file).rename_columns(names)
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            "cannot be read as Parquet: it is damaged, or another kind of file",
            path=file,
            hint="write it again, or give .csv or .tsv",
        ) from error
    for field in table.schema:
        if pa.types.is_nested(field.type) or pa.types.is_binary(field.type):
            raise DataError(
                f"column {field.name!r} holds {field.type}: text or a number is needed",
                path=file,
                hint="join lists to one text, names with ; between them",
            )
    rows = table.to_pylist()
    return [
        Row({key: "" if v is None else str(v) for key, v in row.items()}, line)
        for line, row in enumerate(rows, 2)
    ]


def _kind_of(file: Path) -> str:
    kind = file.suffix.lower()
    if kind not in SUFFIXES:
        raise DataError(
            f"is of unknown type {kind or '(no suffix)'}",
            path=file,
            hint="give .csv, .tsv or .parquet",
        )
    return kind
