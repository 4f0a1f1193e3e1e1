"""Column roles are said, not guessed; ragged panels are read as they are."""

import time

import numpy as np
import pandas as pd
import pytest

from longseq.core.errors import ConfigError, DataError
from longseq.timeseries.data.frames import Roles, panel_of, read_panel


def ragged(spans: dict[str, tuple[int, int]], drop: tuple[int, ...] = ()) -> pd.DataFrame:
    """Daily series, each from one row to another, whose value is the row."""
    days = pd.date_range("2020-01-01", periods=max(end for _, end in spans.values()))
    parts = [
        pd.DataFrame({"unique_id": name, "ds": days[a:b], "y": np.arange(a, b, dtype=float)})
        for name, (a, b) in spans.items()
    ]
    return pd.concat(parts, ignore_index=True).drop(index=list(drop))


def test_series_begin_and_end_where_they_like():
    panel = panel_of(ragged({"a": (0, 40), "b": (25, 30), "c": (10, 60)}, (3, 4)), source="m")
    assert len(panel) == 60 and panel.ids == ("a", "b", "c")
    assert list(panel.starts) == [0, 25, 10] and list(panel.ends) == [40, 30, 60]
    assert panel.missing == 2 and panel.observed.sum() == 38 + 5 + 50
    assert panel.values[27, 1] == 27 and np.isnan(panel.values[30, 1])


@pytest.mark.parametrize("items", [1, 2])
def test_names_of_other_packages_are_known(items, tmp_path):
    spans = {str(7 + i): (0, 30) for i in range(items)}
    frame = ragged(spans).assign(promotion=1)
    frame.columns = ["item_id", "timestamp", "target", "promotion"]
    frame.to_csv(tmp_path / "a.csv", index=False)
    panel = read_panel(tmp_path / "a.csv")
    assert panel.ids == tuple(spans) and len(panel) == 30
    assert panel.notes == ("columns not used: promotion",)


def test_columns_are_named_by_the_user():
    frame = ragged({"a": (0, 9), "b": (0, 9)}).set_axis(["shop", "day", "sold"], axis=1)
    panel = panel_of(frame, source="m", roles=Roles("shop", "day", "sold"))
    assert panel.ids == ("a", "b")
    with pytest.raises(DataError, match="no column 'sole'; did you mean 'sold'"):
        panel_of(frame, source="m", roles=Roles("shop", "day", "sole"))
    with pytest.raises(DataError, match="--target"):
        panel_of(frame, source="m", roles=Roles("shop", "day"))
    wide = pd.DataFrame({"ds": pd.date_range("2020", periods=5), "load": 1.0, "holiday": 0})
    both = panel_of(wide, source="m")
    assert both.ids == ("load", "holiday") and "every column is a series" in both.notes[0]
    one = panel_of(wide, source="m", roles=Roles(target="load"))
    assert one.ids == ("load",) and "columns not used: holiday" in one.notes[0]
    # A frame with the usual name of a target and no names of series has one series.
    assert panel_of(wide.rename(columns={"load": "y"}), source="m").ids == ("y",)


def test_many_series_take_time_in_proportion():
    days = pd.date_range("2020-01-01", periods=20)

    def seconds(series: int) -> float:
        frame = pd.DataFrame(
            {
                "unique_id": np.repeat(np.arange(series), 20),
                "ds": np.tile(days, series),
                "y": 1.0,
            }
        )
        start = time.process_time()
        assert panel_of(frame, source="m").values.shape == (20, series)
        return time.process_time() - start

    few, many = seconds(1_000), seconds(16_000)
    # Sixteen times as many; a scan of all rows per series would take 256 times as long.
    assert many < 100 * max(few, 0.005)


def test_columns_of_other_names_are_recognised_in_the_message(tmp_path):
    frame = ragged({"S1": (0, 9), "S2": (3, 9)}).set_axis(["shop", "date", "sold"], axis=1)
    with pytest.raises(DataError, match=r"'shop' holds names, like 'S1'.*--id shop --target sold"):
        panel_of(frame, source="m")
    # Texts beside the one series that is named are columns not used.
    one = frame[frame["shop"] == "S1"]
    assert panel_of(one, source="m", roles=Roles(target="sold")).ids == ("sold",)
    frame = frame.rename(columns={"date": "begin"}).astype({"begin": str})
    with pytest.raises(DataError, match="name it: --time begin"):
        panel_of(frame, source="m")


def test_a_column_of_empty_texts_or_decimal_commas_holds_no_names():
    frame = pd.DataFrame({"ds": pd.date_range("2020", periods=4), "a": ["1,5", "-", "n/a", ",5"]})
    assert panel_of(frame, source="m").missing == 2


@pytest.mark.parametrize("told", ["drop", Roles(zone="Europe/Berlin")])
def test_a_wrong_word_for_missing_values_and_roles_in_its_place_are_refused(told, tmp_path):
    ragged({"a": (0, 9)}).to_csv(tmp_path / "a.csv", index=False)
    with pytest.raises(ConfigError, match="missing is ffill or error"):
        read_panel(tmp_path / "a.csv", told)
