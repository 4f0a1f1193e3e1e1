"""Dates as text: nothing is filled in from today, and no order of day and month is guessed."""

import datetime as dt
import warnings

import numpy as np
import pandas as pd
import pytest

from longseq.core.errors import ConfigError, DataError
from longseq.timeseries import Forecaster
from longseq.timeseries.data.frames import Roles, panel_of, read_panel

DAYS = pd.date_range("2024-01-01", periods=100)


def read(times, **roles):
    frame = pd.DataFrame({"ds": times, "y": np.arange(float(len(times)))})
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # none of pandas reaches the user
        return panel_of(frame, source="a.csv", roles=Roles(**roles))


@pytest.mark.parametrize(
    "times",
    [
        ["Jan", "Feb", "Mar", "Apr"],
        ["1/1", "1/2", "1/3", "1/4"],
        ["T1", "T2", "T3", "T4"],
        ["0:00", "1:00", "2:00", "3:00"],
        ["Jan-24", "Feb-24", "Mar-24", "Apr-24"],
        ["now", "today", "tomorrow", "later"],
        ["2024-01-01T10:00:00 CET", "2024-01-01T11:00:00 CET", "2024-01-01T12:00:00 CET"],
        ["2024-01-01 10:00 CET+01:00", "2024-01-01 11:00 CET+01:00", "2024-01-01 12:00 CET+01:00"],
        [dt.time(hour) for hour in range(4)],
        [0.5, 1.5, 2.5, 3.5],
        [None, "2024-01-01", "2024-01-02"],
        ["", "2024-01-01", "2024-01-02"],
    ],
)
def test_a_date_without_its_year_or_month_is_refused(times):
    with pytest.raises(DataError, match=r"a\.csv: line 2: 'ds' is .*(is needed).*year and month"):
        read(times)


@pytest.mark.parametrize("date", ["2024-01-05", "05.01.2024", "5 Jan 2024"])
@pytest.mark.parametrize("zone", ["+01:00", " UTC+1", " UTC+01:00", "GMT+0100", " gmt+01"])
def test_utc_and_an_offset_is_east_of_it(date, zone):
    # pandas takes it for POSIX's UTC+1, which is west: 10:00 became 12:00.
    roles = {"date_order": "dmy"} if date[2] == "." else {}
    hours = pd.date_range("2024-01-05 10:00", periods=3, freq="h", tz="+01:00")
    assert (read([f"{date} {hour}:00{zone}" for hour in (10, 11, 12)], **roles).ds == hours).all()


@pytest.mark.parametrize("form", ["{}-W{:02}", "{}W{:02}", "{}-W{:02}-1", "{}W{:02}1"])
def test_weeks(form):
    mondays = pd.date_range("2020-11-30", periods=12, freq="7D")  # 2020 has 53 weeks
    weeks = [form.format(*day.isocalendar()[:2]) for day in mondays]
    panel = read(weeks)
    assert (panel.ds == mondays).all() and panel.season() == 52
    with pytest.raises(DataError, match="line 4: 'ds' is '2021-W53'"):
        read(["2021-W51", "2021-W52", "2021-W53", "2022-W01"])


def test_weeks_that_pandas_wrote_as_periods():
    weeks = pd.period_range("2023-12-04", periods=12, freq="W-SUN")
    assert (read(weeks.astype(str)).ds == weeks.to_timestamp()).all()
    with pytest.raises(DataError, match="line 3: 'ds' is '2024-01-08/x'"):
        read(["2024-01-01/2024-01-07", "2024-01-08/x", "2024-01-15/2024-01-21"])


@pytest.mark.parametrize("mark", "-/")
def test_fiscal_years_are_no_months(mark):
    years = [f"{year}{mark}{(year + 1) % 100:02}" for year in range(2001, 2011)]
    with pytest.raises(DataError, match=r"'2001.02' and '2002.03', are years.*2009-04-01"):
        read(years)
    months = [f"2001{mark}{month:02}" for month in range(2, 11)]
    assert len(read(months)) == 9


@pytest.mark.parametrize("odd", ["Jan", "1/3", "00:00", "3", "02/03/2024"])
def test_one_date_that_lacks_something_names_its_row(odd):
    with pytest.raises(DataError, match=f"line 4: 'ds' is '{odd}'"):
        read(["2024-01-01", "2024-01-02", odd, "2024-01-04"])
    with pytest.raises(DataError, match="line 4: "):
        read(["2024-01-01T00:00Z", "2024-01-02T00:00Z", "00:00Z", "2024-01-04T00:00Z"])


def test_times_of_day_in_parquet_are_refused(tmp_path):
    table = pd.DataFrame({"ds": [dt.time(hour) for hour in range(5)], "y": 1.0})
    table.to_parquet(tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"row 0: 'ds' is 00:00:00, a date and time"):
        read_panel(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    "form",
    [
        *("%Y-%m-%d", "%Y/%m/%d", "%Y.%m.%d", "%Y %m %d", "%Y%m%dT%H%M", "%Y-%m-%d %I:%M %p"),
        *("%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y", "%m/%d/%Y %I:%M %p", "%d-%m-%Y %H:%M", "%d %m %Y"),
        *("%d/%m/%y", "%m/%d/%y", "%y/%m/%d", "%d.%m.%y", "%y-%m-%d", "%d/%m/%y %H:%M"),
        *("%d-%b-%y", "%d%b%y", "%d %b %Y", "%b %d, %Y", "%A, %d %B %Y", "%a %b %d %H:%M:%S %Y"),
    ],
)
def test_whole_dates_are_read_in_the_order_that_the_column_tells(form):
    assert (read(DAYS.strftime(form).tolist()).ds == DAYS).all()


@pytest.mark.parametrize("form", ["{}Q{}", "{}-Q{}", "{} q{}"])
def test_quarters(form):
    quarters = [form.format(year, quarter) for year in (2022, 2023) for quarter in (1, 2, 3, 4)]
    assert (read(quarters).ds == pd.date_range("2022-01-01", periods=8, freq="QS")).all()
    assert read(["Q1 2024", "Q2 2024", "Q3 2024"]).ds[2] == pd.Timestamp("2024-07-01")


def test_an_order_that_cannot_be_told_is_refused_and_can_be_said():
    months = [f"01/{month:02d}/24" for month in range(2, 8)]
    with pytest.raises(
        DataError, match=r"'01/02/24' is in the order dmy or mdy or ymd.*date_order"
    ):
        read(months)
    assert (
        read(months, date_order="dmy").ds == pd.date_range("2024-02-01", periods=6, freq="MS")
    ).all()
    assert (read(months, date_order="mdy").ds == pd.date_range("2024-01-02", periods=6)).all()
    assert read(months, date_order="ymd").ds[0] == pd.Timestamp("2001-02-24")
    long = [f"01/{month:02d}/2024" for month in range(2, 8)]
    with pytest.raises(DataError, match=r"begins with the day or the month.*--date_order dmy"):
        read(long)
    assert (read(long, date_order="mdy").ds == pd.date_range("2024-01-02", periods=6)).all()
    # A year that changes at the end, under a day that does not: 2020 to 2023, or four days of 2031.
    with pytest.raises(DataError, match="dmy or ymd"):
        read(["31/12/20", "31/12/21", "31/12/22", "31/12/23"])
    with pytest.raises(DataError, match="dmy or ymd"):
        read(["01.02.24", "01.03.24", "01.04.24"])
    with pytest.raises(DataError, match="not all in the order mdy"):
        read(["31/12/20", "31/12/21", "31/12/22"], date_order="mdy")
    with pytest.raises(DataError, match="in no one order"):
        read(["13/12/2020", "12/13/2020", "14/12/2020"])
    with pytest.raises(DataError, match="line 4: some years have four digits"):
        read(["13/01/2024", "14/01/2024", "15/01/24"])
    with pytest.raises(ConfigError, match="date_order is dmy, mdy, ymd"):
        read(months, date_order="day")
    frame = pd.DataFrame(
        {"ds": months * 2, "y": np.arange(12.0), "unique_id": np.repeat([1, 2], 6)}
    )
    made = Forecaster("theta", date_order="dmy").fit(frame).predict(1)
    assert made["ds"].tolist() == [pd.Timestamp("2024-08-01")] * 2


def test_the_first_number_above_twelve_is_a_day_with_two_digits_of_the_year_too():
    panel = read(["13/01/24", "14/01/24", "15/01/24", "16/01/24"])
    assert panel.ds[0] == pd.Timestamp("2024-01-13") and "day, month, year" in panel.notes[0]
    late = read(["13/01/24 10:00+01:00", "14/01/24 10:00+01:00", "15/01/24 10:00+01:00"])
    assert late.ds[0] == pd.Timestamp("2024-01-13T10:00+01:00")
    assert read(["01/01/69", "13/01/69", "25/01/69"]).ds[0] == pd.Timestamp("1969-01-01")


def test_a_name_is_of_one_kind_over_all_blocks_of_a_file(tmp_path):
    count = 300_000
    ids = np.where(np.arange(count) < count - 100, "1", "x")
    ds = np.r_[np.arange(count - 100), np.arange(100)]
    table = pd.DataFrame({"unique_id": ids, "ds": ds, "y": 1.0})
    table.to_csv(tmp_path / "a.csv", index=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_panel(tmp_path / "a.csv").ids == ("1", "x")


@pytest.mark.parametrize(
    ("minutes", "says"), [(30, "30min"), (60, "1h|h"), (0.25, "15s"), (1440, "D")]
)
def test_the_way_out_of_jitter_is_a_round_step(minutes, says):
    rng = np.random.default_rng(0)
    at = np.arange(200) * minutes * 60 + rng.integers(-3, 4, 200) * minutes
    ds = pd.Timestamp("2024-01-01") + pd.to_timedelta(np.rint(at), unit="s")
    with pytest.raises(DataError, match=rf"--resample ({says}), .*resample='({says})' in Python"):
        read(ds)
