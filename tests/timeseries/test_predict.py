"""Forecast frames: nothing after the cutoff counts, and nothing but the series and the model
does."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from longseq.core.errors import ConfigError, DataError
from longseq.core.shell.cli import main
from longseq.timeseries.baseline_frame import baseline_frame
from longseq.timeseries.data.frames import Panel, read_panel
from longseq.timeseries.data.module import ForecastData
from longseq.timeseries.forecast import forecast_frame
from longseq.timeseries.task import (
    TPGN,
    Autoformer,
    ForecastTask,
    Informer,
    InvertedForecaster,
    MixerForecaster,
    SpaceTime,
)

L, H = 48, 12
SMALL = {"context": L, "horizon": H, "d_model": 16}
TASKS = {
    "mixer": (MixerForecaster, {**SMALL, "n_layers": 1}),
    "spacetime": (SpaceTime, {**SMALL, "d_state": 6}),
    "informer": (Informer, {**SMALL, "n_heads": 2, "d_ff": 16, "label": 24, "channels": 2}),
    "autoformer": (Autoformer, {**SMALL, "n_heads": 2, "d_ff": 16, "label": 24, "channels": 2}),
    "tpgn": (TPGN, {**SMALL, "channels": 2, "d_model": 4}),
    "inverted": (InvertedForecaster, {**SMALL, "n_layers": 1, "mixer_kwargs": {"n_heads": 2}}),
}


@pytest.fixture
def panel(wide_csv: Path) -> Panel:
    return read_panel(wide_csv)


def make(name: str, wide_csv: Path) -> ForecastTask:
    """An untrained task with the scaler that ``fit`` would give it."""
    cls, arguments = TASKS[name]
    data = ForecastData(str(wide_csv), "ratio", L, H)
    torch.manual_seed(0)
    task = cls(**arguments).eval()
    task.facts = data.facts()
    return task


@pytest.mark.parametrize("name", TASKS)
def test_values_after_the_cutoff_change_nothing(name: str, wide_csv: Path, panel: Panel) -> None:
    task, cutoffs = make(name, wide_csv), [540, 552]
    frame = forecast_frame(task, panel, cutoffs, levels=(80,))
    for row in cutoffs:
        changed = panel.values.copy()
        changed[row:] = 1e4 * np.random.default_rng(0).standard_normal(changed[row:].shape)
        other = Panel(changed, panel.ids, panel.ds, panel.freq, panel.source)
        cut = Panel(panel.values[:row], panel.ids, panel.ds[:row], panel.freq, panel.source)
        expected = forecast_frame(task, panel, [row], levels=(80,)).drop(columns="y")
        for given in (other, cut):
            actual = forecast_frame(task, given, [row], levels=(80,)).drop(columns="y")
            pd.testing.assert_frame_equal(actual, expected, check_exact=True)
        # Several cutoffs at once give what each gives alone (intervals are those of the first).
        mine = frame[frame["cutoff"] == panel.ds[row - 1]].reset_index(drop=True)
        column = type(task).__name__
        np.testing.assert_allclose(mine[column], expected[column], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", TASKS)
def test_the_batch_size_changes_nothing(name: str, wide_csv: Path, panel: Panel) -> None:
    task = make(name, wide_csv)
    count = 512 // len(panel.ids) if task.channel_independent else 512  # one window has one or all
    cutoffs = list(range(L, L + count))
    column = type(task).__name__
    sizes = (1, 7, 512)
    frames = [forecast_frame(task, panel, cutoffs, batch_size=size)[column] for size in sizes]
    for other in frames[1:]:
        np.testing.assert_allclose(other, frames[0], rtol=1e-6, atol=1e-6)


def test_the_frame_has_the_usual_columns_and_the_future_times(wide_csv: Path, panel: Panel) -> None:
    task = make("mixer", wide_csv)
    frame = forecast_frame(task, panel, levels=(80,))
    name = "MixerForecaster"
    keys = ["unique_id", "ds", "cutoff", "y"]
    assert list(frame.columns) == [*keys, name, f"{name}-lo-80", f"{name}-hi-80", "SeasonalNaive"]
    assert (
        len(frame) == 2 * H and frame["y"].isna().all() and frame.iloc[:, 4:].notna().all(axis=None)
    )
    assert (frame["cutoff"] == panel.ds[-1]).all()
    assert (frame["ds"][:H] == pd.date_range(panel.ds[-1], periods=H + 1, freq="h")[1:]).all()
    assert frame["SeasonalNaive"][0] == pytest.approx(panel.values[-24, 0], rel=1e-5)
    known = forecast_frame(task, panel, [len(panel) - H])
    np.testing.assert_allclose(known["y"][:H], panel.values[-H:, 0])


def test_a_series_that_ended_early_has_no_interval_and_takes_nobody_elses(
    wide_csv: Path, make_wide, tmp_path: Path, capsys
) -> None:
    frame, task = make_wide(600), make("mixer", wide_csv)
    frame.to_csv(tmp_path / "whole.csv", index=False)
    name = frame.columns[1]
    frame.loc[380:, name] = None
    frame.to_csv(tmp_path / "ended.csv", index=False)
    whole, ended = (
        forecast_frame(task, read_panel(tmp_path / f"{one}.csv"), levels=(80,))
        for one in ("whole", "ended")
    )
    said = capsys.readouterr().err
    assert f"too few values of {name!r} are observed" in said and "no interval there" in said
    own = ended["unique_id"] == name
    ends = ["MixerForecaster-lo-80", "MixerForecaster-hi-80"]
    assert (
        ended.loc[own, ends].isna().all(axis=None)
        and ended.loc[own, "MixerForecaster"].notna().all()
    )
    live = whole["unique_id"] != name
    pd.testing.assert_frame_equal(ended[~own], whole[live], check_dtype=False)


def test_intervals_cover_as_they_say_on_exchangeable_errors(
    wide_csv: Path, make_wide, tmp_path: Path
) -> None:
    make_wide(3000).to_csv(tmp_path / "long.csv", index=False)
    panel, task = read_panel(tmp_path / "long.csv"), make("mixer", wide_csv)
    # Take the level away: this task's untrained error would otherwise drift with the trend.
    flat = Panel(
        panel.values - 0.002 * np.arange(3000)[:, None],
        panel.ids,
        panel.ds,
        panel.freq,
        panel.source,
    )
    frame = forecast_frame(task, flat, list(range(2400, 2900, 5)), levels=(50, 90))
    for level in (50, 90):
        inside = frame["y"].between(
            frame[f"MixerForecaster-lo-{level}"], frame[f"MixerForecaster-hi-{level}"]
        )
        assert inside.mean() == pytest.approx(level / 100, abs=0.05)
    with pytest.raises(DataError, match="an interval of 99% needs 99"):
        forecast_frame(task, read_panel(wide_csv), [450], levels=(99,))
    with pytest.raises(ConfigError, match="between 1 and 99"):
        forecast_frame(task, flat, [2900], levels=(100,))


def test_series_unknown_to_the_model_and_wrong_cutoffs(wide_csv: Path, panel: Panel) -> None:
    other = Panel(panel.values, ("s0", "new"), panel.ds, panel.freq, "new.csv")
    frame = forecast_frame(make("mixer", wide_csv), other)
    assert set(frame["unique_id"]) == {"s0", "new"}
    with pytest.raises(DataError, match=r"new\.csv: has no series 's1'"):
        forecast_frame(make("informer", wide_csv), other)
    swapped = panel.select(["s1", "s0"])
    task = make("informer", wide_csv)
    pd.testing.assert_frame_equal(forecast_frame(task, swapped), forecast_frame(task, panel))
    with pytest.raises(ConfigError, match="outside"):
        forecast_frame(task, panel, [601])
    with pytest.raises(DataError, match="has 47 rows before the cutoff"):
        forecast_frame(task, panel, [47])


def test_intervals_need_times_of_the_kind_of_the_training(wide_csv: Path, panel: Panel) -> None:
    task = make("mixer", wide_csv)
    zoned = replace(panel, ds=panel.ds.tz_localize("UTC"), source="zoned.csv")
    assert len(forecast_frame(task, zoned)) == 24
    with pytest.raises(DataError, match=r"zoned\.csv: .*on a clock of a zone.*--zone"):
        forecast_frame(task, zoned, levels=(80,))
    task.facts["train_end"] = str(zoned.ds[500])
    with pytest.raises(DataError, match=r"wide\.csv: .*on a clock of no zone"):
        forecast_frame(task, panel, levels=(80,))
    assert len(forecast_frame(task, zoned, levels=(80,))) == 24


def test_a_series_too_short_at_a_cutoff_is_left_out_and_named(
    wide_csv: Path, panel: Panel, capsys
) -> None:
    values = panel.values.copy()
    values[:510, 1] = np.nan  # s1 has 30 rows before the first cutoff, 50 before the second
    late = Panel(values, panel.ids, panel.ds, panel.freq, panel.source)
    task = make("mixer", wide_csv)
    found = forecast_frame(task, late, [540, 560])
    assert found.groupby("unique_id").size().to_dict() == {"s0": 2 * H, "s1": H}
    said = capsys.readouterr().err
    assert "left out for want of 48 rows" in said and "1 forecasts, of s1" in said
    # The others are those of the whole file.
    whole = forecast_frame(task, panel, [540, 560])
    for frame in (found, whole):
        frame.drop(frame[frame["unique_id"] != "s0"].index, inplace=True)
    pd.testing.assert_frame_equal(found, whole)
    with pytest.raises(DataError, match="has 30 rows before the cutoff"):
        forecast_frame(task, late.select(["s1"]), [540])


def test_a_series_too_short_at_its_own_end_is_left_out_and_named(
    wide_csv: Path, panel: Panel, capsys
) -> None:
    values = panel.values.copy()
    values[:-30, 1] = np.nan
    late = Panel(values, panel.ids, panel.ds, panel.freq, panel.source)
    task = make("mixer", wide_csv)
    found = forecast_frame(task, late, levels=(80,))
    said = capsys.readouterr().err
    assert "left out for want of 48 rows" in said and "1 forecasts, of s1" in said
    whole = forecast_frame(task, panel, levels=(80,))
    pd.testing.assert_frame_equal(found, whole[whole["unique_id"] == "s0"])
    with pytest.raises(DataError, match="has 30 rows before the cutoff"):
        forecast_frame(task, late.select(["s1"]))
    none = forecast_frame(task, late.select(["s1"]), levels=(80,), piece=True)
    assert len(none) == 0 and list(none.columns) == list(found.columns)


def test_the_naive_forecast_beside_a_model_is_that_beside_a_local_one(
    wide_csv: Path, panel: Panel
) -> None:
    # 50 rows of s1: less than a season of 60, as is the context of the other.
    values = panel.values.copy()
    values[:-50, 1] = np.nan
    late = Panel(values, panel.ids, panel.ds, panel.freq, panel.source)
    expected = baseline_frame("theta", late, H, season=60)["SeasonalNaive"]
    found = forecast_frame(make("mixer", wide_csv), late, season=60)["SeasonalNaive"]
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(found[:H], values[-60 : H - 60, 0])
    np.testing.assert_array_equal(found[H:], values[-1, 1])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, wide_csv: Path) -> Path:
    root = tmp_path_factory.mktemp("run")
    argv = [
        "timeseries",
        "fit",
        f"--data.path={wide_csv}",
        "--data.context=48",
        "--data.horizon=12",
    ]
    argv += ["--model.context=48", "--model.horizon=12", "--model.d_model=8"]
    argv += [
        "--model.n_layers=1",
        "--trainer.max_steps=2",
        "--trainer.val_check_interval=2",
        "--name=r",
    ]
    assert main([*argv, f"--trainer.default_root_dir={root}"]) == 0
    return root / "r/version_0/checkpoints/last.ckpt"


def test_the_command_writes_both_formats_from_a_checkpoint_alone(
    checkpoint, wide_csv, tmp_path, capsys
) -> None:
    paths = tmp_path / "f.csv", tmp_path / "f.parquet"
    for out in paths:
        argv = [
            "timeseries",
            "predict",
            str(wide_csv),
            "--ckpt_path",
            str(checkpoint),
            "--out",
            str(out),
        ]
        assert main([*argv, "--cutoffs", "3", "--step", "6", "--level", "80"]) == 0
    text, binary = pd.read_csv(paths[0], parse_dates=["ds", "cutoff"]), pd.read_parquet(paths[1])
    assert text["cutoff"].nunique() == 3 and len(text) == 2 * 3 * H
    pd.testing.assert_frame_equal(text, binary, check_dtype=False, rtol=1e-12)
    said = capsys.readouterr().out
    assert "the best baseline, SeasonalNaive" in said and "3 cutoffs" in said


def test_series_that_the_training_had_not_are_named(checkpoint, make_wide, tmp_path, capsys):
    out, said = tmp_path / "f.csv", []
    for names in (["s0", "s1"], ["s0", "s01"], ["S0", "S1"]):
        wide = make_wide(600).set_axis(["date", *names], axis=1)
        wide.to_csv(tmp_path / "a.csv", index=False)
        argv = [str(tmp_path / "a.csv"), "--ckpt_path", str(checkpoint), "--out", str(out)]
        assert main(["timeseries", "predict", *argv]) == 0
        said.append(
            [one for one in capsys.readouterr().out.splitlines() if "the training had" in one]
        )
    assert said[0] == []
    assert "the training had no s01: scaled by own values" in said[1][0]
    assert "the training had no S0 and 1 series more" in said[2][0]


def test_bad_input_to_the_command_leaves_earlier_output(
    checkpoint, wide_csv, make_wide, tmp_path, capsys
) -> None:
    out = tmp_path / "f.csv"
    out.write_text("earlier")
    make_wide(30).to_csv(tmp_path / "short.csv", index=False)
    (tmp_path / "bad.csv").write_text("date,s0\n2020-01-01,1\nsoon,2\n")
    command = ["--ckpt_path", str(checkpoint), "--out", str(out)]
    for argv, named in (
        ([str(tmp_path / "short.csv"), *command], "short.csv: has 30 rows before the cutoff"),
        ([str(tmp_path / "bad.csv"), *command], "bad.csv: line 3"),
        ([str(tmp_path / "none.csv"), *command], "none.csv"),
        ([str(wide_csv), *command, "--cutoffs", "99"], "--cutoffs"),
        ([str(wide_csv), *command[:2], "--out", str(tmp_path / "f.txt")], "f.txt"),
        ([str(wide_csv), "--ckpt_path", str(wide_csv), *command[2:]], "wide.csv"),
    ):
        assert main(["timeseries", "predict", *argv]) == 2
        (line,) = [
            text for text in capsys.readouterr().err.splitlines() if text.startswith("error: ")
        ]
        assert named in line
        assert out.read_text() == "earlier"


def test_the_command_says_which_series_end_before_the_others(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    ds = pd.date_range("2024-01-01", periods=60, freq="D")
    live, dead = np.arange(60.0), np.where(np.arange(60) < 30, 5.0 + np.arange(60) % 7, np.nan)
    pd.DataFrame({"ds": ds, "live": live, "dead": dead}).to_csv("a.csv", index=False)
    assert main(["timeseries", "predict", "a.csv", "--horizon", "3", "--out", "f.csv"]) == 0
    said = capsys.readouterr().out
    assert "dead ends at 2024-01-30" in said and "its own end" in said
    found = pd.read_csv("f.csv")
    assert found[found["unique_id"] == "dead"]["ds"].iloc[0] == "2024-01-31"
