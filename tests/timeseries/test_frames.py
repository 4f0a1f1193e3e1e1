"""Reading long and wide frames, and what is refused."""

import gzip
import re
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longseq.core.errors import ConfigError, DataError
from longseq.core.tables import write_frame
from longseq.timeseries.data.frames import Panel, Roles, panel_of, read_panel


def to_long(wide: pd.DataFrame) -> pd.DataFrame:
    long = wide.melt("date", var_name="unique_id", value_name="y").rename(columns={"date": "ds"})
    return long[["unique_id", "ds", "y"]]


def test_long_and_wide_csv_and_parquet_are_the_same_panel(make_wide, tmp_path) -> None:
    wide = make_wide(50, 3)
    frames = {"wide": wide, "long": to_long(wide)}
    panels = []
    for name, frame in frames.items():
        write_frame(frame, tmp_path / f"{name}.csv")
        write_frame(frame, tmp_path / f"{name}.parquet")
        panels += [read_panel(tmp_path / f"{name}{kind}") for kind in (".csv", ".parquet")]
    (tmp_path / "wide.csv.gz").write_bytes(gzip.compress((tmp_path / "wide.csv").read_bytes()))
    panels.append(read_panel(tmp_path / "wide.csv.gz"))
    for panel in panels:
        assert panel.ids == ("s0", "s1", "s2") and len(panel) == 50 and panel.season() == 24
        np.testing.assert_allclose(panel.values, wide.iloc[:, 1:].to_numpy(), rtol=1e-12)
        assert (panel.ds == pd.DatetimeIndex(wide["date"])).all()


def test_a_table_without_header_or_times_counts_its_rows(tmp_path) -> None:
    (tmp_path / "rates.txt").write_text("1.0,2.0\n1.5,2.5\n1.25,2.25\n")
    panel = read_panel(tmp_path / "rates.txt")
    assert panel.ids == ("0", "1") and list(panel.ds) == [0, 1, 2] and panel.season() == 1
    assert list(panel.future(3, 2)) == [3, 4] and list(panel.future(2, 2)) == [2, 3]


@pytest.mark.parametrize(
    ("freq", "season"),
    [("15min", 96), ("h", 24), ("D", 7), ("W", 52), ("MS", 12), ("QS", 4), ("3h", 8)],
)
def test_season_and_future_follow_the_step(freq, season, make_wide, tmp_path) -> None:
    wide = make_wide(30, 1, freq)
    write_frame(wide.head(20), tmp_path / "a.csv")
    panel = read_panel(tmp_path / "a.csv")
    assert panel.season() == season
    assert (panel.future(15, 15) == pd.DatetimeIndex(wide["date"].iloc[15:])).all()
    assert (panel.future(22, 3) == pd.DatetimeIndex(wide["date"].iloc[22:25])).all()


def test_missing_values_and_rows_are_refused_or_carried_forward(make_wide, tmp_path) -> None:
    wide = make_wide(30, 2)
    wide.loc[5, "s1"] = np.nan
    path = tmp_path / "gaps.csv"
    wide.drop(index=[10, 11]).to_csv(path, index=False)
    with pytest.raises(
        DataError, match=r"gaps\.csv: s0 at 2020-01-01 10:00:00: value missing \(5 of 60"
    ):
        read_panel(path, "error")
    panel = read_panel(path)
    assert panel.missing == 5 and len(panel) == 30 and np.isnan(panel.values[5, 1])
    carried = panel.carried()
    assert carried[5, 1] == pytest.approx(wide["s1"][4])
    np.testing.assert_allclose(carried[10:12, 0], wide["s0"][9])
    wide.loc[:2, "s0"] = np.nan
    wide.to_csv(path, index=False)
    panel = read_panel(path)
    assert list(panel.starts) == [3, 0] and panel.missing == 1
    assert panel.carried()[0, 0] == pytest.approx(wide["s0"][3])


def bad(name: str, wide: pd.DataFrame) -> tuple[pd.DataFrame | bytes, str]:
    """A broken file, and what its message must say."""
    long = to_long(wide)
    late = wide.copy()
    words = wide.astype({"s0": object}).replace({"s0": {wide["s0"][3]: "oops"}})
    soon = wide.astype({"date": str}).replace({"date": {str(wide["date"][2]): "soon"}})
    late.loc[7, "date"] = late["date"][6] + pd.Timedelta(minutes=17)
    cases: dict[str, tuple[pd.DataFrame | bytes, str]] = {
        "empty": (b"", "is empty"),
        "header": (b"date,a\n", "no rows"),
        "binary": (bytes(range(128, 256)) * 9, "bad.csv: is text in another encoding"),
        "text": (words, "line 5: 's0' is 'oops'"),
        "infinite": (wide.replace({"s0": {wide["s0"][3]: np.inf}}), "line 5: 's0' is inf"),
        "no time": (wide.rename(columns={"date": "when"}), "no time column"),
        "no series": (wide[["date"]], "no series"),
        "bad time": (soon, "line 4"),
        "unsorted": (
            wide.iloc[[0, 1, 3, 2, 4]],
            "line 5: the time 2020-01-01 02:00:00 comes after",
        ),
        "duplicate": (
            wide.iloc[[0, 1, 1, 2, 3]],
            "line 4: the time 2020-01-01 01:00:00 is a duplicate",
        ),
        "irregular": (late, "no multiple"),
        "long without y": (long.rename(columns={"y": "value"}), "no column 'y'"),
        "long duplicate": (
            pd.concat([long, long.tail(1)]),
            "(s1): the time 2020-01-01 11:00:00 is a dup",
        ),
        "long without id": (
            long.replace({"unique_id": {"s1": None}}),
            "line 14: 'unique_id' is empty",
        ),
        "too short": (wide.head(2), "at least 3"),
    }
    return cases[name]


BAD = [
    *(
        "empty",
        "header",
        "binary",
        "text",
        "infinite",
        "no time",
        "no series",
        "bad time",
        "unsorted",
    ),
    *("duplicate", "irregular", "long without y", "long duplicate", "long without id", "too short"),
]


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_refused_with_file_and_record(case, make_wide, tmp_path) -> None:
    content, message = bad(case, make_wide(12, 2))
    path = tmp_path / "bad.csv"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        content.to_csv(path, index=False)
    with pytest.raises(DataError) as caught:
        read_panel(path)
    assert "bad.csv" in str(caught.value) and message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_truncated_gzip_damaged_parquet_and_other_types(make_wide, tmp_path) -> None:
    make_wide(300).to_csv(tmp_path / "a.csv", index=False)
    whole = gzip.compress((tmp_path / "a.csv").read_bytes())
    (tmp_path / "cut.csv.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 nothing")
    (tmp_path / "a.xlsx").write_bytes(b"PK")
    cases = {"cut.csv.gz": "truncated", "bad.parquet": "cannot be read", "a.xlsx": "unknown type"}
    for name, message in {**cases, "none.csv": "no such"}.items():
        with pytest.raises(DataError, match=message) as caught:
            read_panel(tmp_path / name)
        assert name in str(caught.value)


def test_series_are_selected_by_name(wide_csv) -> None:
    panel = read_panel(wide_csv)
    assert panel.select(["s1"]).ids == ("s1",)
    np.testing.assert_array_equal(panel.select(["s1", "s0"]).values, panel.values[:, ::-1])
    with pytest.raises(ConfigError, match="did you mean 's1'"):
        panel.select(["s1x"])


_ROWS = "unique_id,ds,y\na,2024-01-01,1\na,2024-01-02,2\na,2024-01-03,3\na,2024-01-04,4\n"


@pytest.mark.parametrize("spaced", ["unique_id, ds , y", "unique_id ,ds,y "])
@pytest.mark.parametrize("separator", [",", ";"])
def test_blanks_around_names_and_values_do_not_count(spaced, separator, tmp_path) -> None:
    text = _ROWS.replace("unique_id,ds,y", spaced).replace(",2024", ", 2024")
    (tmp_path / "a.csv").write_text(text.replace(",", separator))
    panel = read_panel(tmp_path / "a.csv")
    assert panel.ids == ("a",) and list(panel.values[:, 0]) == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", _ROWS.replace(",", "\t").encode(), "has fields between tabs, not commas.*tsv"),
        ("a.csv", _ROWS.replace(",", "|").encode(), "has fields between bars .*write it with com"),
        ("a.tsv", _ROWS.encode(), "has fields between commas, not tabs.*write it with tabs"),
        ("a.csv", _ROWS.encode("utf-16"), "is text in UTF-16, not in UTF-8.*save it as UTF-8"),
        ("a.csv", _ROWS.replace("a,", "ä,").encode("latin-1"), "not in UTF-8.*save it as UTF-8"),
        ("a.csv", _ROWS.encode() + b"a,2024-01-05", "line 6: 2 of 3 fields.*cut short"),
        ("a.csv", _ROWS.replace("-02,2", "-02").encode(), "line 3: 2 of 3 fields"),
        ("a.csv", _ROWS.replace(",", ";").encode() + b"a", "line 6: 1 of 3 fields"),
        ("a.csv.gz", gzip.compress(_ROWS.encode() + b"a,2024", mtime=0), "line 6: 2 of 3 fields"),
        (
            "a.csv",
            _ROWS.replace("\na", "\n1,a").encode(),
            "line 2: 4 fields, more in a record than the 3 of",
        ),
        ("a.csv", _ROWS.encode("utf-16-le"), "is text in UTF-16"),
        ("a.csv", gzip.compress(_ROWS.encode(), mtime=0), "packed by gzip .call it .csv.gz"),
        ("a.csv", b"PK\x03\x04" + bytes(9), "packed as a zip file, or is a workbook"),
        ("a.csv.gz", _ROWS.encode(), "not packed by gzip, as its name says"),
        ("a.csv", b"Sales\n2024\n\n" + _ROWS.encode(), "line 4: 3 fields, .* lines above it"),
        ("a.csv", _ROWS.encode() + b"a,2024-01-05,5,6\n", "line 6: 4 fields"),
        ("a.csv", _ROWS.encode() + b'"a,2024-01-05,5\n', "line 6: 1 of 3 fields"),
        ("a.csv", b"ds,a,a\n2024-01-01,1,2\n", "two columns have the same name, 'a'"),
        ("a.csv", b"ds,a,\n2024-01-01,1,2\n2024-01-02,2,4\n", "column 3 has no name"),
        ("a.txt", b"1,2\n3\n5,6\n7,8\n", "line 2: 1 of 2 fields.*cut short"),
        ("a.txt", b"1,2\n3,4\n5,6,7\n7,8\n", "line 3: 3 fields, more in a record than the 2"),
        (
            "a.csv",
            b"Date,Time,kWh\n2024-01-01,00:00,1\n2024-01-01,01:00,2\n",
            "'Date' holds days and 'Time' times of the day, like 00:00 .join both in one column",
        ),
        ("a.csv", b"# logger\nds,y\n2024-01-01,1\n", "line 2: 2 fields, more .* lines above it"),
    ],
)
def test_text_that_would_be_read_as_something_else(name, content, words, tmp_path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=words):
        read_panel(tmp_path / name)


def test_columns_without_a_name_are_times_or_row_numbers_and_no_series(tmp_path) -> None:
    ds = pd.date_range("2024-01-01", periods=5)
    wide = pd.DataFrame({"ds": ds, "a": np.arange(5.0) ** 2, "b": 1.5})
    wide.to_csv(tmp_path / "numbered.csv")  # the index of pandas, 0 to 4, is the first column
    panel = read_panel(tmp_path / "numbered.csv")
    assert panel.ids == ("a", "b") and any("column 1 has no name" in one for one in panel.notes)
    pd.read_csv(tmp_path / "numbered.csv").to_csv(tmp_path / "twice.csv")
    assert read_panel(tmp_path / "twice.csv").ids == ("a", "b")
    wide.set_index("ds").rename_axis(None).to_csv(tmp_path / "index.csv")  # and of times
    panel = read_panel(tmp_path / "index.csv")
    assert panel.ids == ("a", "b") and (panel.ds == ds).all()
    (tmp_path / "comma.csv").write_text(wide.to_csv(index=False).replace("\n", ",\n"))
    assert read_panel(tmp_path / "comma.csv").ids == ("a", "b")


def test_the_way_out_can_be_pasted_into_a_shell(tmp_path) -> None:
    (tmp_path / "a.csv").write_text("Sale day,Sales in EUR\n2024-01-01,1\n2024-01-02,2\n")
    with pytest.raises(DataError, match=r"--time 'Sale day', --data\.time 'Sale day' in fit"):
        read_panel(tmp_path / "a.csv")


def test_empty_fields_and_lines_stay_missing_values(tmp_path) -> None:
    (tmp_path / "a.csv").write_text(_ROWS.replace("-02,2", "-02,").replace("\n", "\r\n") + "\r\n")
    panel = read_panel(tmp_path / "a.csv")
    assert list(np.isnan(panel.values[:, 0])) == [False, True, False, False]


def test_output_is_csv_or_parquet_and_whole(tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"out\.txt"):
        write_frame(pd.DataFrame({"a": [1]}), tmp_path / "out.txt")
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=25, deadline=None)
@given(
    values=st.lists(st.floats(-1e6, 1e6, allow_nan=False), min_size=3, max_size=20),
    holes=st.sets(st.integers(1, 19)),
)
def test_carrying_forward_never_looks_ahead(values, holes, tmp_path_factory) -> None:
    """Every filled value is the last one before it, and a row's value never depends on later
    rows."""
    path = tmp_path_factory.mktemp("fill") / "a.csv"
    known = [None if i in holes else value for i, value in enumerate(values)]
    times = pd.date_range("2021", periods=len(values), freq="h")
    pd.DataFrame({"ds": times, "a": known}).to_csv(path, index=False)
    if len(holes) >= len(values) - 1 or all(value is None for value in known[1:]):
        return
    panel: Panel = read_panel(path, "ffill")
    last = 0.0
    for row, value in enumerate(known):
        last = last if value is None else value
        assert panel.carried()[row, 0] == pytest.approx(last)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.array([1 + 2j, 3, 4]), "'y' is of complex128, numbers are needed"),
        (pd.to_timedelta([1, 2, 3], "h"), "'y' is of timedelta64"),
        (pd.date_range("2024-01-01", periods=3), "'y' is of datetime64"),
        (pd.Series([1, 2 + 1j, 3], dtype=object), "'y' is of complex, a finite number is needed"),
        (pd.Series([1, pd.Timedelta("1h"), 3], dtype=object), "'y' is of Timedelta"),
        (pd.Series([[1], [2], [3]]), "'y' is of list, a finite number is needed"),
        (pd.arrays.IntervalArray.from_breaks([0, 1, 2, 3]), "'y' is of interval"),
    ],
)
@pytest.mark.parametrize("role", ["y", "price"])
def test_values_that_are_no_numbers_are_refused(values, words, role) -> None:
    frame = pd.DataFrame({"ds": pd.date_range("2024-01-01", periods=3), "y": [1.0, 2.0, 3.0]})
    frame[role] = values
    roles = Roles(future=("price",)) if role == "price" else None
    with pytest.raises(DataError, match=re.escape(words.replace("'y'", f"{role!r}"))):
        panel_of(frame, 0, source="the frame", roles=roles)


@pytest.mark.parametrize("value", ["1.7976931348623157e308", "-1e200"])
def test_fill_values_whose_squares_overflow_are_refused_with_their_row(value, tmp_path) -> None:
    path = tmp_path / "daq.csv"
    path.write_text(f"ds,y\n2024-01-01,1\n2024-01-02,{value}\n2024-01-03,2\n")
    with pytest.raises(DataError, match=r"beyond 1e\+150") as found:
        read_panel(path)
    assert "daq.csv" in str(found.value) and "line 3" in str(found.value)


@pytest.mark.parametrize(
    "values",
    [
        pd.Series([1, 2, None], dtype="Int64"),
        pd.Series([Decimal("1"), 2.0, None], dtype=object),
        pd.Series(["1", "2", None]).astype("category"),
        pd.Series([np.float32(1), np.int8(2), pd.NA], dtype=object),
        pd.Series(["1", 2, np.nan], dtype=object),
    ],
)
def test_numbers_of_every_kind_are_read(values) -> None:
    frame = pd.DataFrame({"ds": pd.date_range("2024-01-01", periods=3), "y": values})
    panel = panel_of(frame, 0, source="the frame")
    np.testing.assert_array_equal(panel.carried()[:, 0], [1, 2, 2])


def test_an_index_that_names_its_roles_is_read() -> None:
    days = pd.date_range("2024-01-01", periods=4)
    long = pd.DataFrame({"unique_id": ["a"] * 4 + ["b"] * 4, "ds": [*days, *days], "y": range(8)})
    expected = panel_of(long, source="plain")
    for index in (["unique_id", "ds"], ["unique_id"], ["ds"]):
        found = panel_of(long.set_index(index), source="indexed")
        assert found.ids == expected.ids
        assert np.array_equal(found.values, expected.values)
    odd = long[["ds", "y"]][:4].set_index(pd.Index([3, 1, 4, 1], name="row"))
    assert list(panel_of(odd, source="rows").ids) == ["y"]


def test_columns_of_several_names_and_days_that_come_twice_are_named() -> None:
    ds = pd.date_range("2024-04-01", periods=5)
    df = pd.DataFrame({"unique_id": "a", "ds": ds, "y": np.arange(5.0)})
    with pytest.raises(DataError, match="its columns have 2 names each"):
        panel_of(df.pivot(index="ds", columns="unique_id", values=["y"]), source="a")
    with pytest.raises(DataError, match=r"is a duplicate \(sort by time"):  # no clock went back
        panel_of(pd.concat([df, df.tail(1)]), source="a")


def test_suffixes_in_capitals_are_the_same(tmp_path) -> None:
    (tmp_path / "A.CSV").write_text(_ROWS)
    (tmp_path / "A.CSV.GZ").write_bytes(gzip.compress(_ROWS.encode()))
    plain, packed = (read_panel(tmp_path / name) for name in ("A.CSV", "A.CSV.GZ"))
    np.testing.assert_array_equal(plain.values, packed.values)


@pytest.mark.parametrize(
    "form, header",
    [
        ("{:,.2f}", "Ventes;\u202f;,"),  # of French, Swiss and old spreadsheets
        ("{:,.2f}", "Ventes;\xa0;,"),
        ("{:,.2f}", "Ventes; ;,"),
        ("{:,.2f}", "Umsatz;\u2019;."),
        ("{:,.2f}", "Umsatz;';."),
    ],
)
def test_thousands_between_spaces_and_apostrophes(form, header, tmp_path) -> None:
    name, thousands, mark = header.split(";")
    values = np.array([1234567.5, -12345.25, 7.0, 999.5])
    texts = [form.format(one).replace(",", "#").replace(".", mark) for one in values]
    texts = [one.replace("#", thousands).replace("-", "\u2212") for one in texts]
    rows = [f"{day:02}.01.2024;{one}" for day, one in enumerate(texts, 1)]
    (tmp_path / "a.csv").write_text(f"Datum;{name}\n" + "\n".join(rows), encoding="utf-8")
    np.testing.assert_allclose(read_panel(tmp_path / "a.csv").values[:, 0], values)


@pytest.mark.parametrize("text", ["1 23", "12 3456", "1' 234", "$1,234", "(12.5)", "12 %", "1 2 3"])
def test_other_numbers_in_texts_are_no_numbers(text) -> None:
    frame = pd.DataFrame({"ds": range(4), "y": ["1", "2", text, "3"]})
    with pytest.raises(DataError, match=f"line 4: 'y' is .{re.escape(text)}"):
        panel_of(frame, source="a.csv")
    # Nor are they names, of a long frame.
    with pytest.raises(DataError, match="a finite number is needed"):
        panel_of(frame.assign(y=[text] * 4), source="a.csv")


def test_numbers_that_stand_for_nothing_measured_are_noted() -> None:
    y = np.array([1.5, 2.0, -999.0, 3.0, -999.0])
    panel = panel_of(pd.DataFrame({"ds": range(5), "y": y}), source="a.csv")
    assert "y is -999 in 2 rows, and 1.5 to 3 in all others" in panel.notes[0]
    plain = [np.abs(y), np.arange(5) * 99.0, -np.abs(y) - 90, np.full(5, -999.0), y + 999]
    for values in plain[1:]:
        frame = pd.DataFrame({"ds": range(5), "y": values})
        assert panel_of(frame, source="a.csv").notes == ()
    frame = pd.DataFrame({"ds": range(5), "y": plain[0]})
    assert "y is 999 in 2 rows" in panel_of(frame, source="a.csv").notes[0]


def test_feather_is_read_and_other_types_have_a_way_out(make_wide, tmp_path) -> None:
    wide = make_wide(50, 3)
    wide.to_feather(tmp_path / "a.feather")
    np.testing.assert_allclose(read_panel(tmp_path / "a.feather").values, wide.iloc[:, 1:])
    ways = {"a.xlsx": "read_excel", "a.csv.zip": "unpack it", "a.jsonl": "read_json"}
    for name, words in ways.items():
        (tmp_path / name).write_bytes(b"PK")
        with pytest.raises(DataError, match=f"{name}: is of unknown type .*{words}"):
            read_panel(tmp_path / name)
    (tmp_path / "bad.feather").write_bytes(b"ARROW")
    with pytest.raises(DataError, match=r"bad\.feather: cannot be read as \.feather"):
        read_panel(tmp_path / "bad.feather")
    (tmp_path / "s.csv").write_text("sep=;\nDatum;y\n01.01.2024;1,5\n")
    with pytest.raises(DataError, match=r"s\.csv: line 1: 'sep=;' is for a spreadsheet"):
        read_panel(tmp_path / "s.csv")
