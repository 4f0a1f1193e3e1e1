"""GRIB files: fields, members, sums over steps, quantities beside each other, damaged files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from longseq.core.errors import DataError
from longseq.core.shell.cli import main
from longseq.weather.data import grib
from longseq.weather.data.runs import read_run
from longseq.weather.data.source import read_field
from longseq.weather.data.yearly import read_years

pytest.importorskip("cfgrib", reason="GRIB needs the extra grib (cfgrib and ecCodes)")

LAT, LON = np.array([60.0, 20, -20, -60]), np.arange(0, 360, 60.0)


def write_grib(path: Path, messages: list[tuple[int, str, np.ndarray, dict[str, Any]]], edition=1):
    """Writes messages: date (20000131), short name, values (4, 6) from north to south, keys."""
    import eccodes

    grid = {"latitudeOfFirstGridPointInDegrees": 60.0, "latitudeOfLastGridPointInDegrees": -60.0}
    grid |= {"longitudeOfFirstGridPointInDegrees": 0.0, "longitudeOfLastGridPointInDegrees": 300.0}
    grid |= {"iDirectionIncrementInDegrees": 60.0, "jDirectionIncrementInDegrees": 40.0}
    with path.open("wb") as out:
        for date, name, values, keys in messages:
            handle = eccodes.codes_grib_new_from_samples(f"regular_ll_sfc_grib{edition}")
            own = {"Ni": 6, "Nj": 4, **grid, "dataDate": date, "dataTime": 0, "shortName": name}
            own |= {**keys, "bitsPerValue": 24}
            lost = np.isnan(values)
            if lost.any():
                own |= {"bitmapPresent": 1, "missingValue": 9999}
            for key, value in own.items():
                eccodes.codes_set(handle, key, value)
            eccodes.codes_set_values(handle, np.where(lost, 9999.0, values).ravel())
            eccodes.codes_write(handle, out)
            eccodes.codes_release(handle)
    return path


def months(seed: int = 0, name: str = "2t", count: int = 24, **keys):
    """Returns monthly messages from January 2000."""
    found = 280 + 5 * np.random.default_rng(seed).standard_normal((count, 4, 6))
    dates = [(2000 + month // 12) * 10000 + (month % 12 + 1) * 100 + 1 for month in range(count)]
    return [(date, name, values, keys) for date, values in zip(dates, found)]


@pytest.mark.parametrize("edition", [1, 2])
def test_monthly_means_become_yearly_ones(edition, tmp_path) -> None:
    messages = months()
    messages = [
        (d, n, np.where(np.arange(24).reshape(4, 6) == 3, np.nan, v), k) for d, n, v, k in messages
    ]
    path = write_grib(tmp_path / "t.grib", messages, edition)
    found = read_years(path)
    assert (found.name, found.units, found.years.tolist()) == ("t2m", "K", [2000, 2001])
    assert found.lat.tolist() == LAT[::-1].tolist() and found.lon.tolist() == LON.tolist()
    days = [31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]
    mean = np.average([values for _, _, values, _ in messages[:12]], axis=0, weights=days)[::-1]
    assert np.allclose(found.values[0], mean, atol=1e-4, equal_nan=True)
    assert found.mask.sum() == 23 and not found.mask[-1, 3]
    assert not list(tmp_path.glob("*.idx"))  # nothing is left beside the file


def test_files_of_one_month_each_are_a_run(tmp_path) -> None:
    whole = read_years(write_grib(tmp_path / "all.grib", months()))
    for number, message in enumerate(months()):
        write_grib(tmp_path / f"m_{number:02d}.grib", [message])
    assert read_field(tmp_path / "m_00.grib").values.shape == (1, 4, 6)
    found = read_run(f"{tmp_path}/m_*.grib")
    assert np.array_equal(found.values, whole.values)


def test_members_and_several_quantities(tmp_path) -> None:
    keys = {"localDefinitionNumber": 1}
    messages = [m for member in range(3) for m in months(member, count=12, number=member, **keys)]
    found = read_field(write_grib(tmp_path / "m.grib", messages))
    assert found.values.shape == (3, 12, 4, 6)
    # 2 m and 10 m do not fit into one data set, so the wanted one has to be named.
    both = [m for pair in zip(months(count=12), months(1, "10u", 12)) for m in pair]
    path = write_grib(tmp_path / "both.grib", both, 2)
    with pytest.raises(DataError, match=r"\(2t, 10u\) do not fit into one data set.*--variable"):
        read_field(path)
    for name in ("2t", "t2m", "air_temperature"):
        assert read_field(path, name).name == "t2m"
    with pytest.raises(DataError, match=r"has no variable 'tas' \(it has 2t, 10u\)"):
        read_field(path, "tas")


def test_sums_over_steps_have_their_intervals(tmp_path, capsys) -> None:
    rain = [np.full((4, 6), 0.001 * step) for step in range(1, 49)]

    def steps(ranges):
        keys = [{"stepType": "accum", "stepRange": one} for one in ranges]
        return [(20000101, "tp", values, key) for values, key in zip(rain, keys)]

    hourly = write_grib(tmp_path / "h.grib", steps(f"{hour}-{hour + 1}" for hour in range(48)))
    found = read_field(hourly)
    assert found.units == "kg m-2" and np.allclose(
        found.values[:, 0, 0], np.arange(1, 49), rtol=1e-4
    )
    assert str(found.bounds[0, 0]) == "2000-01-01 00:00:00" and "sum" in found.attrs["cell_methods"]
    assert main(["weather", "inspect", str(hourly)]) == 0
    assert "intervals from 2000-01-01 00:00:00 to 2000-01-03" in capsys.readouterr().out
    # From the start of the forecast on they are of all lengths.
    with pytest.raises(DataError, match=r"tp: its values are of steps of 6, 12 hours"):
        read_field(write_grib(tmp_path / "s.grib", steps(["0-6", "0-12"])))
    twice = [
        (date, "2t", rain[0] + 280, {"stepRange": step})
        for date, step in ((20000101, "24"), (20000102, "0"))
    ]
    with pytest.raises(DataError, match="2t: 2 messages hold at 20000102 0000"):
        read_field(write_grib(tmp_path / "twice.grib", twice))


def test_damaged_files_are_refused(tmp_path) -> None:
    whole = write_grib(tmp_path / "w.grib", months(count=12)).read_bytes()
    for name, content in (
        ("cut", whole[:-50]),
        ("bad", whole[:60] + bytes(90)),
        ("zero", b"GRIB" + bytes(99)),
    ):
        path = tmp_path / f"{name}.grib"
        path.write_bytes(content)
        with pytest.raises(DataError, match="damaged"):
            read_field(path)


def test_what_ends_eccodes_does_not_end_the_program(tmp_path, monkeypatch) -> None:
    path = write_grib(tmp_path / "w.grib", months(count=12))
    opened = grib._opened

    def abort(*args: object) -> object:
        if os.getpid() != own:  # as ecCodes does where it frees memory twice
            os.abort()
        return opened(*args)

    own = os.getpid()
    monkeypatch.setattr(grib, "_opened", abort)
    grib._survived.cache_clear()
    with pytest.raises(DataError, match="ecCodes ended by SIGABRT"):
        read_field(path)


def test_values_that_cannot_be_read_are_known_before(tmp_path, monkeypatch) -> None:
    path = write_grib(tmp_path / "w.grib", months(count=12))
    opened = grib._opened

    class Unreadable:
        shape = (4, 6)

        def __getitem__(self, place: object) -> object:
            return self

        def __array__(self, *args: object, **kwargs: object) -> np.ndarray:
            raise RuntimeError("Invalid number of bits per value")

    class Damaged:
        data_vars: ClassVar = {"t2m": Unreadable()}

    own = os.getpid()
    monkeypatch.setattr(
        grib, "_opened", lambda *args: opened(*args) if os.getpid() == own else Damaged()
    )
    grib._survived.cache_clear()
    with pytest.raises(DataError, match="values of a message cannot be read"):
        read_field(path)
