"""The command line of weather: every configuration, compare, predict, and one-line errors for bad
input."""

from __future__ import annotations

import csv
import functools
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
import yaml

from longseq.core.shell.cli import main
from longseq.core.training.loading import load_task
from longseq.weather.commands import DOMAIN
from longseq.weather.compare import EmulatorComparison
from longseq.weather.data.module import ScenarioData
from longseq.weather.data.source import read_field

QUICK = ["--trainer.logger=false", "--trainer.enable_checkpointing=false"]
DIGITS = [
    "--model.depths=[8]",
    "--model.n_layers=1",
    "--model.d_state=4",
    "--model.context=3",
    "--data.context=3",
    "--data.frames=6",
    "--data.horizon=4",
    "--data.batch_size=2",
    "--data.eval_videos=2",
    "--data.digits=1",
    "--trainer.max_steps=2",
    "--trainer.val_check_interval=2",
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, runs, lab) -> Path:
    root = tmp_path_factory.mktemp("run")
    argv = lab.fit(runs[0], runs[1], f"--trainer.default_root_dir={root}", "--name=r")
    assert main(argv) == 0
    return root / "r/version_0/checkpoints/best.ckpt"


@pytest.fixture(scope="module")
def video_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("video")
    argv = [
        "weather",
        "fit",
        "--config",
        "moving_digits",
        *DIGITS,
        f"--trainer.default_root_dir={root}",
    ]
    assert main([*argv, "--name=r"]) == 0
    return root / "r/version_0/checkpoints/best.ckpt"


def test_every_configuration_is_tested() -> None:
    assert set(DOMAIN.configs()) == {"emulator", "moving_digits"}  # the two fixtures train them


def test_the_shipped_emulator_is_for_the_packaged_runs() -> None:
    content = yaml.safe_load(DOMAIN.configs()["emulator"].read_text())
    assert content["data"]["init_args"]["train"] == ["A1B_north_america"]
    assert (content["model"]["init_args"]["height"], content["model"]["init_args"]["width"]) == (
        37,
        49,
    )


@pytest.mark.parametrize("kind", ["emulator", "video"])
def test_validate_and_test_need_only_the_checkpoint(kind, request, workdir, capsys) -> None:
    path = request.getfixturevalue("checkpoint" if kind == "emulator" else "video_checkpoint")
    for command in ("validate", "test"):
        assert main(["weather", command, "--ckpt_path", str(path)]) == 0
    out = capsys.readouterr().out
    names = ("spatial_rmse", "global_rmse") if kind == "emulator" else ("mse", "persistence_mse")
    assert all(f"test/{name}" in out for name in names)


def test_two_workers_and_resuming_give_the_same_weights(runs, workdir, lab) -> None:
    base = lab.fit(
        runs[0],
        None,
        "--trainer.val_check_interval=1",
        "--model.dropout=0.2",
        "--checkpoint_every=1",
    )
    whole = [*base, "--trainer.max_steps=4", "--data.num_workers=2", "--name=whole"]
    assert main(whole) == 0
    # The schedule must not depend on where the run was cut: its length is given.
    first = [*base, "--model.total_steps=4", "--name=first"]
    assert main(first) == 0
    (last,) = workdir.rglob("first/version_0/checkpoints/last.ckpt")
    assert (
        main(["weather", "fit", "--ckpt_path", str(last), "--trainer.max_steps=4", "--name=on"])
        == 0
    )
    (one,) = workdir.rglob("whole/version_0/checkpoints/last.ckpt")
    (two,) = workdir.rglob("on/version_0/checkpoints/last*.ckpt")
    expected, found = (torch.load(path, weights_only=True) for path in (one, two))
    assert found["global_step"] == expected["global_step"] == 4
    for name, value in expected["state_dict"].items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(found["state_dict"][name], value), name


def test_resuming_on_other_data_is_refused(checkpoint, runs, workdir, capsys) -> None:
    argv = [
        "weather",
        "fit",
        "--ckpt_path",
        str(checkpoint),
        f"--data.train=[{runs[1]}]",
        "--data.test=null",
    ]
    assert main([*argv, "--trainer.max_steps=4", *QUICK]) == 2
    assert "other training data than the checkpoint's" in capsys.readouterr().err


def test_compare_writes_the_table_and_the_verdict(runs, workdir, capsys, lab) -> None:
    small = [
        text for text in lab.fit(runs[0]) if text.startswith("--model.") and "height" not in text
    ]
    small = [text for text in small if "width" not in text]
    argv = [
        "weather",
        "compare",
        "--train",
        runs[0],
        "--test",
        runs[1],
        "--baseline",
        "1900-1919",
        "--smooth",
        "5",
    ]
    argv += [
        "--period",
        "1970-1979",
        "--models",
        "zero,lps,uniform,emulator",
        "--seeds",
        "0,1",
        "--out",
        "t.csv",
    ]
    assert main([*argv, *small, "--trainer.max_steps=2"]) == 0
    out = capsys.readouterr().out
    assert (
        "40 years (1900-1939) are the same" in out
        and "never scored" in out
        and "Noise floor" in out
    )
    with Path("t.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(EmulatorComparison.columns) and [row["seed"] for row in rows] == [
        "",
        "",
        "",
        "0",
        "1",
    ]
    scores = {row["model"]: float(row["spatial_rmse"]) for row in rows}
    assert scores["lps"] < scores["uniform"] < scores["zero"]
    assert "best baseline, lps" in rows[-1]["verdict"] and rows[0]["verdict"] == ""
    assert float(rows[0]["noise_floor"]) > 0


BAD = {
    "leak": ("are the same as in", ["--period", "1935-1944"]),
    "period": ("lacks", ["--period", "1975-1985"]),
    "span": ("years such as", ["--period", "soon"]),
    "model": ("did you mean 'lps'", ["--models", "lpp"]),
    "seeds": ("--seeds", ["--models", "lps", "--seeds", "a"]),
    "out": (".csv", ["--out", "t.nc"]),
    "option": ("no such option", ["--modle.d_model=8"]),
    "test": ("none.nc", ["--test", "none.nc"]),
    "smooth": ("odd", ["--smooth", "4"]),
    "forcing": ("both or neither", ["--test_forcing", "f.csv"]),
    "variable": ("did you mean 'tas'", ["--variable", "tass"]),
    "units": ("cannot be converted", ["--units", "Pa"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_status_2(case, runs, workdir, capsys) -> None:
    message, more = BAD[case]
    Path("t.csv").write_text("earlier")
    argv = [
        "weather",
        "compare",
        "--train",
        runs[0],
        "--test",
        runs[1],
        "--baseline",
        "1900-1919",
        "--smooth",
        "5",
    ]
    argv += ["--period", "1970-1979", "--models", "zero", "--out", "t.csv", *more]
    assert main(argv) == 2
    (line,) = [text for text in capsys.readouterr().err.splitlines() if text.startswith("error: ")]
    assert message in line and Path("t.csv").read_text() == "earlier"


FIT = {
    "grid": ("--model.height 4 --model.width 5", ["--model.height=7"]),
    "predictors": ("--model.predictors 1", ["--model.predictors=2"]),
    "leak": ("would be a leak", ["--data.period=1930-1939"]),
    "valid": ("leaves no year", ["--data.valid=1900-1979"]),
    "valid 2": ("no training run has the years", ["--data.valid=2040-2050"]),
    "file": ("none.nc: no such", ["--data.train=[none.nc]"]),
    "mixer": ("did you mean 's5'", ["--model.mixer=s55"]),
    "argument": ("did you mean 'smooth'", ["--data.smoth=3"]),
}


@pytest.mark.parametrize("case", FIT)
def test_fit_says_what_does_not_fit(case, runs, workdir, lab, capsys) -> None:
    message, more = FIT[case]
    assert main(lab.fit(runs[0], runs[1], *QUICK, *more)) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and message in errors[0], errors


def test_predict_needs_only_the_checkpoint(checkpoint, runs, workdir, capsys) -> None:
    argv = ["weather", "predict", runs[1], "--ckpt_path", str(checkpoint)]
    assert main([*argv, "--out", "p.nc", "--map", "m.png"]) == 0
    assert main([*argv, "--out", "p.zarr", "--period", "1970-1979"]) == 0
    assert Path("m.png").stat().st_size > 1000
    times = xr.coders.CFDatetimeCoder(use_cftime=True)
    with (
        xr.open_dataset("p.nc", decode_times=times) as data,
        xr.open_zarr("p.zarr", decode_times=times, chunks=None, consolidated=False) as part,
    ):
        assert (
            data.tas.dims == ("time", "lat", "lon")
            and data.sizes["time"] == 80
            and part.sizes["time"] == 10
        )
        assert (
            np.allclose(part.tas, data.tas[-10:])
            and data.tas.attrs["standard_name"] == "air_temperature"
        )
        assert data.time.values[0].calendar == "360_day" and data.time.values[0].year == 1900
        assert {"lat_bnds", "lon_bnds"} <= set(data.variables) and "time_bnds" not in data
        about = data.attrs
        assert about["Conventions"] == "CF-1.8" and "longseq weather predict" in about["history"]
        assert len(about["checkpoint_sha256"]) == 64 and about["input_files"] == Path(runs[1]).name
        assert "s5" in about["model"] and about["training_files"] == "high.nc"
        baseline = data.tas[:20].mean("time") - data.tas_anomaly[:20].mean("time")
        with xr.open_dataset(runs[1], decode_times=False) as truth:
            assert np.allclose(baseline, truth.tas[:20].mean("time"), atol=1e-3)
        assert float(np.abs(data.tas_anomaly[-10:]).mean()) > 0.5
    # A regional mean alone will do, and a written file can be read again.
    run = load_task(checkpoint, "weather")
    rows = "\n".join(f"{1900 + i},{0.01 * i}" for i in range(80))
    Path("mean.csv").write_text(f"year,{run.about['names'][0]}\n{rows}\n")
    assert (
        main(["weather", "predict", "mean.csv", "--ckpt_path", str(checkpoint), "--out", "q.nc"])
        == 0
    )
    assert main(["weather", "inspect", "q.nc", "--variable", "tas"]) == 0
    assert "tas (air_temperature), K" in capsys.readouterr().out


def test_a_folder_is_done_file_by_file(checkpoint, runs, workdir, capsys) -> None:
    Path("in").mkdir()
    Path("in/good.nc").write_bytes(Path(runs[1]).read_bytes())
    Path("in/bad.nc").write_bytes(b"")
    Path("in/worse.nc").write_text("text")
    argv = ["weather", "predict", "in", "--ckpt_path", str(checkpoint), "--out", "out"]
    assert main(argv) == 0
    text = capsys.readouterr()
    assert "2 of 3 files were left out" in text.err and "worse.nc" in text.err
    assert sorted(path.name for path in Path("out").iterdir()) == ["good.nc"]
    assert main(["weather", "inspect", "in"]) == 0
    assert "2 of 3 files cannot be read" in capsys.readouterr().err
    Path("in/good.nc").unlink()
    assert main(argv) == 2 and "none of its 2 files" in capsys.readouterr().err
    Path("void").mkdir()
    assert main(["weather", "predict", "void", *argv[3:]]) == 2
    assert "holds no .nc files" in capsys.readouterr().err


def test_runs_of_a_folder_that_differ_in_the_ending_have_a_file_each(
    checkpoint, runs, workdir, capsys
) -> None:
    Path("in").mkdir()
    for name, run in (("a.nc", runs[0]), ("a.nc4", runs[1]), ("b.nc", runs[1])):
        Path("in", name).write_bytes(Path(run).read_bytes())
    argv = ["weather", "predict", "in", "--ckpt_path", str(checkpoint), "--out", "out"]
    assert main(argv) == 0 and "out: 3 files" in capsys.readouterr().out
    made = {path.name: read_field(path, "tas").values for path in Path("out").iterdir()}
    assert made.keys() == {"a.nc.nc", "a.nc4.nc", "b.nc"}
    assert np.array_equal(made["a.nc4.nc"], made["b.nc"])
    assert not np.array_equal(made["a.nc.nc"], made["b.nc"])


def test_predict_refuses_what_does_not_fit(
    checkpoint, video_checkpoint, runs, write, lab, workdir, capsys
) -> None:
    moved = write(lab.dataset(lab.fields(2), lab.LAT + 1), "moved.nc")
    late = write(lab.dataset(lab.fields(2)).isel(time=slice(30, None)), "late.nc")
    Path("p.nc").write_text("earlier")
    cases = [
        ("is not the checkpoint's", [str(moved), "--ckpt_path", str(checkpoint)]),
        ("give the run with its history", [str(late), "--ckpt_path", str(checkpoint)]),
        (
            "VideoForecaster, not of ClimateEmulator",
            [runs[1], "--ckpt_path", str(video_checkpoint)],
        ),
        ("no such checkpoint", [runs[1], "--ckpt_path", "none.ckpt"]),
        (
            "has no year of --period",
            [runs[1], "--ckpt_path", str(checkpoint), "--period", "2090-2099"],
        ),
        ("not on forcings", [runs[1], "--ckpt_path", str(checkpoint), "--forcing", "f.csv"]),
    ]
    for message, more in cases:
        assert main(["weather", "predict", *more, "--out", "p.nc"]) == 2
        (line,) = [
            text for text in capsys.readouterr().err.splitlines() if text.startswith("error: ")
        ]
        assert message in line
        assert Path("p.nc").read_text() == "earlier"
    assert (
        main(["weather", "predict", runs[1], "--ckpt_path", str(checkpoint), "--out", "p.csv"]) == 2
    )


def test_rollout_writes_the_error_of_every_frame(
    video_checkpoint, checkpoint, workdir, capsys
) -> None:
    argv = [
        "weather",
        "rollout",
        "--ckpt_path",
        str(video_checkpoint),
        "--frames",
        "6",
        "--videos",
        "2",
    ]
    assert main([*argv, "--out", "r.csv", "--png", "r.png"]) == 0
    assert "persistence" in capsys.readouterr().out and Path("r.png").stat().st_size > 1000
    with Path("r.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["frame"] for row in rows] == list("123456")
    assert set(rows[0]) == {"frame", "conv_s5", "persistence", "context_mean"}
    twice = ["--ckpt_path", str(video_checkpoint), str(video_checkpoint), "--out", "two.csv"]
    assert main([*argv, *twice]) == 0
    said = capsys.readouterr().out
    assert said.count("per training step of") == 2 and "conv_s5 (2)" in said
    with Path("two.csv").open() as file:
        for row in csv.DictReader(file):
            assert row["conv_s5"] == row["conv_s5_(2)"]
    for more, message in (
        (["--frames", "0", "--out", "r.csv"], "at least 1"),
        (["--out", "r.txt"], ".csv"),
        (["--out", "r.csv", "--source", "none"], "none"),
        (["--out", "r.csv", "--ckpt_path", str(checkpoint)], "not of VideoForecaster"),
    ):
        assert main([*argv, *more]) == 2 and message in capsys.readouterr().err


def test_the_demo_returns_its_section(workdir, capsys) -> None:
    from longseq.core.shell.lightning_cli import fit_config
    from longseq.weather.demo import demo

    section = demo(Path("d"), functools.partial(fit_config, DOMAIN), 2)
    assert section.domain == "weather" and "best baseline, lps" in section.verdict
    assert {score.model for score in section.scores} >= {"lps", "uniform", "zero", "s5 emulator"}
    files = [*section.files, *(picture.path for picture in section.pictures)]
    assert len(section.pictures) == 3 and all(Path(file).stat().st_size > 0 for file in files)
    assert len(section.findings) == 3 and "ssp119" in section.findings[1]
    assert section.seconds > 0 and "Open Government Licence" in section.data


def test_the_period_of_a_map_is_checked_before_anything_is_written(
    checkpoint, runs, workdir, capsys
) -> None:
    Path("p.nc").write_text("earlier")
    argv = ["weather", "predict", runs[1], "--ckpt_path", str(checkpoint), "--out", "p.nc"]
    for more, message in (
        (["--map", "p.png", "--map_period", "1800-1820"], "the years written are 1900-1979"),
        (["--map", "p.png", "--map_period", "1970-1990"], "the years written are 1900-1979"),
        (["--map_period", "1970-1979"], "--map_period needs --map"),
        (["--map", "p.nc/p.png"], "p.nc/p.png: cannot be written"),
    ):
        assert main([*argv, *more]) == 2 and message in capsys.readouterr().err
    assert Path("p.nc").read_text() == "earlier"
    Path("in").mkdir()
    Path("in/bad.nc").write_bytes(b"")
    folder = ["weather", "predict", "in", *argv[3:5], "--out", "out", "--map", "p.png"]
    assert main(folder) == 2 and "--map draws one run" in capsys.readouterr().err


@pytest.mark.parametrize(("model", "said"), [("emulator", True), ("emulator linear=lagged", False)])
@pytest.mark.parametrize("baseline", ["lagged", "lps"])
def test_where_lagged_pattern_scaling_wins_its_emulator_is_named(
    model: str, said: bool, baseline: str, runs, lab
) -> None:
    data = ScenarioData(
        [runs[0]], runs[1], baseline="1900-1919", valid=None, period="1970-1979", smooth=5
    )
    shown = EmulatorComparison(data)
    rows = [
        shown._row(model, "model", shown.truth + 5),
        shown._row(baseline, "baseline", shown.truth + 0.01),
    ]
    found = "--models emulator:linear=lagged" in "".join(shown.verdicts(rows))
    assert found == (said and baseline == "lagged")
