"""Split protocols: which rows are targets, without overlap."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longseq.core.errors import ConfigError, DataError
from longseq.timeseries.data.frames import Panel, read_panel
from longseq.timeseries.data.protocols import Protocol, list_protocols, load_protocol


def panel_of(rows: int, freq: str = "h") -> Panel:
    ds = pd.date_range("2020", periods=rows, freq=freq)
    return Panel(np.zeros((rows, 1)), ("a",), ds, pd.tseries.frequencies.to_offset(freq), "a.csv")


def test_the_packaged_protocols_are_read_and_name_their_quirks() -> None:
    assert list_protocols() == ["ett", "ratio", "rolling"]
    assert all(
        load_protocol(name).quirks and load_protocol(name).name == name for name in list_protocols()
    )


@pytest.mark.parametrize(
    ("horizon", "windows"), [(96, 2785), (192, 2689), (336, 2545), (720, 2161)]
)
def test_ett_counts_the_published_windows(horizon: int, windows: int) -> None:
    split = load_protocol("ett").split(panel_of(17420), 336, horizon)
    assert len(split.test.cutoffs(336, horizon)) == windows
    assert split.train.end == 8640 and split.valid.start == 8640 and split.test.start == 11520
    assert split.test.end == 14400  # the rest of the file is discarded
    # The same days in quarters of an hour.
    quarter = load_protocol("ett").split(panel_of(4 * 14400, "15min"), 336, horizon)
    assert [part.end for part in quarter] == [4 * part.end for part in split]


def test_windows_of_the_real_file(etth1) -> None:
    split = load_protocol("ett").split(read_panel(etth1), 336, 96)
    assert len(split.test.cutoffs(336, 96)) == 2785


def test_ratio_rounds_as_published() -> None:
    split = load_protocol("ratio").split(panel_of(7588), 96, 96)
    assert (split.train.end, split.valid.end, split.test.end) == (5311, 6071, 7588)


def test_rolling_ends_with_the_file_and_its_test_targets_do_not_overlap() -> None:
    split = load_protocol("rolling").split(panel_of(1000), 48, 24)
    assert list(split.test.cutoffs(48, 24)) == [880, 904, 928, 952, 976]
    assert list(split.valid.cutoffs(48, 24)) == [760, 784, 808, 832, 856]
    assert split.train.cutoffs(48, 24)[-1] + 24 == 760


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(60, 3000),
    context=st.integers(1, 60),
    horizon=st.integers(1, 40),
    kind=st.sampled_from(["ratio", "rolling"]),
    step=st.one_of(st.none(), st.integers(1, 50)),
)
def test_targets_of_a_part_never_reach_the_next(rows, context, horizon, kind, step) -> None:
    protocol = Protocol(
        "p", kind, 0.7, 0.1 if kind == "ratio" else 3, 0.2 if kind == "ratio" else 4, step
    )
    try:
        split = protocol.split(panel_of(rows), context, horizon)
    except DataError:
        return
    ends = []
    for part in split:
        cutoffs = part.cutoffs(context, horizon)
        assert cutoffs[0] >= context and cutoffs[0] >= part.start
        ends.append((cutoffs[0], cutoffs[-1] + horizon))
    assert ends[0][1] <= ends[1][0] and ends[1][1] <= ends[2][0] and ends[2][1] <= rows
    if kind == "rolling":
        assert [len(part.cutoffs(context, horizon)) for part in split[1:]] == [3, 4]
        assert ends[2][1] == rows


def test_what_does_not_fit_is_refused(tmp_path) -> None:
    with pytest.raises(DataError, match=r"a\.csv: has 1000 rows, protocol 'ett' needs 14400"):
        load_protocol("ett").split(panel_of(1000), 96, 24)
    with pytest.raises(DataError, match="leave no validation window"):
        load_protocol("ratio").split(panel_of(300), 96, 96)
    undated = Panel(np.zeros((99, 1)), ("a",), pd.Index(np.arange(99)), 1, "a.txt")
    with pytest.raises(DataError, match="no dates"):
        load_protocol("ett").split(undated, 9, 3)
    with pytest.raises(ConfigError, match="did you mean 'ratio'"):
        load_protocol("ratios")
    for text, message in (
        ("kind: rato\ntrain: .7\nvalid: .1\ntest: .2\n", "did you mean 'ratio'"),
        ("kind: ratio\ntrain: .7\nvalid: .1\ntest: .3\n", "add up to 1"),
        ("kind: ratio\ntrian: .7\n", "did you mean 'train'"),
        ("kind: rolling\nvalid: 2\ntest: 2.5\n", "whole number"),
        ("kind: rolling\nvalid: 2\ntest: 2\nstep: 0\n", "step"),
        ("- 1\n", "a mapping"),
        ("a: [", "not valid YAML"),
    ):
        path = tmp_path / "p.yaml"
        path.write_text(text)
        with pytest.raises(ConfigError, match=message):
            load_protocol(str(path))
