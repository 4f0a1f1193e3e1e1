"""Tables by suffix: equal content in every kind, whole or not at all, and one line for any other
suffix."""

import csv
import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from longseq.core.errors import ConfigError, DataError
from longseq.core.tables import (
    DELIMITERS,
    SUFFIXES,
    arrow_column,
    check_table,
    read_batches,
    read_rows,
    write_batches,
    write_frame,
    write_rows,
)

COLUMNS = {"name": "", "count": "d", "value": ".3f"}
ROWS = [["a, b", 3, 0.12345], ["tab\there", None, None], ["", 0, float("nan")]]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_rows_come_back(suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"t{suffix}"
    write_rows(file, COLUMNS, ROWS)
    rows = read_rows(file)
    assert [row["name"] for row in rows] == ["a, b", "tab\there", ""]
    assert [row["count"] for row in rows] == ["3", "", "0"]
    assert rows[0]["value"] == ("0.12345" if suffix == ".parquet" else "0.123")
    assert rows[1]["value"] == "" and rows[2]["value"] == "nan"
    if suffix != ".parquet":  # as spreadsheets save text
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
        assert read_rows(file) == rows
    write_rows(file, COLUMNS, [])
    assert read_rows(file) == []
    write_frame(pd.DataFrame({"a": [1, 2]}), file)
    assert read_rows(file) == [{"a": "1"}, {"a": "2"}]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_batches_are_streamed(suffix: str, tmp_path: Path) -> None:
    text = pa.dictionary(pa.int32(), pa.string())
    schema = pa.schema([("base", text), ("score", pa.float32())], metadata={"k": "v"})
    file, asked = tmp_path / f"t{suffix}", []

    def batches(broken: bool):
        for number in range(3):
            asked.append(number)
            if broken and number == 2:
                raise OSError("disk full")
            base = pa.DictionaryArray.from_arrays(
                pa.array([0, 1], pa.int32()), pa.array(["A", "C"])
            )
            yield pa.Table.from_arrays([base, pa.array([0.1, None], pa.float32())], schema=schema)

    write_batches(file, schema, batches(False))
    kinds = {"base": pa.string(), "score": pa.float32()}
    found = pa.Table.from_batches(list(read_batches(file, kinds)))
    assert found["base"].to_pylist() == ["A", "C"] * 3 and found["score"].null_count == 3
    assert found["score"][0].as_py() == pa.scalar(0.1, pa.float32()).as_py()
    assert suffix != ".parquet" or pq.read_schema(file).metadata[b"k"] == b"v"
    before = file.read_bytes()
    with pytest.raises(OSError, match="disk full"):
        write_batches(file, schema, batches(True))
    assert file.read_bytes() == before and list(tmp_path.iterdir()) == [file]
    with pytest.raises(DataError, match="cannot be read as a table with absent"):
        list(read_batches(file, {"absent": pa.string()}))


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_text_is_quoted_where_it_must_be(suffix: str, tmp_path: Path) -> None:
    schema = pa.schema([("name", pa.string()), ("a, b\t", pa.int64())])
    names = [["chr1", "chr2"], ["x,y", "plain"], ["tab\there", 'quote"'], ["chr3", "two\nlines"]]
    tables = [pa.Table.from_arrays([pa.array(one), [1, 2]], schema=schema) for one in names]
    file = tmp_path / f"t{suffix}"
    write_batches(file, schema, tables)
    assert [row["name"] for row in read_rows(file)] == [*itertools.chain(*names)]
    text = file.read_text()
    end = DELIMITERS[suffix]
    assert text.startswith(f'name{end}"a, b\t"\nchr1{end}1\nchr2{end}2\n')
    assert ('"x,y"' in text) == (suffix == ".csv")


def test_other_suffixes_are_refused_in_one_line(tmp_path: Path, monkeypatch) -> None:
    for name in ("t.txt", "t", "t.csv.gz"):
        with pytest.raises(ConfigError, match=r"a table must end in \.csv, \.tsv or \.parquet"):
            check_table(tmp_path / name)
    (tmp_path / "t.dat").write_text("a")
    with pytest.raises(DataError, match=r"unknown type \.dat \(give"):
        read_rows(tmp_path / "t.dat")
    (tmp_path / "t.csv").write_bytes(b"a\n\xff\n")
    with pytest.raises(DataError, match="is not a CSV file in UTF-8"):
        read_rows(tmp_path / "t.csv")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install pyarrow"):
        check_table("t.parquet")
    assert check_table("T.CSV") == ".csv"


@pytest.mark.parametrize("content", [b"PAR1xxxx", b"file,labels\n"])
def test_a_damaged_parquet_file_is_named(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "t.parquet"
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"t\.parquet: cannot be read as Parquet.*write it again"):
        read_rows(file)


@pytest.mark.parametrize("value", [["cat", "dog"], {"a": 1}, b"cat"])
def test_lists_and_bytes_are_not_taken_for_text(value: object, tmp_path: Path) -> None:
    file = tmp_path / "t.parquet"
    pq.write_table(pa.table({"file": ["a"], "labels": [value]}), file)
    with pytest.raises(DataError, match=r"column 'labels' holds .*text or a number is needed"):
        read_rows(file)


@pytest.mark.parametrize(("suffix", "cell"), [(".csv", ","), (".tsv", "\t")])
def test_cells_that_no_column_names_are_refused(suffix: str, cell: str, tmp_path: Path) -> None:
    file = tmp_path / f"t{suffix}"
    file.write_text(cell.join(["file", "labels"]) + "\n" + cell.join(["a", "cat", ""]) + "\n")
    assert read_rows(file) == [
        {"file": "a", "labels": "cat"}
    ]  # a delimiter at the end says nothing
    with file.open("a") as stream:
        stream.write(cell.join(["b", "cat", "dog"]) + "\n")
    with pytest.raises(DataError, match=r"line 3: has more cells than there are columns \(2\)"):
        read_rows(file)


@pytest.mark.parametrize("head", ["a,b,a", "a,b, a "])
def test_two_columns_of_one_name_are_refused(head: str, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(f"{head}\n1,2,3\n")
    with pytest.raises(DataError, match=r"line 1: has two columns 'a' \(rename or drop one\)"):
        read_rows(path)
    path.write_text("a,b,,\n1,2,,\n")  # cells that nothing names may be empty
    assert len(read_rows(path)) == 1


@pytest.mark.parametrize("row", ['b,"x', 'b,"x\nc,y\nd,z'])
def test_an_open_quote_does_not_swallow_the_rows_behind_it(row: str, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(f"name,label\na,w\n{row}\n")
    with pytest.raises(DataError, match=r"line 3: cannot be read as cells: .*close double quotes"):
        read_rows(path)


def test_a_cell_may_be_a_long_sequence(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("name,sequence\na," + "ACGT" * 50_000 + "\n")
    before = csv.field_size_limit()
    assert len(read_rows(path)[0]["sequence"]) == 200_000
    assert csv.field_size_limit() == before


def test_blanks_round_names_and_before_cells_do_not_count(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('name , label\na, "x, y"\n')
    assert read_rows(path) == [{"name": "a", "label": "x, y"}]


def test_rows_know_their_line(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('name,label\n\na,x\nb,"two\nlines"\nc,z\n')
    assert [row.line for row in read_rows(path)] == [3, 5, 6]


def test_cells_parted_by_semicolons_are_named(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("year;co2\n2000;1,5\n")
    with pytest.raises(DataError, match=r"line 2: .* parted by semicolons"):
        read_rows(path)


def test_two_columns_of_one_name_in_parquet_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table([pa.array([1]), pa.array([2])], names=["a", "a"]), path)
    with pytest.raises(DataError, match="has two columns 'a'"):
        read_rows(path)


def test_columns_for_arrow_are_those_of_pyarrow_without_pandas() -> None:
    for values in ([], ["chr1", "", "Ä b\t"], np.arange(3), np.array([0.5, -1e30], np.float32)):
        assert arrow_column(values).equals(pa.array(values, None if len(values) else pa.string()))
    code = "from longseq.core.tables import arrow_column; import sys, numpy\n"
    code += "arrow_column(['a']), arrow_column(numpy.ones(2)); sys.exit('pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
