"""Months and seasons of every year, incomplete years at the ends, and several variables."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import cftime
import numpy as np
import pytest
import xarray as xr

from longseq.core.errors import ConfigError, DataError
from longseq.core.shell.cli import main
from longseq.weather.data.seasons import Part, parse_months
from longseq.weather.data.yearly import read_years

LAT, LON = np.array([-30.0, 0.0, 30.0]), np.array([0.0, 90.0, 180.0, 270.0])
EPOCH = "days since 2000-01-01"


def monthly(
    first: tuple[int, int], count: int, bounds: bool = True, calendar: str = "noleap"
) -> xr.Dataset:
    """Returns months whose value is the year plus a hundredth of the month."""
    months = [first[0] * 12 + first[1] - 1 + step for step in range(count + 1)]
    starts = [cftime.datetime(m // 12, m % 12 + 1, 1, calendar=calendar) for m in months]
    numbers = cftime.date2num(starts, EPOCH, calendar).astype(float)
    edges = np.stack([numbers[:-1], numbers[1:]], 1)
    values = np.array([m // 12 + (m % 12 + 1) / 100 for m in months[:-1]])
    fields = np.broadcast_to(values[:, None, None], (count, 3, 4)).astype("f8") / 10
    time = {"units": EPOCH, "calendar": calendar, "standard_name": "time"}
    data = xr.Dataset(
        {"tas": (("time", "lat", "lon"), fields, {"units": "K"})},
        {
            "time": ("time", edges.mean(1), {**time, **({"bounds": "t_b"} if bounds else {})}),
            "lat": ("lat", LAT, {"units": "degrees_north"}),
            "lon": ("lon", LON, {"units": "degrees_east"}),
        },
    )
    if bounds:
        data["t_b"] = (("time", "b"), edges)
    return data


@pytest.mark.parametrize(
    ("text", "months"),
    [
        ("7", (7,)),
        ("jul", (7,)),
        ("6-8", (6, 7, 8)),
        ("JJA", (6, 7, 8)),
        ("DJF", (12, 1, 2)),
        ("12-2", (12, 1, 2)),
        ("dec-feb", (12, 1, 2)),
        ("NDJFM", (11, 12, 1, 2, 3)),
        ("1-12", ()),
    ],
)
def test_months_are_understood(text: str, months: tuple[int, ...]) -> None:
    assert parse_months(text) == months


@pytest.mark.parametrize("text", ["13", "0-3", "JAM", "", "6-8-9", "summer"])
def test_other_words_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="months such as 7, 6-8, 12-2 or JJA are needed"):
        parse_months(text)


@pytest.mark.parametrize("bounds", [True, False])
def test_a_season_is_the_mean_over_its_days(write: Callable[..., Path], bounds: bool) -> None:
    path = write(monthly((2001, 1), 36, bounds))
    found = read_years(path, difference=True, part=Part((6, 7, 8)))
    assert found.years.tolist() == [2001, 2002, 2003]
    expected = np.average([200.106, 200.107, 200.108], weights=[30, 31, 31])
    np.testing.assert_allclose(found.values[0], expected, rtol=1e-6)
    assert str(found.bounds[0, 0])[:10] == "2001-06-01" and str(found.bounds[0, 1])[:10] == (
        "2001-09-01"
    )
    assert "means of jun-aug" in found.notes


def test_winters_go_over_the_turn_of_the_year(write: Callable[..., Path]) -> None:
    found = read_years(write(monthly((2001, 1), 36)), difference=True, part=Part((12, 1, 2)))
    # The year is that of the middle; the half winters at the ends are left out and named.
    assert found.years.tolist() == [2002, 2003]
    expected = np.average([200.112, 200.201, 200.202], weights=[31, 31, 28])
    np.testing.assert_allclose(found.values[0], expected, rtol=1e-6)
    assert any(note.startswith("incomplete dec-feb left out: 2001, 2004") for note in found.notes)


def test_one_month_of_a_file_that_begins_in_april(write: Callable[..., Path]) -> None:
    path = write(monthly((2001, 4), 30))
    with pytest.raises(DataError, match="--whole_years leaves out incomplete years at the ends"):
        read_years(path, difference=True)
    assert read_years(path, difference=True, part=Part((7,))).years.tolist() == [2001, 2002, 2003]
    whole = read_years(path, difference=True, part=Part(whole=True))
    assert whole.years.tolist() == [2002]
    assert "incomplete years left out: 2001, 2003" in whole.notes
    gap = write(monthly((2001, 4), 36).isel(time=[9, 33]), "gap.nc")
    with pytest.raises(DataError, match="2002 and 2004 follow each other"):
        read_years(gap, difference=True, part=Part((1,)))


def test_a_hole_in_the_middle_is_refused_all_the_same(write: Callable[..., Path]) -> None:
    data = monthly((2001, 1), 36).isel(time=[n for n in range(36) if n != 18])
    with pytest.raises(DataError, match="year 2002"):
        read_years(write(data), difference=True, part=Part(whole=True))
    with pytest.raises(DataError, match=r"jun-aug of 2002.*61 of 92 days"):
        read_years(write(data, "b.nc"), difference=True, part=Part((6, 7, 8), whole=True))
    assert len(read_years(write(data, "c.nc"), difference=True, part=Part((1,))).time) == 3


def test_months_of_yearly_means_are_refused(runs) -> None:
    with pytest.raises(DataError, match="months cannot be taken from them"):
        read_years(runs[0], part=Part((6,)))


def _pair(write: Callable[..., Path], masked: int = 0) -> list[str]:
    """Two runs of two variables, monthly, the first rows without values."""
    paths = []
    for name, seed in (("high", 1), ("low", 2)):
        data = monthly((1990, 4), 12 * 30)
        rng = np.random.default_rng(seed)
        level = np.linspace(0, seed, 360)[:, None, None]
        field = 280 + level + 0.3 * rng.standard_normal((360, 3, 4))
        field[:, :masked] = np.nan
        data["tas"] = (("time", "lat", "lon"), field, {"units": "K"})
        data["pr"] = (("time", "lat", "lon"), np.abs(field) / 100, {"units": "mm/day"})
        paths.append(str(write(data, f"{name}{masked}.nc")))
        paths.append(str(write(data.isel(lat=slice(masked, None)), f"{name}{masked}_cut.nc")))
    return paths


def _compare(train: str, test: str, out: Path, *more: str) -> list[dict[str, str]]:
    argv = ["weather", "compare", "--train", train, "--test", test, "--baseline", "1992-1999"]
    argv += ["--period", "2010-2017", "--smooth", "3", "--models", "lps,zero", *more]
    assert main([*argv, "--out", str(out)]) == 0
    return list(csv.DictReader(out.open()))


def test_several_variables_and_seasons_are_a_table_each(
    write: Callable[..., Path], tmp_path: Path, capsys
) -> None:
    high, _, low, _ = _pair(write)
    more = ["--variable", "tas,pr", "--months", "JJA,DJF", "--units", "K,mm/day"]
    rows = _compare(high, low, tmp_path / "t.csv", *more)
    assert [(row["variable"], row["months"]) for row in rows[::2]] == [
        ("tas", "JJA"),
        ("tas", "DJF"),
        ("pr", "JJA"),
        ("pr", "DJF"),
    ]
    said = capsys.readouterr().out
    assert "pr DJF:" in said and "tas JJA:" in said
    each = _compare(high, low, tmp_path / "e.csv", "--variable", "tas", "--months", "each")
    assert [row["months"] for row in each[::2]] == [str(month) for month in range(1, 13)]


def test_masked_cells_score_as_if_cut_out(write: Callable[..., Path], tmp_path: Path) -> None:
    high, high_cut, low, low_cut = _pair(write, masked=1)
    more = ["--variable", "tas", "--months", "JJA"]
    masked = _compare(high, low, tmp_path / "m.csv", *more)
    # Without bounds the cut file's first row ends where the whole one's does.
    cut = _compare(high_cut, low_cut, tmp_path / "c.csv", *more)
    for one, other in zip(masked, cut):
        for key in ("spatial_rmse", "noise_floor"):
            assert float(one[key]) == pytest.approx(float(other[key]), rel=1e-6)


def test_a_season_is_emulated_and_predicted(write: Callable[..., Path], tmp_path: Path) -> None:
    high = _pair(write)[0]
    argv = ["weather", "fit", "--config", "emulator", f"--data.train=[{high}]", "--data.test=null"]
    argv += ["--data.variable=tas", "--data.months=DJF", "--data.baseline=1992-1999"]
    argv += ["--data.valid=null", "--model.height=3", "--model.width=4", "--model.d_model=8"]
    argv += ["--model.n_layers=1", "--model.mixer_kwargs={d_state: 4}", "--trainer.max_steps=2"]
    assert (
        main(
            [
                *argv,
                "--trainer.limit_val_batches=0",
                f"--trainer.default_root_dir={tmp_path}",
                "--name=r",
            ]
        )
        == 0
    )
    out = tmp_path / "p.nc"
    ckpt = tmp_path / "r/version_0/checkpoints/last.ckpt"
    table = tmp_path / "level.csv"
    rows = "".join(f"{year},{year / 1e3}\n" for year in range(1991, 2020))
    table.write_text(f"year,regional_mean\n{rows}")
    argv = ["weather", "predict", str(table), "--ckpt_path", str(ckpt)]
    assert main([*argv, "--out", str(out)]) == 0
    decode = xr.coders.CFDatetimeCoder(use_cftime=True)
    made = xr.open_dataset(out, engine="h5netcdf", decode_times=decode)
    assert str(made.time.values[0])[:7] == "1991-01"
    assert [str(one)[:10] for one in made["time_bnds"].values[0]] == ["1990-12-01", "1991-03-01"]


def test_sums_stay_sums(lab, write) -> None:
    rain = np.random.default_rng(0).gamma(0.5, 20, (24, 4, 5)).astype(np.float32)
    times = np.arange(24) * 30 + 14.0
    data = lab.dataset(rain, times=times, units="mm", name="pr")
    data["pr"].attrs |= {"standard_name": "precipitation_amount", "cell_methods": "time: sum"}
    found = read_years(write(data))
    assert found.units == "kg m-2" and "yearly sums" in found.notes
    assert np.allclose(found.values, rain.reshape(2, 12, 4, 5).sum(1), rtol=1e-5)
    summer = read_years(write(data), part=Part(parse_months("JJA")))
    assert np.allclose(summer.values[1], rain[17:20].sum(0), rtol=1e-5)
    # A mean of daily sums is a mean.
    data["pr"].attrs["cell_methods"] = "time: sum within days time: mean over days"
    found = read_years(write(data, "mean.nc"))
    assert np.allclose(found.values[0], rain[:12].mean(0), rtol=1e-5)
