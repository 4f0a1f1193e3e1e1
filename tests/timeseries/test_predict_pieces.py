"""Long Parquet files in pieces: forecasts as of the whole file, one line for what cannot be."""

from __future__ import annotations

import datetime as dt
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

from long_files import ragged, write
from longseq.core.errors import ConfigError, DataError
from longseq.core.shell.cli import main
from longseq.timeseries import Forecaster
from longseq.timeseries.data import long_file
from longseq.timeseries.data.frames import Roles, read_panel
from longseq.timeseries.data.long_file import LongFile, is_large
from longseq.timeseries.data.module import ForecastData
from longseq.timeseries.forecast import forecast_frame
from longseq.timeseries.predict_pieces import forecast_pieces, piece_forecaster, write_pieces
from longseq.timeseries.task import Informer, MixerForecaster


def panels_equal(path: Path, roles: Roles | None = None) -> LongFile:
    """Checks that the pieces of a file are the columns of its panel."""
    whole, file = read_panel(path, roles=roles or Roles()), LongFile(path, roles)
    parts = list(file.panels())
    for part in parts:
        pd.testing.assert_index_equal(part.ds, whole.ds, exact=True)
        assert part.freq == whole.freq
    assert tuple(name for part in parts for name in part.ids) == whole.ids
    np.testing.assert_array_equal(np.concatenate([p.values for p in parts], 1), whole.values)
    assert sorted(file.survey.notes) == sorted(whole.notes)
    assert file.survey.series == len(whole.ids)
    return file


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of 64 rows and panels of few series, so that small files have many pieces."""
    monkeypatch.setattr(long_file, "BATCH", 64)
    monkeypatch.setattr(long_file, "CELLS", 900)


@pytest.mark.parametrize("rows", [17, 64, 150, 10_000])
def test_a_series_over_many_row_groups_is_joined(rows: int, tmp_path: Path) -> None:
    path = write(ragged(), tmp_path / "a.parquet", rows, empty=True)
    file = panels_equal(path)  # s2 has 400 rows: 3 row groups of 150, 24 of 17
    assert len(list(file.panels())) > 2


def kinds() -> dict[str, tuple[pd.DataFrame, Roles]]:
    """Frames of every kind of names and times."""
    frame, found = ragged(), {}
    codes = frame["unique_id"].str[1:].astype(int)
    found["whole-number names"] = frame.assign(unique_id=codes.map({0: 7, 1: 3, 2: 40, 3: 1, 4: 2}))
    found["categories"] = frame.astype({"unique_id": "category"})
    found["days"] = frame.assign(ds=frame["ds"].dt.date)
    found["texts"] = frame.assign(ds=frame["ds"].dt.strftime("%Y-%m-%d"))
    found["european texts"] = frame.assign(ds=frame["ds"].dt.strftime("%d.%m.%Y"))
    found["numbers like dates"] = frame.assign(ds=frame["ds"].dt.strftime("%Y%m%d").astype(int))
    found["numbers"] = frame.assign(ds=(frame["ds"] - frame["ds"].min()).dt.days * 3)
    found["epochs"] = frame.assign(ds=frame["ds"].astype("int64") // 10**6)
    found["counts"] = frame.assign(y=frame["y"].fillna(4).astype(int), shop="a")
    found["other columns"] = frame.assign(z=1.0, when=frame["ds"])
    hours = pd.date_range("2024-03-30", periods=len(frame), freq="h", tz="UTC").tz_convert(
        "Europe/Berlin"
    )
    found["a zone"] = frame.assign(ds=hours)
    found["offsets"] = frame.assign(ds=[one.isoformat() for one in hours])
    plain = {name: (one, Roles()) for name, one in found.items()}
    # Hours of October, of which one comes twice in each series.
    local = pd.date_range("2024-10-26", periods=60, freq="h", tz="Europe/Berlin").tz_localize(None)
    parts = [pd.DataFrame({"unique_id": f"s{i}", "ds": local, "y": 1.0 * i}) for i in range(4)]
    clock = pd.concat(parts, ignore_index=True)
    plain["a clock"] = clock, Roles(zone="Europe/Berlin")
    named = frame.rename(columns={"unique_id": "shop", "ds": "day", "y": "sold"})
    plain["roles"] = named, Roles(id="shop", time="day", target="sold")
    return plain


@pytest.mark.parametrize("kind", kinds())
def test_names_and_times_are_read_as_of_the_whole_file(kind: str, tmp_path: Path) -> None:
    frame, roles = kinds()[kind]
    panels_equal(write(frame, tmp_path / "a.parquet"), roles)


def test_an_index_that_pandas_wrote_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    ragged().set_index(["unique_id", "ds"]).to_parquet(path)
    panels_equal(path)
    ragged().iloc[::-1].iloc[::-1].to_parquet(path)  # with numbers of rows
    panels_equal(path)


def test_what_cannot_be_read_in_pieces_is_refused_by_name(tmp_path: Path) -> None:
    frame, path = ragged(), tmp_path / "a.parquet"
    second = frame[frame["unique_id"] == "s0"]

    def refused(table: pd.DataFrame, match: str, roles: Roles | None = None, rows=50) -> None:
        file = write(table, path, rows)
        with pytest.raises((DataError, ConfigError), match=match) as caught:
            list(LongFile(file, roles).panels())
        assert "a.parquet" in str(caught.value)

    later = pd.concat([frame, second.assign(ds=second["ds"] + pd.Timedelta(days=200))])
    refused(later, "row 558: the series 's0' begins again after another one.*scan_parquet")
    refused(frame.sort_values("ds"), "begins again", rows=10_000)
    refused(frame[::-1], r"row 1 \(s4\): the time .* comes after")
    refused(pd.concat([frame[:100], frame[99:]]), r"row 100 \(s2\): the time .* is a duplicate")
    refused(frame.assign(unique_id=frame["unique_id"].mask(frame.index == 120)), "row 120.*empty")
    refused(frame.assign(ds=frame["ds"].mask(frame.index == 99)), "row 99: 'ds' is empty")
    refused(frame.assign(y=frame["y"].mask(frame.index == 98, np.inf)), "row 98: 'y' is inf")
    refused(frame.assign(y="1,5"), "'y' is of .*string, numbers are needed")
    refused(frame.pivot(index="ds", columns="unique_id", values="y").reset_index(), "wide frame")
    refused(frame.drop(columns="ds"), "no time column")
    refused(frame[:0], "no rows")
    refused(frame, "no column 'unique'; did you mean 'unique_id'", Roles(id="unique"))
    refused(frame, "resample looks at all series", Roles(resample="2D"))
    refused(frame.assign(p=1.0), "a covariate looks at all series", Roles(future=("p",)))
    refused(frame, "value missing", Roles(missing="error"))
    empty = write(frame.assign(y=frame["y"].where(frame["unique_id"] != "s3")), path)
    with pytest.raises(DataError, match=r"a\.parquet: the series 's3' has no value"):
        Forecaster("theta").predict(3, frame=empty, out=tmp_path / "f.csv")
    text = tmp_path / "a.csv"
    frame.to_csv(text, index=False)
    with pytest.raises(DataError, match="no Parquet file"):
        LongFile(text)
    damaged = tmp_path / "bad.parquet"
    damaged.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match=r"bad\.parquet: cannot be read"):
        LongFile(damaged)


def test_the_way_out_of_an_unordered_file_works(tmp_path: Path) -> None:
    import polars as pl

    path, sorted_ = tmp_path / "a.parquet", tmp_path / "sorted.parquet"
    write(ragged().sort_values(["ds", "unique_id"]), path)
    pl.scan_parquet(path).sort("unique_id", "ds").sink_parquet(sorted_)
    panels_equal(sorted_)


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_the_command_writes_what_it_writes_of_the_whole_file(
    suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(ragged(), tmp_path / "a.parquet")
    said, frames = [], []
    for how in ("no", "yes"):
        out = tmp_path / f"{how}.{suffix}"
        argv = ["timeseries", "predict", str(path), "--horizon", "3", "--in_pieces", how]
        assert main([*argv, "--level", "50", "--level", "90", "--out", str(out)]) == 0
        shown = capsys.readouterr()
        said.append(shown.out.replace(str(out), "OUT").splitlines())
        frames.append(pd.read_parquet(out) if suffix == "parquet" else pd.read_csv(out))
    assert said[0] == said[1] and "and are forecast from their own ends" in said[0][0]
    assert "558 rows in 12 row groups are read in pieces" in shown.err
    pd.testing.assert_frame_equal(*frames, rtol=1e-6)
    if suffix == "parquet":
        assert pq.ParquetFile(out).num_row_groups > 2


def test_texts_of_times_look_alike_in_all_pieces(tmp_path: Path) -> None:
    midnight = pd.date_range("2024-01-01", periods=24, freq="h")  # the first piece ends at 23:00
    parts = [
        pd.DataFrame({"unique_id": f"s{i}", "ds": midnight[: 24 - i], "y": np.arange(24.0 - i)})
        for i in range(3)
    ]
    path, found = write(pd.concat(parts), tmp_path / "a.parquet", 24), []
    for how in ("no", "yes"):
        out = tmp_path / f"{how}.csv"
        argv = ["timeseries", "predict", str(path), "--horizon", "1", "--in_pieces", how]
        assert main([*argv, "--out", str(out)]) == 0
        found.append(pd.read_csv(out)[["ds", "cutoff"]])
    pd.testing.assert_frame_equal(*found)


def trained(path: Path, cls=MixerForecaster, **more) -> MixerForecaster:
    """An untrained task with the scaler that ``fit`` would give it."""
    torch.manual_seed(0)
    task = cls(context=14, horizon=4, d_model=8, **more).eval()
    task.facts = ForecastData(str(path), "ratio", 14, 4, min_context=1).facts()
    return task


@pytest.mark.parametrize("likelihood", [None, "quantiles"])
def test_a_checkpoint_forecasts_and_calibrates_as_on_the_whole_file(
    likelihood: str | None, tmp_path: Path
) -> None:
    path = write(ragged((90, 300, 400, 395, 60)), tmp_path / "a.parquet")
    task = trained(path, n_layers=1, patch=7, stride=7, likelihood=likelihood)
    expected, file = forecast_frame(task, read_panel(path), levels=(80,)), LongFile(path)
    make = piece_forecaster(file, 4, task, (80,))
    parts = [frame for _, frame in forecast_pieces(file, make, say=False)]
    assert len(parts) > 2
    found = pd.concat(parts, ignore_index=True)
    pd.testing.assert_frame_equal(found, expected, rtol=1e-5)
    with pytest.raises(ConfigError, match="Informer takes all series at once"):
        many = {"n_heads": 2, "d_ff": 16, "label": 7, "channels": 5, "features": 3}
        piece_forecaster(file, 4, trained(path, Informer, **many))


def test_a_piece_of_ended_series_has_no_intervals_as_on_the_whole_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = ragged((300, 300, 400, 395, 360))
    rank = frame.groupby("unique_id").cumcount()
    early = frame["unique_id"].isin(["s0", "s1"]) & (rank >= 60)
    path = write(frame[~early].reset_index(drop=True), tmp_path / "a.parquet")
    task, file = trained(path, n_layers=1, patch=7, stride=7), LongFile(path)
    expected = forecast_frame(task, read_panel(path), levels=(80,))
    parts = [one for _, one in forecast_pieces(file, piece_forecaster(file, 4, task, (80,)), False)]
    found = pd.concat(parts, ignore_index=True)
    pd.testing.assert_frame_equal(found, expected, rtol=1e-5)
    none = found.groupby("unique_id")["MixerForecaster-lo-80"].apply(lambda one: one.isna().all())
    assert none.to_dict() == {"s0": True, "s1": True, "s2": False, "s3": False, "s4": False}
    assert any(set(one["unique_id"]) <= {"s0", "s1"} for one in parts)
    assert "no interval there" in capsys.readouterr().err


def test_a_piece_of_short_series_has_no_forecasts_as_on_the_whole_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = write(ragged((300, 300, 400, 395, 360)), tmp_path / "long.parquet")
    task = trained(long, n_layers=1, patch=7, stride=7)
    task.facts |= {"least": 14}
    path = write(ragged((9, 12, 400, 395, 360)), tmp_path / "a.parquet")
    file, expected = LongFile(path), forecast_frame(task, read_panel(path))
    assert "left out for want of 14 rows" in capsys.readouterr().err
    make = piece_forecaster(file, 4, task)
    assert set(expected["unique_id"]) == {"s2", "s3", "s4"}
    for name, read in (("f.csv", pd.read_csv), ("f.parquet", pd.read_parquet)):
        frames = (one for _, one in forecast_pieces(file, make, False))
        assert write_pieces(tmp_path / name, frames, True) == 12
        found = read(tmp_path / name)
        found[["ds", "cutoff"]] = found[["ds", "cutoff"]].apply(pd.to_datetime)
        pd.testing.assert_frame_equal(found, expected, rtol=1e-5, check_dtype=False)
    short = LongFile(write(ragged((9, 12)), tmp_path / "b.parquet"))
    with pytest.raises(DataError, match=r"b\.parquet: no series is long enough"):
        list(forecast_pieces(short, piece_forecaster(short, 4, task), False))


def test_options_that_need_the_whole_file_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = write(ragged(), tmp_path / "a.parquet"), tmp_path / "f.parquet"
    out.write_text("earlier")
    argv = ["timeseries", "predict", str(path), "--horizon", "3", "--out", str(out)]
    assert main([*argv, "--in_pieces", "no", "--missing", "error"]) == 2
    # It counts over the whole file, though it is read in pieces.
    whole = capsys.readouterr().err.removeprefix("error: ")
    assert re.search(r"value missing \([\d,]+ of [\d,]+ are\)", whole)
    for more, named in (
        (["--in_pieces", "yes", "--cutoffs", "2"], "--cutoffs needs the whole file"),
        (["--in_pieces", "yes", "--holidays", "DE"], "a covariate looks at all series"),
        (["--in_pieces", "yes", "--missing", "error"], whole),
    ):
        assert main([*argv, *more]) == 2
        assert named in capsys.readouterr().err and out.read_text() == "earlier"
    assert [one.name for one in tmp_path.iterdir() if one.name.startswith(".")] == []
    monkeypatch.setattr(long_file, "memory", lambda: 558 * 150 * 4)
    assert not is_large(path)
    monkeypatch.setattr(long_file, "memory", lambda: 558 * 150 * 4 - 4)
    assert is_large(path) and not is_large(tmp_path / "none.parquet")
    wide = tmp_path / "wide.parquet"
    pd.DataFrame({"ds": range(999), "a": 1.0}).to_parquet(wide)
    assert not is_large(wide)
    assert main(argv) == 0
    assert "are read in pieces" in capsys.readouterr().err


@pytest.mark.parametrize("model", ["zero_shot", "theta", "seasonal_naive"])
def test_the_forecaster_reads_a_path_in_pieces(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = write(ragged(), tmp_path / "a.parquet"), tmp_path / "f.parquet"
    made = Forecaster(model)
    expected = made.fit(ragged()).predict(3)
    assert made.predict(3, frame=path, out=out) == out
    assert pq.ParquetFile(out).num_row_groups > 2
    pd.testing.assert_frame_equal(pd.read_parquet(out), expected, rtol=1e-6)
    monkeypatch.setattr(long_file, "memory", lambda: 1000)
    pd.testing.assert_frame_equal(Forecaster(model).predict(3, frame=path), expected, rtol=1e-6)


def test_forecasters_of_all_series_do_not_take_pieces(tmp_path: Path) -> None:
    path = write(ragged(), tmp_path / "a.parquet")
    with pytest.raises(ConfigError, match="nlinear_ridge looks at all series at once"):
        Forecaster("nlinear_ridge").predict(3, frame=path, out=tmp_path / "f.csv")
    with pytest.raises(ConfigError, match="conformal intervals look at all series"):
        Forecaster("theta", conformal=9).predict(3, frame=path, out=tmp_path / "f.csv")
    out = Forecaster("theta").fit(ragged()).predict(3, out=tmp_path / "f.csv")
    assert len(pd.read_csv(out)) == 15


def test_a_table_written_in_pieces_keeps_its_kinds(tmp_path: Path) -> None:
    ds = pd.date_range("2024-01-01", periods=4, freq="D")
    frame = pd.DataFrame({"unique_id": list("aabb"), "ds": ds, "cutoff": ds, "y": np.nan})
    for days, text in ((True, "2024-01-02"), (False, "2024-01-02 00:00:00")):
        assert write_pieces(tmp_path / "f.csv", [frame[:2], frame[2:]], days) == 4
        lines = (tmp_path / "f.csv").read_text().splitlines()
        assert lines[2] == f"a,{text},{text}," and len(lines) == 5
    assert write_pieces(tmp_path / "f.parquet", [frame[:2], frame[2:]]) == 4
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "f.parquet"), frame)
    assert isinstance(frame["ds"][0], dt.datetime)


@pytest.mark.parametrize("device", ["gpux", "cuda:99", "cuda:x"])
def test_a_device_that_is_not_there_is_refused(
    device: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = write(ragged(), tmp_path / "a.parquet"), tmp_path / "f.csv"
    argv = ["timeseries", "predict", str(path), "--horizon", "3", "--out", str(out)]
    for how in ("yes", "no"):
        assert main([*argv, "--in_pieces", how, "--device", device]) == 2
        assert f"--device: no device '{device}'" in (said := capsys.readouterr().err) or (
            f"--device: {device} is not there: longseq doctor" in said
        )
    assert not out.exists()


def test_the_forecaster_writes_over_nothing_that_it_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, link = write(ragged(), tmp_path / "a.parquet"), tmp_path / "link.parquet"
    link.symlink_to(path)
    before = path.read_bytes()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for frame in (path, link, "a.parquet"):
        for out in (path, link, "./a.parquet", "~/a.parquet"):
            with pytest.raises(ConfigError, match="would overwrite the input"):
                Forecaster("repeat").predict(3, frame=frame, out=out)
    fitted = Forecaster("repeat").fit(str(path))
    for out in (path, link):
        with pytest.raises(ConfigError, match="would overwrite the input"):
            fitted.predict(3, out=out)
        with pytest.raises(ConfigError, match="would overwrite the input"):
            fitted.plot(fitted.predict(3), out)
    path.rename(tmp_path / "series.parquet")
    with pytest.raises(ConfigError, match="would overwrite the input"):
        Forecaster("repeat").fit("series.parquet").save(tmp_path)
    assert (tmp_path / "series.parquet").read_bytes() == before


def test_periods_are_not_read_as_the_numbers_that_they_are_stored_as(tmp_path):
    months = pd.period_range("2020-01", periods=40, freq="M")
    frame = pd.DataFrame({"unique_id": "a", "ds": months, "y": np.arange(40.0)})
    path = tmp_path / "periods.parquet"
    frame.to_parquet(path, index=False)
    with pytest.raises(DataError, match=r"'ds' is of .*period.*read it whole: --in_pieces no"):
        LongFile(path)
    found = Forecaster("theta").predict(2, frame=path)
    assert list(found["ds"]) == [pd.Timestamp("2023-05-01"), pd.Timestamp("2023-06-01")]
