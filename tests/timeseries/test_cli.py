"""The command line of time series: shipped configurations, training, and one-line errors for bad
input."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from longseq.core.shell.cli import main
from longseq.core.training.loading import load_task
from longseq.timeseries.commands import DOMAIN
from longseq.timeseries.data.module import ForecastData

QUICK = [
    "--trainer.logger=false",
    "--trainer.enable_checkpointing=false",
    "--trainer.val_check_interval=2",
]
SIZES = ["--data.context=48", "--model.horizon=12"]  # each is typed once
SMALL = {
    "mixer_forecaster": ["--model.d_model=8", "--model.n_layers=1"],
    "electricity_demand": ["--model.d_model=8", "--model.n_layers=1"],
    "spacetime": ["--model.d_model=8", "--model.d_state=6"],
    "informer": [
        "--model.d_model=16",
        "--model.n_heads=2",
        "--model.d_ff=16",
        "--model.label=24",
        "--model.channels=2",
    ],
    "autoformer": [
        "--model.d_model=16",
        "--model.n_heads=2",
        "--model.d_ff=16",
        "--model.label=24",
        "--model.channels=2",
    ],
    "tpgn": ["--model.d_model=4", "--model.channels=2"],
    "inverted_forecaster": ["--model.d_model=8", "--model.n_layers=1"],
}


GENERATED = [
    *("--data.batch_size=16", "--data.steps_per_epoch=2", "--data.valid_batches=1"),
    *("--model.d_model=16", "--model.n_layers=1", "--model.hidden=16", "--trainer.max_steps=2"),
]


def fit(name: str, path: object, *more: str) -> list[str]:
    argv = [
        "timeseries",
        "fit",
        "--config",
        name,
        f"--data.path={path}",
        "--data.batch_size=4",
        *SIZES,
    ]
    return [*argv, *SMALL[name], "--trainer.max_steps=2", *more]


def test_every_configuration_is_tested() -> None:
    assert {*SMALL, "zero_shot"} == set(DOMAIN.configs())


def test_pretraining_on_generated_series_needs_no_file(workdir: Path) -> None:
    assert main(["timeseries", "fit", "--config", "zero_shot", *GENERATED, *QUICK]) == 0


@pytest.mark.parametrize("name", SMALL)
def test_every_shipped_configuration_trains(name: str, workdir: Path, wide_csv: Path) -> None:
    assert main(fit(name, wide_csv, *QUICK)) == 0


@pytest.mark.parametrize("name", ["informer", "autoformer", "spacetime"])
def test_the_shipped_configurations_have_the_published_sizes(name: str) -> None:
    content = yaml.safe_load(DOMAIN.configs()[name].read_text())["model"]["init_args"]
    for key in ("lr", "weight_decay"):
        content.pop(key, None)
    import longseq.timeseries.task as tasks

    cls = {
        "informer": tasks.Informer,
        "autoformer": tasks.Autoformer,
        "spacetime": tasks.SpaceTime,
    }[name]
    count = sum(parameter.numel() for parameter in cls(**content).parameters())
    assert count == {"informer": 11_330_055, "autoformer": 10_535_943, "spacetime": 52_737}[name]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, wide_csv: Path) -> Path:
    root = tmp_path_factory.mktemp("run")
    more = [f"--trainer.default_root_dir={root}", "--name=r", "--trainer.val_check_interval=2"]
    assert main(fit("mixer_forecaster", wide_csv, *more)) == 0
    return root / "r/version_0/checkpoints/best.ckpt"


def test_the_scaler_of_the_training_rows_travels_with_the_checkpoint(
    checkpoint: Path, wide_csv: Path
) -> None:
    task = load_task(checkpoint, "timeseries")
    data = ForecastData(str(wide_csv), "ratio", 48, 12)
    assert task.get_scaler().to_dict() == data.scaler().to_dict()
    assert task.scaler["train_end"] == str(data.panel.ds[data.split().train.end - 1])


def test_validate_and_test_need_only_the_checkpoint_and_no_batch_size_changes_the_figure(
    checkpoint: Path, workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["timeseries", "validate", "--ckpt_path", str(checkpoint)]) == 0
    figures = []
    for size in (1, 13, 500):
        root = workdir / f"b{size}"
        argv = [
            "timeseries",
            "test",
            "--ckpt_path",
            str(checkpoint),
            f"--data.eval_batch_size={size}",
        ]
        assert main([*argv, f"--trainer.default_root_dir={root}"]) == 0
        (metrics,) = root.rglob("metrics.csv")
        header, row = metrics.read_text().splitlines()[:2]
        named = dict(zip(header.split(","), row.split(",")))
        figures.append([float(named[key]) for key in ("test/mse", "test/mae", "test/loss")])
    for other in figures[1:]:
        assert other == pytest.approx(figures[0], rel=1e-5)
    said = capsys.readouterr()
    assert "nlinear_ridge" in said.out and "the best baseline" in said.out
    assert said.err.splitlines()[-1].startswith("next: longseq timeseries predict /")


def test_the_baselines_of_a_test_by_several_processes_are_those_of_one(
    checkpoint: Path, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One process makes them, of all samples; the others have ended."""
    seen: list[tuple[bool, object]] = []

    def look(trainer: Any, *args: Any) -> None:
        seen.append((torch.distributed.is_initialized(), trainer.datamodule.trainer))

    monkeypatch.setattr("longseq.core.shell.lightning_cli.show_test", look)
    argv = ["timeseries", "test", "--ckpt_path", str(checkpoint), "--trainer.accelerator=cpu"]
    assert main([*argv, "--trainer.strategy=ddp", "--trainer.devices=1"]) == 0
    assert seen == [(False, None)]


@pytest.mark.parametrize("limit", ["limit_test_batches=1", "fast_dev_run=true"])
def test_a_part_of_the_test_is_not_compared_with_baselines_on_all_of_it(
    checkpoint: Path, workdir: Path, capsys: pytest.CaptureFixture[str], limit: str
) -> None:
    argv = ["timeseries", "test", "--ckpt_path", str(checkpoint), "--data.eval_batch_size=2"]
    assert main([*argv, f"--trainer.{limit}"]) == 0
    said = capsys.readouterr()
    assert "test/mse" in said.out and "baseline" not in said.out
    assert "note: 1 of " in said.err and "batches of the test data were taken" in said.err


def test_training_goes_on_from_a_checkpoint(checkpoint: Path, workdir: Path) -> None:
    argv = [
        "timeseries",
        "fit",
        "--ckpt_path",
        str(checkpoint),
        "--trainer.max_steps=4",
        "--name=on",
    ]
    assert main([*argv, "--trainer.val_check_interval=2"]) == 0
    (last,) = workdir.rglob("on/version_0/checkpoints/last.ckpt")
    assert torch.load(last, weights_only=True)["global_step"] == 4


def test_a_model_of_hourly_rows_is_not_scored_on_daily_ones(
    checkpoint: Path, workdir: Path, make_wide, capsys
) -> None:
    make_wide(600, freq="D").to_csv("days.csv", index=False)
    for command in ("test", "validate"):
        argv = ["timeseries", command, "--ckpt_path", str(checkpoint), "--data.path=days.csv"]
        assert main([*argv, "--trainer.logger=false"]) == 2
        assert (
            "has a row every D, the model was trained on a row every h" in capsys.readouterr().err
        )


def test_resuming_on_other_data_is_refused(
    checkpoint: Path, workdir: Path, make_wide, capsys
) -> None:
    make_wide(600, seed=5).to_csv("other.csv", index=False)
    argv = [
        "timeseries",
        "fit",
        "--ckpt_path",
        str(checkpoint),
        "--data.path=other.csv",
        "--trainer.max_steps=4",
    ]
    assert main([*argv, *QUICK]) == 2
    assert "another mean or standard deviation" in capsys.readouterr().err


CASES = {
    "missing file": ("none.csv", ["--data.path=none.csv"]),
    "empty": ("empty.csv", ["--data.path=empty.csv"]),
    "text": ("text.csv: line 3", ["--data.path=text.csv"]),
    "duplicate": ("twice.csv: line 4", ["--data.path=twice.csv"]),
    "gap": ("gap.csv: s0 at", ["--data.path=gap.csv", "--data.missing=error"]),
    "short": ("short.csv", ["--data.path=short.csv"]),
    "protocol": ("did you mean 'ratio'", ["--data.protocol=ration"]),
    "ett": ("protocol 'ett' needs 14400", ["--data.protocol=ett"]),
    "series": ("did you mean 's1'", ["--data.series=[s11]"]),
    "context": (
        "--model.context 48 and --data.context 24 must agree",
        ["--model.context=48", "--data.context=24"],
    ),
    "mixer": ("did you mean 'mamba'", ["--model.mixer=mambo"]),
    "argument": ("did you mean 'normalise'", ["--model.normalize=revin"]),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_line_and_status_2(case, workdir, wide_csv, make_wide, capsys) -> None:
    wide = make_wide(60)
    Path("empty.csv").write_text("")
    wide.astype({"s0": object}).replace({"s0": {wide["s0"][1]: "n/k"}}).to_csv(
        "text.csv", index=False
    )
    wide.iloc[[0, 1, 1, 2]].to_csv("twice.csv", index=False)
    wide.drop(index=20).to_csv("gap.csv", index=False)
    wide.to_csv("short.csv", index=False)
    named, arguments = CASES[case]
    assert main(fit("mixer_forecaster", wide_csv, *QUICK, *arguments)) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and named in errors[0], errors


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--model.channels=3"], "has 2 series, the model takes 3"),
        (["--model.features=5"], "takes 5"),
    ],
)
def test_models_of_fixed_series_say_what_does_not_fit(
    more, named, workdir, wide_csv, capsys
) -> None:
    assert main(fit("informer", wide_csv, *QUICK, *more)) == 2
    assert named in capsys.readouterr().err


def test_a_checkpoint_of_another_model_is_refused(
    checkpoint: Path, workdir: Path, wide_csv, capsys
) -> None:
    content = torch.load(checkpoint, weights_only=True)
    content["state_dict"] = {
        key.replace("mixer", "other"): v for key, v in content["state_dict"].items()
    }
    torch.save(content, "other.ckpt")
    Path("out.csv").write_text("earlier")
    argv = ["timeseries", "predict", str(wide_csv), "--ckpt_path", "other.ckpt", "--out", "out.csv"]
    assert main(argv) == 2
    assert "other.ckpt" in capsys.readouterr().err and Path("out.csv").read_text() == "earlier"
