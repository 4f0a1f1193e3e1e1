"""The command line of audio: shipped configurations, comparison, resuming, demo, errors of one
line."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
import yaml

from longseq.audio.commands import DOMAIN
from longseq.audio.export import load_detector
from longseq.core.shell.cli import main

QUICK = ["--trainer.logger=false", "--trainer.enable_checkpointing=false"]
TINY = "{d_model: 16, n_layers: 1, channels: 2}"
SIZES = {
    "mamba": {"d_model": 16, "n_layers": 1, "channels": 2},
    "spectttra": {"d_model": 24, "n_layers": 1, "n_heads": 2},
}


def fit(source: Path, *more: str) -> int:
    argv = ["audio", "fit", f"--data.source={source}", f"--model.model_kwargs={TINY}"]
    argv += ["--data.clip_seconds=1", "--data.eval_seconds=1.5", "--data.batch_size=4"]
    return main([*argv, "--model.warmup_steps=1", *more])


# Of another task, with a test of its own: separation.
@pytest.mark.parametrize(
    "name", sorted({*DOMAIN.configs()} - {"separation", "spectral_separation", "speakers"})
)
def test_every_shipped_configuration_trains(name: str, workdir: Path, make_songs) -> None:
    content = yaml.safe_load(DOMAIN.configs()[name].read_text())
    model, data = content["model"]["init_args"], content["data"]["init_args"]
    model["model_kwargs"] = {**model.get("model_kwargs", {}), **SIZES[model["model"].split("_")[0]]}
    data.update(
        source=str(make_songs(4, seconds=1.5)), batch_size=2, clip_seconds=1.0, eval_seconds=1.5
    )
    content["trainer"].update(max_steps=2, max_epochs=-1, val_check_interval=2)
    Path("small.yaml").write_text(yaml.safe_dump(content))
    assert main(["audio", "fit", "--config", "small.yaml", *QUICK]) == 0


def test_fit_validate_test_predict_and_export(workdir: Path, make_songs, capsys) -> None:
    source = make_songs(6, seconds=6.0)
    assert fit(source, "--trainer.max_steps=4", "--trainer.val_check_interval=2", "--name=one") == 0
    best = "outputs/audio/one/version_0/checkpoints/best.ckpt"
    for command in ("validate", "test"):
        assert main(["audio", command, "--ckpt_path", best]) == 0
    assert "test/auc" in capsys.readouterr().out
    task = load_detector(best)
    assert (
        task.methods == ["noise", "ring"]
        and task.calibration.windows
        and len(task.songs["train"]) == 3
    )
    assert main(["audio", "export", "--ckpt_path", best, "--out", "d.safetensors"]) == 0
    for path, out in ((best, "a.csv"), ("d.safetensors", "b.csv")):
        assert main(["audio", "predict", str(source), "--ckpt_path", path, "--out", out]) == 0
    assert Path("a.csv").read_text() == Path("b.csv").read_text()


def test_a_resumed_run_is_the_run(workdir: Path, make_songs) -> None:
    source = make_songs(6)
    same = ["--model.total_steps=4", "--trainer.val_check_interval=10"]
    assert fit(source, "--trainer.max_steps=4", "--name=whole", *same) == 0
    assert fit(source, "--trainer.max_steps=2", "--name=part", *same) == 0
    part = "outputs/audio/part/version_0/checkpoints/last.ckpt"
    argv = [
        f"--data.source={source}",
        "--trainer.max_steps=4",
        "--name=rest",
        f"--ckpt_path={part}",
    ]
    assert main(["audio", "fit", *argv, "--trainer.val_check_interval=10"]) == 0
    whole, rest = (
        torch.load(f"outputs/audio/{name}/version_0/checkpoints/last.ckpt", weights_only=True)[
            "state_dict"
        ]
        for name in ("whole", "rest")
    )
    for key, value in whole.items():
        assert not isinstance(value, torch.Tensor) or torch.equal(value, rest[key]), key


def test_compare_trains_and_prints_auc_beside_the_baseline_s(
    workdir: Path, make_songs, capsys
) -> None:
    source = make_songs(8, seconds=2.5)
    other = make_songs(3, seconds=2.5, name="other")
    for path in [*other.rglob("*.flac")]:
        path.rename(path.with_name(f"x{path.name}"))
    Path("tiny.yaml").write_text(
        yaml.safe_dump(
            {
                "model": {
                    "class_path": "longseq.audio.task.SongDetector",
                    "init_args": {"model_kwargs": SIZES["mamba"], "warmup_steps": 1},
                },
                "data": {
                    "class_path": "longseq.audio.data.module.SongData",
                    "init_args": {"source": "?", "clip_seconds": 1.0, "batch_size": 4},
                },
            }
        )
    )
    argv = ["audio", "compare", "--data", str(source), "--holdout", "ring", "--seconds", "1"]
    extra = [
        "--models",
        "spectral_statistics,tiny.yaml",
        "--trainer.max_steps=4",
        "--trainer.val_check_interval=1",
        "--test_data",
        str(other),
        "--baseline_out",
        "b.json",
    ]
    assert main([*argv, *extra, "--out", "t.csv"]) == 0
    out = capsys.readouterr().out
    assert "ring (never seen): mamba" in out and "the best baseline, spectral statistics" in out
    with Path("t.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8 and {row["model"] for row in rows} == {"mamba", "spectral statistics"}
    assert {(row["method"], row["held_out"]) for row in rows} == {("noise", "no"), ("ring", "yes")}
    baseline = [row for row in rows if row["model"] != "mamba" and row["method"] == "noise"]
    assert float(baseline[0]["auc"]) > 0.9 and Path("b.json").exists()

    best = str(
        next(Path("outputs/audio/tiny_seed0").glob("version_*")) / "checkpoints" / "best.ckpt"
    )
    before = Path("t.csv").read_text()
    cases = [
        ([*argv[:4], "--holdout", "noise", "--models", best], "was trained on noise"),
        ([*argv, "--models", best, "--split_seed", "3"], "were used to train"),
        ([*argv, "--models", best, "--test_data", "none"], "no such folder"),
    ]
    for arguments, message in cases:
        capsys.readouterr()
        assert main([*arguments, "--out", "t.csv"]) == 2
        assert message in capsys.readouterr().err
    assert Path("t.csv").read_text() == before


def test_the_models_are_listed(capsys) -> None:
    assert main(["audio", "models"]) == 0
    out = capsys.readouterr().out
    assert "16.828 M" in out and "mamba" in out
    assert main(["audio", "models", "resnet"]) == 2


def test_the_demo_runs(workdir: Path, capsys) -> None:
    assert main(["audio", "demo", "--max_steps", "2", "--out", "demo"]) == 0
    out = capsys.readouterr().out
    assert "spectral statistics" in out and "real time" in out
    for name in ("versions.png", "scores_by_method.csv", "scan/index.html", "scan/scores.csv"):
        assert (Path("demo/audio") / name).stat().st_size > 0
    assert Path("demo/index.html").exists()


BAD = {
    "missing": ("no such folder", ["--data.source=none"]),
    "empty": ("has no folder real/", ["--data.source=empty"]),
    "holdout": ("did you mean 'ring'", ["--data.holdout=[rung]"]),
    "batch": ("batch_size must be even", ["--data.batch_size=3"]),
    "rate": ("data.sample_rate is 8000", ["--data.sample_rate=8000"]),
    "model": ("did you mean 'mamba'", ["--model.model=mama"]),
    "length": (
        "at most 5",
        [
            "--model.model=spectttra_gamma_5s",
            "--data.eval_seconds=30",
            "--model.model_kwargs={d_model: 24, n_layers: 1, n_heads: 2}",
        ],
    ),
    "published": ("w.bin", ["--model.checkpoint=w.bin"]),
    "argument": ("did you mean 'clip_seconds'", ["--data.clip_second=8"]),
}


@pytest.mark.parametrize("case", sorted(BAD))
def test_bad_input_is_one_line_and_status_2(case: str, workdir: Path, make_songs, capsys) -> None:
    named, arguments = BAD[case]
    Path("empty").mkdir()
    Path("w.bin").write_text("hello")
    assert fit(make_songs(4, seconds=1.5), "--trainer.max_steps=1", *QUICK, *arguments) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and named in errors[0], errors


@pytest.mark.parametrize("value", ["nan", "inf", "-3", "0.5"])
def test_lengths_that_are_none(value: str, tmp_path: Path, capsys) -> None:
    for command, *more in (
        ("stress", "--out", "x.csv"),
        ("separate", "--out", "x"),
        ("synthesize", "--out", "x"),
        ("speakers", "--out", "x", "--voices", "v", "--ckpt_path", "c"),
    ):
        assert main(["audio", command, str(tmp_path), *more, "--seconds", value]) == 2
        assert "error: --seconds must be" in capsys.readouterr().err


def test_lengths_beyond_any_number_of_samples(tmp_path: Path, capsys) -> None:
    for more in (("separate",), ("speakers", "--voices", "v", "--ckpt_path", "c")):
        argv = ["audio", *more, str(tmp_path), "--out", "x", "--seconds", "1e308"]
        assert main(argv) == 2
        assert "error: --seconds must be" in capsys.readouterr().err
