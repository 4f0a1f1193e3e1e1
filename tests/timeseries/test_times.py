"""What a column of times says: every kind of clock is understood, or refused by name."""

import numpy as np
import pandas as pd
import pytest

from longseq.core.errors import ConfigError, DataError
from longseq.timeseries.data.frames import Roles, panel_of, read_panel


def write(path, times, values=None, name="ds", target="y1"):
    values = np.arange(len(times), dtype=float) if values is None else values
    pd.DataFrame({name: times, target: values}).to_csv(path, index=False)
    return path


def quarter_hours(start: str, end: str, zone: str = "Europe/Berlin") -> pd.DatetimeIndex:
    return pd.date_range(start, end, freq="15min", tz=zone, inclusive="left")


@pytest.mark.parametrize("season", ["2024-10-25/2024-10-30", "2024-03-29/2024-04-02"])
def test_offsets_over_a_change_of_clocks_are_one_regular_axis_in_their_zone(season, tmp_path):
    ds = quarter_hours(*season.split("/"))
    path = write(tmp_path / "a.csv", [stamp.isoformat() for stamp in ds])
    panel = read_panel(path)
    assert len(panel) == len(ds) and panel.missing == 0 and panel.season() == 96
    assert (panel.ds == ds).all() and str(panel.ds.tz) == "Europe/Berlin"
    assert any("Europe/Berlin" in note for note in panel.notes)
    # The next row is a quarter of an hour later, whatever the clocks do.
    assert panel.future(len(panel), 1)[0] - panel.ds[-1] == pd.Timedelta(minutes=15)
    assert str(read_panel(path, roles=Roles(zone="UTC")).ds.tz) == "UTC"


def test_one_offset_is_kept_as_it_is(tmp_path):
    path = write(tmp_path / "a.csv", [f"2024-10-27T0{h}:00:00+01:00" for h in range(6)])
    panel = read_panel(path)
    assert panel.ds[0].hour == 0 and panel.ds[0].utcoffset() == pd.Timedelta(hours=1)


def test_a_local_clock_needs_its_zone_where_an_hour_comes_twice(tmp_path):
    ds = quarter_hours("2024-10-26", "2024-10-29")
    path = write(tmp_path / "a.csv", ds.tz_localize(None))
    with pytest.raises(DataError, match=r"line 110: .*02:00:00 comes after.*do not sort.*--zone"):
        read_panel(path)
    panel = read_panel(path, roles=Roles(zone="Europe/Berlin"))
    assert (panel.ds == ds).all() and panel.missing == 0
    hours = pd.date_range("2024-10-26", "2024-10-29", freq="h", tz="Europe/Berlin")
    twice = write(tmp_path / "b.csv", hours.tz_localize(None))
    with pytest.raises(DataError, match=r"is a duplicate.*do not sort"):
        read_panel(twice)
    assert len(read_panel(twice, roles=Roles(zone="Europe/Berlin"))) == len(hours)
    gone = write(tmp_path / "c.csv", ["2024-03-31 01:00", "2024-03-31 02:00", "2024-03-31 03:00"])
    with pytest.raises(DataError, match=r"line 3: .*02:00:00 does not exist in Europe/Berlin"):
        read_panel(gone, roles=Roles(zone="Europe/Berlin"))
    with pytest.raises(ConfigError, match="no time zone 'Berlin'"):
        read_panel(gone, roles=Roles(zone="Berlin"))


def test_days_of_a_zone_are_days_and_not_24_hours(tmp_path):
    ds = pd.date_range("2024-03-25", periods=14, freq="D", tz="Europe/Berlin")
    panel = read_panel(write(tmp_path / "a.csv", [stamp.isoformat() for stamp in ds]))
    assert len(panel) == 14 and panel.season() == 7 and panel.frequency == "D"
    assert [stamp.hour for stamp in panel.future(10, 20)] == [0] * 20


@pytest.mark.parametrize(("scale", "unit"), [(1, "s"), (10**3, "ms"), (10**6, "us"), (10**9, "ns")])
def test_epochs_are_times(scale, unit, tmp_path):
    seconds = 1_704_067_200 + np.arange(40) * 60
    panel = read_panel(write(tmp_path / "a.csv", seconds * scale))
    assert len(panel) == 40 and panel.dated and panel.frequency == "min"
    assert panel.ds[0] == pd.Timestamp("2024-01-01", tz="UTC")
    assert f"in {unit}, UTC" in panel.notes[0]


def test_whole_numbers_are_dates_months_or_numbers_and_never_thousands_of_empty_rows(tmp_path):
    days = pd.date_range("2022-01-01", periods=400)
    panel = read_panel(write(tmp_path / "a.csv", days.strftime("%Y%m%d").astype(int)))
    assert len(panel) == 400 and panel.season() == 7 and panel.ds[-1] == days[-1]
    months = pd.date_range("2020-01-01", periods=30, freq="MS")
    panel = read_panel(write(tmp_path / "b.csv", months.strftime("%Y%m").astype(int)))
    assert len(panel) == 30 and panel.season() == 12
    panel = read_panel(write(tmp_path / "c.csv", np.arange(1980, 2010)))
    assert len(panel) == 30 and not panel.dated and list(panel.future(30, 2)) == [2010, 2011]
    panel = read_panel(write(tmp_path / "d.csv", np.arange(0, 300, 10)))
    assert len(panel) == 30 and list(panel.future(30, 2)) == [300, 310]
    with pytest.raises(DataError, match="irregular: at their smallest step there would be"):
        read_panel(write(tmp_path / "e.csv", np.r_[np.arange(300), 10**6]))


def test_european_files(tmp_path):
    path = tmp_path / "a.csv"
    rows = [f"{day:02d}.02.2024;{day}.234,5" for day in range(1, 15)]
    path.write_text("Datum;Preis\n" + "\n".join(rows) + "\n", encoding="utf-8-sig")
    panel = read_panel(path)
    assert panel.ids == ("Preis",) and panel.frequency == "D" and len(panel) == 14
    assert panel.values[1, 0] == 2234.5 and panel.ds[1] == pd.Timestamp("2024-02-02")
    for mark, ambiguous in (("/", True), ("/", False)):
        days = range(1, 13 if ambiguous else 20)
        other = tmp_path / "b.csv"
        other.write_text("ds,y\n" + "".join(f"{d:02d}{mark}03{mark}2024,{d}\n" for d in days))
        if ambiguous:
            with pytest.raises(DataError, match="begins with the day or the month"):
                read_panel(other)
        else:
            assert read_panel(other).ds[1] == pd.Timestamp("2024-03-02")


@pytest.mark.parametrize(
    ("header", "values", "found"),
    [
        ("ds,y", ['"1,500"', '"1,234.5"'], [1500, 1234.5]),
        ("ds,y", ['"1,500"', '"1,234,567"'], [1500, 1234567]),
        ("ds,y", ['"1,500"', '"12,5"'], [1.5, 12.5]),
        ("ds,y", ['"1,500"', '"0,250"'], [1.5, 0.25]),
        ("ds,y", ["1.500", "-"], [1.5, np.nan]),
        ("ds;y", ["1.500", "12,5"], [1500, 12.5]),
        ("ds;y", ["1.500", "1.234.567"], [1500, 1234567]),
        ("ds;y", ["1.500", "12.25"], [1.5, 12.25]),
        ("ds;y", ["1,500", "2,500"], [1.5, 2.5]),
    ],
)
def test_a_column_tells_its_decimal_mark(tmp_path, header, values, found):
    path = tmp_path / "a.csv"
    days = [
        f"2024-01-{day:02d}{header[2]}{value}" for day, value in enumerate([*values, "7", "8"], 1)
    ]
    path.write_text("\n".join([header, *days]))
    known = np.isfinite(found)
    assert np.allclose(
        read_panel(path).values[: len(found), 0][known], np.array(found)[known], rtol=1e-7
    )


@pytest.mark.parametrize(
    ("header", "values", "says"),
    [
        ("ds,y", ['"1,500"', '"12,500"'], "line 2: 'y' is '1,500': does the mark separate thous"),
        ("ds;y", ["7", "1.500"], "line 3: 'y' is '1.500': does the mark separate thousands"),
        ("ds,y", ['"1,500"', "2.500"], "'y' is '1,500': does the mark"),
        ("ds,y", ['"1,50"', '"1,234.5"'], "'y' is '1,50', a finite number is needed"),
        ("ds,y", ['"1,5,00"', '"1,234.5"'], "'y' is '1,5,00', a finite number is needed"),
    ],
)
def test_a_mark_that_may_be_either_is_refused(tmp_path, header, values, says):
    path = tmp_path / "a.csv"
    days = [
        f"2024-01-{day:02d}{header[2]}{value}" for day, value in enumerate([*values, "7", "8"], 1)
    ]
    path.write_text("\n".join([header, *days]))
    with pytest.raises(DataError) as error:
        read_panel(path)
    assert says in str(error.value)


def test_parquet_with_times_as_its_index_keeps_the_zone(tmp_path):
    ds = pd.date_range("2024-10-26", periods=72, freq="h", tz="Europe/Berlin", name="when")
    pd.DataFrame({"price": np.arange(72.0)}, index=ds).to_parquet(tmp_path / "a.parquet")
    panel = read_panel(tmp_path / "a.parquet", roles=Roles(time="when"))
    assert (panel.ds == ds).all() and panel.ids == ("price",)
    plain = ds.rename(None)
    pd.DataFrame({"price": np.arange(72.0)}, index=plain).to_parquet(tmp_path / "b.parquet")
    assert (read_panel(tmp_path / "b.parquet").ds == ds).all()


def test_jittered_sensors_are_refused_with_a_way_out_and_resampled(tmp_path):
    rng = np.random.default_rng(0)
    ds = pd.date_range("2024-01-01", periods=600, freq="s")
    ds += pd.to_timedelta(rng.integers(0, 300, 600), unit="ms")
    path = write(tmp_path / "a.csv", ds)
    with pytest.raises(DataError, match="--resample"):
        read_panel(path)
    panel = read_panel(path, roles=Roles(resample="10s"))
    assert len(panel) == 60 and panel.values[0, 0] == pytest.approx(4.5)
    assert "600 values became 60" in panel.notes[0]
    with pytest.raises(ConfigError, match="resample is a step"):
        read_panel(path, roles=Roles(resample="often"))


@pytest.mark.parametrize("freq", ["MS", "ME", "QS", "YS", "B", "W", "D"])
def test_a_missing_row_leaves_the_step_as_it_is(freq, tmp_path):
    ds = pd.date_range("2015-01-01", periods=40, freq=freq)
    panel = read_panel(write(tmp_path / "a.csv", ds.delete([7, 8, 20])))
    assert len(panel) == 40 and panel.missing == 3 and (panel.ds == ds).all()


@pytest.mark.parametrize("phase", [0.0, 3.04, -2.5])
def test_one_row_a_step_is_averaged_around_its_phase(phase):
    rng = np.random.default_rng(0)
    at = np.arange(500) * 10 + phase + rng.normal(0, 0.8, 500)
    ds = pd.Timestamp("2025-03-01", tz="UTC") + pd.to_timedelta(at, unit="s")
    frame = pd.DataFrame({"ds": ds, "y": np.arange(500.0)}).drop(index=[100, 101])
    panel = panel_of(frame, source="m", roles=Roles(resample="10s"))
    # Bins that begin where the rows are would hold none or two of them.
    assert len(panel) == 500 and panel.missing == 2
    assert np.nanmax(np.abs(panel.values[:, 0] - np.arange(500))) == 0
    assert abs((panel.ds - ds).total_seconds()).max() < 0.8 * 4.5 + 0.5


def test_the_way_out_of_jitter_names_the_usual_step():
    rng = np.random.default_rng(0)
    at = np.arange(500) * 10 + rng.normal(0, 0.8, 500)
    ds = pd.Timestamp("2025-03-01", tz="UTC") + pd.to_timedelta(at, unit="s")
    with pytest.raises(DataError, match="--resample 10s,"):
        panel_of(pd.DataFrame({"ds": ds, "y": 1.0}), source="m")


@pytest.mark.parametrize(
    ("step", "season"),
    [
        *(("2MS", 6), ("2ME", 6), ("4MS", 3), ("6MS", 2), ("2QE", 2), ("5MS", 1), ("2YS", 1)),
        *(("MS", 12), ("QE-NOV", 4), ("YS-APR", 1), ("14D", 26)),
    ],
)
@pytest.mark.parametrize("gap", [False, True])
def test_steps_of_several_months(step, season, gap):
    axis = pd.date_range("2000-01-31" if "E" in step else "2000-01-01", periods=32, freq=step)
    ds = axis[:30].delete([4, 9, 10]) if gap else axis[:30]
    panel = panel_of(pd.DataFrame({"ds": ds, "y": np.arange(len(ds)) + 1.0}), source="x")
    assert len(panel) == 30 and panel.season() == season
    assert (panel.extended(2).ds == axis).all()


@pytest.mark.parametrize(
    ("step", "season"),
    [
        *(("BME", 12), ("BMS", 12), ("2BME", 6), ("BQE-DEC", 4), ("BQE-JAN", 4), ("BQS-JAN", 4)),
        *(("BQS-FEB", 4), ("2BQE-MAR", 2), ("BYE-DEC", 1), ("BYS-APR", 1), ("2BYE-DEC", 1)),
    ],
)
@pytest.mark.parametrize("gap", [False, True])
def test_first_and_last_working_days_of_months(step, season, gap):
    axis = pd.date_range("2000-01-01", periods=42, freq=step)
    ds = axis[:40].delete([4, 9, 10]) if gap else axis[:40]
    panel = panel_of(pd.DataFrame({"ds": ds, "y": np.arange(len(ds)) + 1.0}), source="x")
    assert len(panel) == 40 and panel.season() == season
    assert (panel.extended(2).ds == axis).all()
    # Working days are not among them, nor are days that are neither first nor last.
    days = pd.date_range("2000-01-03", periods=40, freq="B")
    panel = panel_of(pd.DataFrame({"ds": days, "y": np.arange(40.0)}), source="x")
    assert panel.season() == 5 and panel.frequency == "B"
    other = ds.to_series().reset_index(drop=True)
    other[6] -= pd.Timedelta(days=1 if other[6].day_of_week else 3)
    with pytest.raises(DataError, match=r"its month \(2024-01\)"):
        panel_of(pd.DataFrame({"ds": other, "y": np.arange(len(ds)) + 1.0}), source="x")


@pytest.mark.parametrize("freq", ["M", "Q", "Y-JUN", "W", "D", "h", "2M"])
def test_periods_are_their_first_instant(freq):
    periods = pd.period_range("2000-01-05", periods=30, freq=freq)
    y = np.arange(30) + 1.0
    frames = [
        pd.DataFrame({"ds": periods, "y": y}),
        pd.DataFrame({"y": y}, index=periods),
        pd.DataFrame({"y": y}, index=periods.rename("when")),
        pd.DataFrame({"ds": pd.Series(list(periods), dtype=object), "y": y}),
    ]
    for frame in frames:
        panel = panel_of(frame, source="x")
        assert len(panel) == 30 and (panel.ds == periods.to_timestamp()).all()
        np.testing.assert_array_equal(panel.values[:, 0], y)
    with pytest.raises(DataError, match=r"row 1: 'ds' is NaT"):
        gone = pd.PeriodIndex(["2020-01", None, "2020-03"], freq="M")
        panel_of(pd.DataFrame({"ds": gone, "y": [1.0, 2.0, 3.0]}), first_line=0, source="x")


def test_an_index_of_times_serves_where_no_column_does():
    ds = pd.date_range("2024-01-01", periods=30)
    y = np.arange(30) + 1.0
    for name, told in ((None, None), ("when", None), ("when", "when"), ("Date", None)):
        frame = pd.DataFrame({"y": y}, index=ds.rename(name))
        panel = panel_of(frame, source="x", roles=Roles(time=told))
        assert (panel.ds == ds).all() and panel.ids == ("y",)
    later = pd.date_range("2025-01-01", periods=30)
    for column, told in (("ds", None), ("when", "when")):
        frame = pd.DataFrame({column: later, "y": y}, index=ds)
        panel = panel_of(frame, source="x", roles=Roles(time=told))
        assert (panel.ds == later).all() and panel.ids == ("y",)
        assert any(f"the column {column!r} has the times" in note for note in panel.notes)
    with pytest.raises(DataError, match="has no column 'wehn'"):
        panel_of(pd.DataFrame({"y": y}, index=ds), source="x", roles=Roles(time="wehn"))


@pytest.mark.parametrize("order", ["epoch", "number"])
def test_what_is_said_of_whole_numbers_is_refused_of_times(order):
    ds = pd.date_range("2024-01-01", periods=30)
    for times in (ds, ds.to_period("D"), ds.tz_localize("UTC")):
        frame = pd.DataFrame({"ds": times, "y": 1.0})
        with pytest.raises(DataError, match=f"'ds' holds dates .* date_order {order} needs"):
            panel_of(frame, source="x", roles=Roles(date_order=order))
    with pytest.raises(DataError, match=r"'ds' is 0\.5, no whole number"):
        frame = pd.DataFrame({"ds": np.arange(30) + 0.5, "y": 1.0})
        panel_of(frame, source="x", roles=Roles(date_order=order))


@pytest.mark.parametrize(
    ("stamps", "following"),
    [
        (["2024-07-01", "2024-08-01", "2024-09-01"], ["2024-10-01", "2024-11-01", "2024-12-01"]),
        (["2023-07-15", "2023-08-15", "2023-09-15"], ["2023-10-15", "2023-11-15", "2023-12-15"]),
        (["2023Q3", "2023Q4", "2024Q1"], ["2024-04-01", "2024-07-01", "2024-10-01"]),
        (["2021-12-31", "2022-12-31", "2023-12-31"], ["2024-12-31", "2025-12-31", "2026-12-31"]),
        (["2024-02-05", "2024-03-04", "2024-04-01"], ["2024-04-29", "2024-05-27", "2024-06-24"]),
    ],
)
def test_months_and_years_that_happen_to_have_the_same_length_are_months_and_years(
    stamps, following
):
    panel = panel_of(pd.DataFrame({"ds": stamps, "y": [1.0, 2.0, 3.0]}), source="a.csv")
    assert list(panel.future(3, 3).strftime("%Y-%m-%d")) == following


def test_a_year_has_thirteen_periods_of_four_weeks():
    ds = pd.date_range("2020-01-06", periods=30, freq="28D")
    assert panel_of(pd.DataFrame({"ds": ds, "y": np.arange(30.0)}), source="a.csv").season() == 13


@pytest.mark.parametrize(
    ("zone", "start", "clock"),
    [
        ("Africa/Cairo", "2024-04-22", "00:00"),
        ("America/Santiago", "2024-09-03", "00:00"),
        ("America/Sao_Paulo", "2018-10-30", "00:00"),
        ("Europe/Berlin", "2024-03-27", "02:30"),
        ("Europe/Berlin", "2024-10-23", "02:30"),
    ],
)
def test_days_whose_time_the_clock_skips_or_repeats_go_on(zone, start, clock):
    local = pd.date_range(f"{start} {clock}", periods=9, freq="D")
    ds = local.tz_localize(zone, ambiguous=True, nonexistent="shift_forward")
    for rows in (3, 4, 5, 6, 7):  # the change comes within the horizon, on its edges, or before
        frame = pd.DataFrame({"ds": ds[:rows], "y": np.arange(rows) * 1.0})
        panel = panel_of(frame, source="a.csv")
        assert len(panel) == rows and panel.missing == 0 and panel.frequency == "D"
        assert (panel.future(rows, 9 - rows) == ds[rows:]).all()
    if clock == "00:00":  # dates in text are their days, and resampling to days finds them
        roles = Roles(zone=zone)
        frame = pd.DataFrame({"ds": local.strftime("%Y-%m-%d"), "y": 1.0})
        assert (panel_of(frame, source="a.csv", roles=roles).ds == ds).all()
        hours = pd.date_range(ds[0], ds[-1], freq="h", inclusive="left")
        frame = pd.DataFrame({"ds": hours, "y": 1.0})
        days = panel_of(frame, source="a.csv", roles=Roles(resample="D"))
        assert (days.ds == ds[:-1]).all()


def test_steps_of_hours_are_cut_in_instants_from_the_first_day_on():
    hours = pd.date_range("2024-10-25", "2024-10-29", freq="h", tz="Europe/Berlin")
    frame = pd.DataFrame({"ds": hours, "y": np.arange(len(hours)) * 1.0})
    panel = panel_of(frame, source="a.csv", roles=Roles(resample="6h"))
    assert list(panel.ds[:4].hour) == [0, 6, 12, 18] and panel.missing == 0
    steps = np.diff(panel.ds.tz_convert(None).to_numpy())
    assert (steps == np.timedelta64(6, "h")).all()  # 23:00 and so on in winter
    assert panel.values[1, 0] == np.arange(6, 12).mean()
    for step in ("-1h", "0h"):
        with pytest.raises(ConfigError, match="above 0"):
            panel_of(frame, source="a.csv", roles=Roles(resample=step))


def test_numbers_with_fractions_are_seconds_since_1970_or_no_times(tmp_path):
    seconds = 1704067200 + np.arange(20) * 0.25
    panel = read_panel(write(tmp_path / "a.csv", seconds))
    assert panel.ds[1] == pd.Timestamp("2024-01-01 00:00:00.25", tz="UTC") and len(panel) == 20
    years = read_panel(write(tmp_path / "b.csv", np.arange(2000.0, 2010)))
    assert list(years.ds) == list(range(2000, 2010))
    # Of 2019.10 a CSV leaves 2019.1: an October would be a January.
    with pytest.raises(DataError, match=r"line 2: 'ds' is 2019.1, .* 2024-12,"):
        read_panel(write(tmp_path / "c.csv", ["2019.10", "2020.10", "2021.10"]))
    for gap in ([2001.0, np.nan, 2003.0], pd.array([1, None, 3], dtype="Int64")):
        with pytest.raises(DataError, match=r"line 3: 'ds' is (nan|<NA>)"):
            panel_of(pd.DataFrame({"ds": gap, "y": [1.0, 2.0, 3.0]}), source="a.csv")
    large = np.arange(3, dtype=np.uint64) + 2**63  # which would begin below 0
    with pytest.raises(DataError, match="line 2: 'ds' is 9223372036854775808"):
        panel_of(pd.DataFrame({"ds": large, "y": [1.0, 2.0, 3.0]}), source="a.csv")


def test_fiscal_months_of_weeks_are_told_how_to_go_on():
    weeks = np.cumsum([0] + [4, 4, 5] * 8)
    days = pd.Timestamp("2022-01-02") + pd.to_timedelta(7 * weeks, unit="D")
    frame = pd.DataFrame({"ds": days, "y": 1.0})
    for resample in (None, "7D"):  # which does not help
        with pytest.raises(DataError, match=r"months of 4 and 5 weeks.*--season 12"):
            panel_of(frame, source="a.csv", roles=Roles(resample=resample))


@pytest.mark.parametrize("days", [(1, 15), (1, 11, 21)])
def test_parts_of_months_are_told_how_to_go_on(days):
    times = [pd.Timestamp(2024, month, day) for month in range(1, 13) for day in days]
    with pytest.raises(DataError, match=f"parts of months.*--season {12 * len(days)}"):
        panel_of(pd.DataFrame({"ds": times, "y": 1.0}), source="a.csv")
