"""``longseq weather inspect``: every refusal is listed, and the years that the records make."""

from __future__ import annotations

import cftime
import pytest

from longseq.core.errors import DataError
from longseq.weather.inspect import run


def test_every_refusal_is_listed(tmp_path, capsys) -> None:
    for name in ("a.nc", "b.nc"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataError, match="none of the 2 files can be read"):
        run([str(tmp_path)])
    text = capsys.readouterr().err
    assert "a.nc: the NetCDF file is empty" in text and "b.nc: the NetCDF file is empty" in text


def test_years_are_told_and_what_is_incomplete(lab, write, capsys) -> None:
    dates = [cftime.datetime(1900 + i // 12, i % 12 + 1, 15, calendar="noleap") for i in range(36)]
    times = cftime.date2num(dates, "days since 1850-01-01", "noleap")
    data = lab.dataset(lab.fields()[:36], calendar="noleap", times=times)
    assert run([str(write(data))]) == 0
    assert "  years 1900 … 1902, 12 records each\n" in capsys.readouterr().out
    assert run([str(write(data.isel(time=slice(0, 35)), "cut.nc"))]) == 0
    assert "no whole years: year 1902: has 11 records" in capsys.readouterr().out
    gap = data.isel(time=[*range(12), *range(24, 36)])
    assert run([str(write(gap, "gap.nc"))]) == 0
    assert "no whole years: the years 1900 and 1902 follow each other" in capsys.readouterr().out


def test_a_dimension_too_many_names_the_way_out(lab, write) -> None:
    data = lab.dataset(lab.fields()).expand_dims(plev=[850.0, 500.0])
    with pytest.raises(DataError, match=r"2 entries along 'plev' .*ncks -d plev,0 in out"):
        run([str(write(data))])


def test_a_run_of_several_files_is_joined_as_compare_joins_it(lab, write, capsys) -> None:
    data = lab.dataset(lab.fields())
    first = write(data.isel(time=slice(0, 40)), "tas_1.nc")
    second = write(data.isel(time=slice(40, 80)), "tas_2.nc")
    for text in (f"{first}+{second}", str(first.parent / "tas_?.nc")):
        assert run([text]) == 0
        said = capsys.readouterr().out
        assert said.startswith(f"{first}: tas") and f"\n{second}: tas" in said
        assert f"{text}: 2 files joined\n  years 1900 … 1979, yearly means\n" in said
    with pytest.raises(DataError, match="leave a gap"):
        run([f"{first}+{write(data.isel(time=slice(41, 80)), 'late.nc')}"])
    with pytest.raises(DataError, match="no file matches the pattern"):
        run([str(first.parent / "pr_*.nc")])
    second.write_bytes(b"")
    assert run([f"{first}+{second}"]) == 0  # what can be read is shown, as of a folder
    assert "tas_2.nc: the NetCDF file is empty" in capsys.readouterr().err
