"""Whole numbers as times: what they are follows from the whole column, or is refused by name."""

import numpy as np
import pandas as pd
import pytest

from longseq.core.errors import ConfigError, DataError
from longseq.timeseries.data.frames import Roles, panel_of, read_panel
from longseq.timeseries.data.long_file import LongFile
from longseq.timeseries.data.panel import Panel


def read(times, **roles) -> Panel:
    frame = pd.DataFrame({"ds": times, "y": np.arange(float(len(times)))})
    return panel_of(frame, source="a.csv", roles=Roles(**roles))


def written(form: str, freq: str, periods: int = 60) -> tuple[pd.DatetimeIndex, np.ndarray]:
    times = pd.date_range("2024-01-01", periods=periods, freq=freq)
    return times, times.strftime(form).astype(np.int64).to_numpy()


@pytest.mark.parametrize(
    ("form", "freq"),
    [
        *(("%Y%m", "MS"), ("%Y%m%d", "D"), ("%Y%m%d%H", "h"), ("%Y%m%d00", "D")),
        *(("%Y%m%d00", "MS"), ("%Y%m%d06", "ME"), ("%Y%m%d00", "QS"), ("%Y%m%d00", "7D")),
        *(("%Y%m%d%H%M", "15min"), ("%Y%m%d0000", "D"), ("%Y%m%d%H%M%S", "15s")),
        ("%Y%m%d%H%M%S000", "15s"),
    ],
)
def test_stamps_that_begin_with_the_year_are_clocks_of_no_zone(form, freq):
    times, numbers = written(form, freq)
    times = times + pd.Timedelta(hours=6) if form.endswith("06") else times
    panel = read(numbers)
    assert (panel.ds == times).all() and panel.missing == 0 and "are read as" in panel.notes[0]
    assert (read([str(one) for one in numbers]).ds == times).all()
    kept = np.delete(np.arange(60), [7, 30, 31])
    assert (read(numbers[kept]).ds == times).all()  # holes are no other reading
    assert (read(numbers, date_order="ymd").ds == times).all()
    zone = read(numbers, zone="Asia/Tokyo").ds
    assert (zone == times.tz_localize("Asia/Tokyo")).all()


@pytest.mark.parametrize("step", [60, 3600, 86400])
def test_times_of_2034_stay_what_they_are(step):
    panel = read(2024010100 + np.arange(90) * step)
    assert panel.ds[0] == pd.Timestamp(2024010100, unit="s", tz="UTC") and panel.missing == 0


@pytest.mark.parametrize(("form", "freq"), [("%Y%m%d%H", "h"), ("%Y%m%d00", "D")])
def test_a_stamp_that_may_be_seconds_is_refused_and_can_be_said(form, freq):
    times, numbers = written(form, freq, 20)
    with pytest.raises(
        DataError, match=r"a\.csv: .*2024010100.*YYYYMMDDHH or .* in s .*ymd.*epoch"
    ):
        read(numbers)
    assert (read(numbers, date_order="ymd").ds == times).all()
    assert read(numbers, date_order="epoch").ds[0].year == 2034
    assert read(numbers, date_order="number").ds[0] == 2024010100


def test_one_number_that_is_no_stamp_is_named_with_its_row():
    _, days = written("%Y%m%d", "D")
    with pytest.raises(DataError, match=r"line 62: 'ds' is 20240230, and others .* YYYYMMDD"):
        read([*days, 20240230])
    hours, _ = written("%Y", "h", 96)
    to_24 = hours.strftime("%Y%m%d").astype(np.int64) * 100 + hours.hour + 1
    with pytest.raises(DataError, match=r"line 25: 'ds' is 2024010124, and others"):
        read(to_24)
    assert read([*days, 20240301], date_order="ymd").ds[-1] == pd.Timestamp("2024-03-01")


@pytest.mark.parametrize(
    ("form", "named", "order"),
    [
        *(("%d%m%Y", "DDMMYYYY", "dmy"), ("%m%d%Y", "MMDDYYYY", "mdy")),
        *(("%y%m%d", "YYMMDD", "ymd"), ("%d%m%y", "DDMMYY", "dmy"), ("%m%d%y", "MMDDYY", "mdy")),
    ],
)
def test_dates_in_six_or_eight_digits_are_read_once_their_order_is_said(form, named, order):
    times, numbers = written(form, "D")
    with pytest.raises(DataError, match=rf"is a date .*{named} or .*number .*{order}"):
        read(numbers)
    assert (read(numbers, date_order=order).ds == times).all()
    wrong = {"dmy": "mdy", "mdy": "dmy", "ymd": "mdy"}[order]
    with pytest.raises(DataError, match=f"like {numbers[0]}, is not all of dates in the order"):
        read(numbers, date_order=wrong)


@pytest.mark.parametrize(
    ("numbers", "named"),
    [
        ([*range(202401, 202453), 202501], "YYYYWW"),
        ([*range(2024001, 2024367), 2025001], "YYYYDDD"),
        ([20231, 20232, 20233, 20234, 20241], "YYYYQ"),
    ],
)
def test_weeks_days_of_the_year_and_quarters_are_refused(numbers, named):
    with pytest.raises(DataError, match=rf"a date {named} or a number .*--date_order number"):
        read(numbers)
    assert not read(numbers, date_order="number").dated


@pytest.mark.parametrize(
    "numbers",
    [
        *(np.arange(60), np.arange(1980, 2030), np.arange(60) + 20240101, np.arange(-30, 30)),
        *(np.arange(60) * 10 + 10_000, np.arange(60) + 2**62, np.arange(100) + 202_400),
    ],
)
def test_counters_and_years_stay_numbers(numbers):
    panel = read(numbers)
    assert (panel.ds == numbers).all() and not panel.dated


def test_what_is_said_must_hold():
    for numbers, order in (([1980, 1981, 1982], "ymd"), ([1, 2, 3], "epoch")):
        with pytest.raises(DataError, match=r"a\.csv: 'ds', like "):
            read(numbers, date_order=order)
    with pytest.raises(DataError, match=r"line 2: .*no whole number as date_order epoch needs"):
        read(["2024-01-01", "2024-01-02", "2024-01-03"], date_order="epoch")
    with pytest.raises(ConfigError, match="date_order is dmy, mdy, ymd, epoch, number, got"):
        read([1, 2, 3], date_order="stamp")


def test_a_file_in_pieces_reads_the_same_stamps(tmp_path):
    times, numbers = written("%Y%m%d%H", "h")
    file = tmp_path / "a.parquet"
    ids = np.repeat(["a", "b"], 60)
    pd.DataFrame({"unique_id": ids, "ds": np.tile(numbers, 2), "y": 1.0}).to_parquet(file)
    whole = read_panel(file)
    assert (whole.ds == times).all() and (LongFile(file, Roles()).survey.axis == whole.ds).all()


def test_days_of_a_spreadsheet_are_numbers_and_said_to_be_so():
    panel = read(np.arange(45292, 45352))
    assert panel.season() == 1 and "45292 is read as a number" in panel.notes[0]
    assert "day of a spreadsheet, 2024-01-01" in panel.notes[0]
    assert read(np.arange(60)).notes == () and read(np.arange(2000, 2024)).notes == ()
    assert read(np.arange(45292, 45352), date_order="number").notes == ()
    with pytest.raises(DataError, match=r"line 3: 'ds' is 45292\.5.*days of a spreadsheet\?"):
        read(45292 + np.arange(60) / 2)
