"""Times: intervals of records, stamps at their ends, rare units, and years that are whole."""

from __future__ import annotations

import cftime
import numpy as np
import pytest

from longseq.core.errors import DataError
from longseq.weather.data.field import annual_means
from longseq.weather.data.scenario import make_scenario, refuse_leak
from longseq.weather.data.source import read_field
from longseq.weather.data.times import decode_time
from longseq.weather.data.yearly import read_years

EPOCH = "days since 1850-01-01"


def numbers(dates, calendar: str = "noleap") -> np.ndarray:
    return np.asarray(cftime.date2num(dates, EPOCH, calendar), dtype=float)


def starts(first: int, months: int, calendar: str = "noleap") -> list[cftime.datetime]:
    return [
        cftime.datetime(first + i // 12, i % 12 + 1, 1, calendar=calendar) for i in range(months)
    ]


def with_bounds(made, low: np.ndarray, high: np.ndarray):
    made["time_bnds"] = (("time", "bnds"), np.stack([low, high], 1))
    made["time"].attrs["bounds"] = "time_bnds"
    return made


def test_stamps_at_the_end_and_in_the_middle_are_the_same_run(write, lab) -> None:
    values = lab.fields()
    edges = numbers([cftime.datetime(int(y), 1, 1, calendar="noleap") for y in range(1900, 1981)])
    middle = numbers([cftime.datetime(int(y), 7, 1, calendar="noleap") for y in lab.YEARS])
    ends = with_bounds(
        lab.dataset(values, calendar="noleap", times=edges[1:]), edges[:-1], edges[1:]
    )
    mids = lab.dataset(values, calendar="noleap", times=middle)
    one, other = read_field(write(ends, "ends.nc")), read_field(write(mids, "mids.nc"))
    assert one.years.tolist() == other.years.tolist() == lab.YEARS.tolist()
    assert one.bounds[0].tolist() == [
        cftime.datetime(1900, 1, 1, calendar="noleap"),
        cftime.datetime(1901, 1, 1, calendar="noleap"),
    ]
    runs = [make_scenario(field, (1900, 1919), 5) for field in (one, other)]
    assert np.array_equal(runs[0].anomalies, runs[1].anomalies)
    assert np.array_equal(runs[0].predictors, runs[1].predictors)
    with pytest.raises(DataError, match="would be a leak"):
        refuse_leak([runs[0]], runs[1], (1970, 1979))


def test_a_year_is_that_of_the_middle_of_its_interval(write, lab) -> None:
    # December to November, as the Met Office has it, stamped in December or in June.
    edges = [cftime.datetime(y, 12, 1, calendar="360_day") for y in range(1899, 1910)]
    low, high = numbers(edges[:-1], "360_day"), numbers(edges[1:], "360_day")
    for shift in (15.0, 180.0, 360.0):
        made = with_bounds(lab.dataset(lab.fields()[:10], times=low + shift), low, high)
        found = read_field(write(made, f"{shift}.nc"))
        assert found.years.tolist() == list(range(1900, 1910))
        assert (found.bounds[0, 0].year, found.bounds[0, 0].month) == (1899, 12)
    sample = read_field("A1B_north_america")
    assert str(sample.bounds[0, 0]) == "1859-12-01 00:00:00" and sample.years[0] == 1860


@pytest.mark.parametrize("bounds", [True, False])
def test_months_stamped_at_their_ends(bounds: bool, write, lab) -> None:
    months = starts(1900, 25)
    values = np.repeat(lab.fields()[:2], 12, 0)
    values += np.arange(24, dtype=np.float32)[:, None, None]
    low, high = numbers(months[:-1]), numbers(months[1:])
    made = lab.dataset(values, calendar="noleap", times=high)
    path = write(with_bounds(made, low, high) if bounds else made)
    middle = write(lab.dataset(values, calendar="noleap", times=low + 14), "mid.nc")
    found, expected = read_years(path), annual_means(read_field(middle))
    assert found.years.tolist() == [1900, 1901]
    assert np.array_equal(found.values, expected.values)
    assert any("ends of their intervals" in note for note in found.notes) != bounds


def test_missing_and_cut_years_are_refused(write, lab) -> None:
    months = starts(1900, 36)
    values = np.repeat(lab.fields()[:3], 12, 0)
    times = numbers(months) + 14
    keep = np.array([date.year != 1901 for date in months])
    gap = write(lab.dataset(values[keep], calendar="noleap", times=times[keep]), "gap.nc")
    with pytest.raises(DataError, match="1900 and 1902 follow each other"):
        read_years(gap)
    low, high = numbers(months), numbers([*months[1:], starts(1903, 1)[0]])
    keep = np.arange(36) != 17
    cut = with_bounds(
        lab.dataset(values[keep], calendar="noleap", times=times[keep]), low[keep], high[keep]
    )
    with pytest.raises(DataError, match="year 1901: its records cover 335 of 365 days"):
        read_years(write(cut, "cut.nc"))


def test_seasons_and_six_hourly_records_make_years(write, lab) -> None:
    edges = starts(1900, 25)[::3]
    low, high = numbers(edges[:-1]), numbers(edges[1:])
    seasons = lab.dataset(lab.fields()[:8], calendar="noleap", times=(low + high) / 2)
    found = read_years(write(with_bounds(seasons, low, high), "s.nc"))
    weights = (high - low)[:4]
    expected = np.average(lab.fields()[:4].astype(float), axis=0, weights=weights)
    assert np.allclose(found.values[0], expected, atol=1e-4) and len(found.years) == 2
    times = numbers(starts(1900, 1))[0] + np.arange(730) * 0.5
    values = np.repeat(lab.fields()[:73], 10, 0)
    twice = lab.dataset(values, calendar="noleap", times=times)
    assert np.allclose(read_years(write(twice, "t.nc")).values[0], values.mean(0), atol=1e-3)


@pytest.mark.parametrize(
    ("values", "units", "calendar", "expected"),
    [
        (
            [0, 1, 13],
            "months since 1958-01-01",
            "standard",
            ["1958-01-01", "1958-02", "1959-02"],
        ),
        ([0.5, 1.5], "months since 1960-01-01", "standard", ["1960-01-16 12", "1960-02-15 12"]),
        ([0.5, 12], "months since 1960-01-01", "360_day", ["1960-01-16", "1961-01-01"]),
        ([0, 2.5], "years since 1990-01-01", "noleap", ["1990-01-01", "1992-07-01"]),
        ([19850131.5, 19850201], "day as %Y%m%d.%f", "standard", ["1985-01-31 12", "1985-02-01"]),
        ([198501, 198502.5], "month as %Y%m.%f", "noleap", ["1985-01-01", "1985-02-15"]),
        (
            [366, 1096.485],
            "hour since 0000-01-01 00:00:00",
            "standard",
            ["0000-01-16 06", "0000-02"],
        ),
    ],
)
def test_rare_units(values, units, calendar, expected) -> None:
    attrs = {"units": units, "calendar": calendar}
    found = decode_time(np.array(values, dtype=float), attrs, "f")
    texts = [str(date) for date in found.dates]
    assert all(text.startswith(start) for text, start in zip(texts, expected)), texts


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ([[0, 5], [10, 20.0]], "outside its bounds"),
        ([[10, 0], [10, 20.0]], "no interval"),
        ([[0, 10.0]], "shape"),
        ([[0, np.nan], [10, 20.0]], "not all numbers"),
    ],
)
def test_wrong_bounds_are_named(bounds, message) -> None:
    with pytest.raises(DataError, match=message):
        decode_time(np.array([6.0, 15.0]), {"units": EPOCH}, "f", np.array(bounds))


def test_numbers_of_records_are_no_years() -> None:
    for values in ([1.0, 2, 3], [1850.5, 1851.5]):
        with pytest.raises(DataError, match="are no years"):
            decode_time(np.array(values), {}, "f")


def test_bounds_that_are_points_are_none(lab, write) -> None:
    data = lab.dataset(lab.fields()[:3])
    points = np.repeat(data["time"].values[:, None], 2, 1)
    data["time_bnds"] = (("time", "bnds"), points)
    data["time"].attrs["bounds"] = "time_bnds"
    found = read_field(write(data))
    assert found.bounds is None and "bounds without a length are left out" in found.notes
    points[1, 1] += 1
    with pytest.raises(DataError, match="are no interval"):
        read_field(write(data, "mixed.nc"))


def test_bounds_may_have_units_of_their_own(lab, write) -> None:
    data = lab.dataset(lab.fields()[:3], calendar="noleap")
    start = data["time"].values - 151
    data["time_bnds"] = (("time", "bnds"), 24 * (np.stack([start, start + 365], 1) + 36500))
    data["time_bnds"].attrs = {"units": "hours since 1750-01-01", "calendar": "noleap"}
    data["time"].attrs["bounds"] = "time_bnds"
    found = read_field(write(data))
    assert [str(date)[:10] for date in found.bounds[0]] == ["1900-01-01", "1901-01-01"]


def test_six_hourly_stamps_at_the_ends_of_their_intervals(lab, write) -> None:
    values = np.repeat(lab.fields()[:2], 1460, 0)
    times = np.arange(2920) * 0.25 + 0.25
    data = lab.dataset(values, calendar="noleap", times=times)
    found = read_years(write(data))
    assert found.years.tolist() == [1850, 1851] and np.allclose(found.values, lab.fields()[:2])
    assert "taken as the ends of their intervals" in found.notes[0]


@pytest.mark.parametrize(
    ("reference", "hours"),  # what UDUNITS-2 reads, later than 1990-01-01 00:00 UTC
    [
        ("1990-01-01 00:00:00 -6:00", 6.0),
        ("1990-01-01 0:0:0 6:00", -6.0),
        ("1990-01-01 0:0:0 6", -6.0),
        ("1990-01-01 6", 6.0),
        ("1990-01-01 0:0 +0530", -5.5),
        ("1990-01-01 0:0 -3:30", 3.5),
        ("1990-01-01 6:30", 6.5),
        ("1990-01-01T06:00Z", 6.0),
        ("1990-01-01 0:0 1200", -12.0),
        ("1990-01-01 12:0:0.5 -6", 18.000138888888888),
        ("1990-1", 0.0),
        ("1990", 0.0),
        ("1990-01-01 00:00:00.0 +0:00", 0.0),
        ("1990-01-01 0600", 6.0),
        ("1990-01-01 12Z", 12.0),
        ("1990-01-01 00:00 UTC", 0.0),
    ],
)
@pytest.mark.parametrize("calendar", ["standard", "noleap"])
def test_time_zones_as_udunits_reads_them(reference, hours, calendar) -> None:
    attrs = {"units": f"hours since {reference}", "calendar": calendar}
    bounds = np.array([[-1.0, 1], [9999, 10001]])
    found = decode_time(np.array([0.0, 10000.0]), attrs, "f", bounds)
    start = cftime.datetime(1990, 1, 1, calendar=calendar)
    assert (found.dates[0] - start).total_seconds() == pytest.approx(hours * 3600, abs=1e-3)
    assert (found.bounds[1, 0] - start).total_seconds() == pytest.approx(
        (hours + 9999) * 3600, abs=1e-3
    )
    moved = reference.count(" ") == 2 and not reference.endswith(("UTC", "+0:00"))
    assert any("to UTC" in note for note in found.notes) == moved


@pytest.mark.parametrize(
    "reference",
    [
        "1990-01-01 00:00 EST",
        "1990-01-01 -6:00",
        "1990-01-01 12h",
        "1990-01-01, 12:00",
        "1990-01-01 0:0 +90",
    ],
)
def test_what_follows_a_date_and_is_no_time_is_refused(reference) -> None:
    with pytest.raises(DataError, match="no time of day and zone"):
        decode_time(np.array([0.0]), {"units": f"days since {reference}"}, "f")


def test_a_zone_that_moves_months_needs_bounds() -> None:
    attrs = {"units": "months since 1990-01-01 00:00 +12:00"}
    with pytest.raises(DataError, match="1989-12-31 12:00:00 in UTC, another month"):
        decode_time(np.arange(12.0), attrs, "f")
    low = np.arange(12.0)
    found = decode_time(low, attrs, "f", np.stack([low, low + 1], 1))
    assert [date.month for date in found.dates] == list(range(1, 13))
    assert {date.year for date in found.dates} == {1990}
    # Hours are instants: each belongs to its own month in UTC.
    hours = decode_time(np.arange(24.0), {"units": "hours since 1990-01-01 0:0 12"}, "f")
    assert str(hours.dates[0]) == "1989-12-31 12:00:00"
