"""``fit`` from Python: the same training as the command line's, bit for bit; errors before it
begins."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from longseq.core.errors import ConfigError, DataError
from longseq.core.shell.cli import main
from longseq.core.training import Run, fit, load_task, seed_everything
from longseq.core.yaml_files import read_yaml
from longseq.genomics import CausalLanguageModel, GenomeData
from longseq.timeseries import ForecastData, MixerForecaster

SMALL: dict[str, Any] = {"d_model": 8, "n_layers": 1, "dropout": 0.1}
DATA: dict[str, Any] = {"length": 64, "batch_size": 2}
OPTIONS: dict[str, Any] = {"val_check_interval": 3, "enable_model_summary": False}


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LONGSEQ_CACHE_DIR", str(root / "cache"))
        patch.chdir(root)
        yield root


def make(**more: Any) -> tuple[CausalLanguageModel, GenomeData]:
    seed_everything(0)
    return CausalLanguageModel(**{**SMALL, **more}), GenomeData("tiny", **DATA)


@pytest.fixture(scope="module")
def run(folder: Path) -> Run:
    return fit(*make(), out=folder / "python", max_steps=6, name="r", **OPTIONS)


def weights(path: Path | None) -> dict[str, Any]:
    assert path is not None
    content = torch.load(path, weights_only=True)
    tensors = {
        name: value
        for name, value in content["state_dict"].items()
        if isinstance(value, torch.Tensor)
    }
    moments = content["optimizer_states"][0]["state"]
    return {**tensors, **{f"moment {key}": state["exp_avg_sq"] for key, state in moments.items()}}


def assert_equal(one: dict[str, Any], two: dict[str, Any]) -> None:
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert torch.equal(value, two[name]), name


def test_a_run_says_what_it_left(run: Run, folder: Path) -> None:
    assert run.folder == folder / "python/r/version_0"
    assert run.best == run.checkpoint == run.folder / "checkpoints/best.ckpt"
    assert run.last == run.folder / "checkpoints/last.ckpt"
    assert run.best.is_file() and run.last.is_file()
    assert run.seconds > 0 and {"train/loss", "val/loss", "val/bits_per_base"} <= run.metrics.keys()
    assert {"config.yaml", "metrics.csv", "loss_curve.png"} <= {
        path.name for path in run.folder.iterdir()
    }


def test_equal_to_the_command_line_bit_for_bit(run: Run, folder: Path) -> None:
    argv = [
        "genomics",
        "fit",
        "--data.fasta=tiny",
        "--data.length=64",
        "--data.batch_size=2",
        "--name=r",
    ]
    argv += [f"--model.{name}={value}" for name, value in SMALL.items()]
    argv += [
        "--trainer.max_steps=6",
        "--trainer.val_check_interval=3",
        "--trainer.enable_model_summary=false",
    ]
    assert main([*argv, "--trainer.default_root_dir=command"]) == 0
    made = folder / "command/r/version_0/checkpoints"
    for one, two in ((run.last, made / "last.ckpt"), (run.best, made / "best.ckpt")):
        assert_equal(weights(one), weights(two))
    # The configuration that a run from Python leaves trains the same on the command line.
    again = ["genomics", "fit", f"--config={run.folder}/config.yaml", "--name=again"]
    assert main([*again, "--trainer.default_root_dir=command"]) == 0
    assert_equal(
        weights(run.last), weights(folder / "command/again/version_0/checkpoints/last.ckpt")
    )


def test_resumed_runs_are_equal_too(run: Run, folder: Path) -> None:
    half = fit(
        *make(total_steps=6), out=folder / "half", max_steps=3, checkpoint_every=1, **OPTIONS
    )
    assert half.last is not None
    copy = folder / "half.ckpt"
    copy.write_bytes(half.last.read_bytes())
    whole = fit(*make(total_steps=6), out=folder / "whole", max_steps=6, **OPTIONS)
    seed_everything(5)  # nothing may depend on the second start
    task = CausalLanguageModel(**SMALL, total_steps=6)
    rest = fit(
        task,
        GenomeData("tiny", **DATA),
        out=folder / "half",
        max_steps=6,
        ckpt_path="last",
        **OPTIONS,
    )
    assert rest.folder == half.folder
    assert_equal(weights(rest.last), weights(whole.last))
    # By the command line, too.
    argv = ["genomics", "fit", "--ckpt_path", str(copy), "--name=c", "--trainer.max_steps=6"]
    assert (
        main([*argv, "--trainer.val_check_interval=3", "--trainer.default_root_dir=command"]) == 0
    )
    assert_equal(weights(whole.last), weights(folder / "command/c/version_0/checkpoints/last.ckpt"))


def test_a_resumed_run_says_what_is_not_as_it_was(
    run: Run, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = run.folder / "../copy.ckpt"
    again.write_bytes(run.last.read_bytes() if run.last is not None else b"")
    task = CausalLanguageModel(**SMALL)
    fit(task, GenomeData("tiny", length=64, batch_size=4), "other", 6, ckpt_path=again, **OPTIONS)
    said = capsys.readouterr().err
    assert "note: data: batch_size 4 where the checkpoint's training had 2" in said
    assert said.count("note: data:") == 1
    assert "note: nothing is trained: 6 steps are done, which is all that was asked for" in said
    fit(task, GenomeData("tiny", **DATA), "other", 7, ckpt_path=again, **OPTIONS)
    assert "note:" not in capsys.readouterr().err


def test_a_configuration_says_what_a_run_began_from(run: Run, folder: Path) -> None:
    """Also after it went on, by Python and by the command line."""
    first = fit(
        *make(total_steps=9), out=folder / "from", max_steps=3, init_from=run.last, **OPTIONS
    )
    file, begun = first.folder / "config.yaml", {"init_from": str(run.last), "ckpt_path": None}

    def found() -> dict[str, Any]:
        content = read_yaml(file)
        assert isinstance(content, dict)
        return {name: content[name] for name in begun}

    assert found() == begun
    fit(*make(total_steps=9), out=folder / "from", max_steps=4, ckpt_path="last", **OPTIONS)
    assert found() == begun
    argv = ["genomics", "fit", f"--ckpt_path={first.last}", "--trainer.max_steps=5"]
    assert main([*argv, f"--trainer.default_root_dir={folder / 'from'}"]) == 0
    assert found() == begun
    other = fit(
        *make(total_steps=9), out=folder / "fork", max_steps=4, ckpt_path=first.last, **OPTIONS
    )
    file = other.folder / "config.yaml"
    assert found() == {"init_from": None, "ckpt_path": str(first.last)}


def test_a_run_in_float64_goes_on_bit_for_bit(folder: Path) -> None:
    """Its weights are not rounded to float32 on their way."""
    double = {**OPTIONS, "precision": "64-true", "limit_val_batches": 0}
    whole = fit(*make(total_steps=6), out=folder / "double", max_steps=6, **double)
    half = fit(*make(total_steps=6), out=folder / "halves", max_steps=3, **double)
    there = fit(
        *make(total_steps=6), out=folder / "halves", max_steps=6, ckpt_path=half.last, **double
    )
    assert {str(value.dtype) for value in weights(whole.last).values()} == {"torch.float64"}
    assert_equal(weights(whole.last), weights(there.last))


def test_weights_to_start_from(run: Run, folder: Path) -> None:
    task, data = make()
    with torch.no_grad():
        for parameter in task.parameters():
            parameter.zero_()
    options = {**OPTIONS, "val_check_interval": 1}
    fit(task, data, out=folder / "from", max_steps=1, init_from=run.last, **options)
    plain = load_task(run.checkpoint, "genomics")
    moved = [(a - b).abs().max() for a, b in zip(task.parameters(), plain.parameters())]
    assert 0 < max(moved) < 0.01  # one step away from where it started


def test_what_a_task_learns_of_its_data_is_no_contradiction(folder: Path) -> None:
    rows = "\n".join(
        [
            "date,a,b",
            *(f"2020-01-{1 + i // 24:02d} {i % 24:02d}:00,{i % 24},{i}" for i in range(480)),
        ]
    )
    (folder / "wide.csv").write_text(rows + "\n")

    def parts() -> tuple[MixerForecaster, ForecastData]:
        seed_everything(0)
        task = MixerForecaster(48, 24, d_model=8, n_layers=1, patch=8, total_steps=4)
        return task, ForecastData("wide.csv", "ratio", 48, 24, batch_size=4)

    whole = fit(*parts(), out="series", max_steps=4, enable_model_summary=False)
    half = fit(*parts(), out="series", max_steps=2, enable_model_summary=False)
    rest = fit(*parts(), out="series", max_steps=4, ckpt_path=half.last, enable_model_summary=False)
    assert_equal(weights(rest.last), weights(whole.last))


def test_errors_come_before_training(run: Run, folder: Path) -> None:
    task, data = make()
    wrong: list[tuple[dict[str, Any], str]] = [
        ({}, "how long"),
        ({"max_stepz": 3}, "no argument 'max_stepz'; did you mean 'max_steps'"),
        ({"max_steps": 2, "accelerator": "abc"}, "invalid accelerator name"),
        ({"max_steps": 2, "ckpt_path": run.last, "init_from": run.last}, "not both"),
    ]
    for options, says in wrong:
        with pytest.raises(ConfigError, match=says):
            fit(task, data, out=folder / "wrong", **options)
    with pytest.raises(DataError, match=r"holds no last\.ckpt"):
        fit(task, data, out=folder / "wrong", max_steps=2, ckpt_path="last")
    other = make(lr=0.5)[0]
    with pytest.raises(
        ConfigError, match=r"^lr 0\.5 contradicts .*last\.ckpt.*trained with lr 0\.003.*init_from"
    ):
        fit(other, data, out=folder / "wrong", max_steps=8, ckpt_path=run.last)
    assert not (folder / "wrong").exists()


def test_classes_of_a_function_are_refused(folder: Path) -> None:
    class Local(CausalLanguageModel):
        pass

    with pytest.raises(ConfigError, match="Local could not be loaded again"):
        fit(
            Local(**SMALL),
            GenomeData("tiny", **DATA),
            out=folder / "local",
            max_steps=1,
            val_check_interval=1,
        )
    made = fit(
        Local(**SMALL),
        GenomeData("tiny", **DATA),
        out=folder / "local",
        max_steps=1,
        val_check_interval=1,
        enable_checkpointing=False,
    )
    assert made.last is None and made.best is None
    with pytest.raises(DataError, match="holds no checkpoint"):
        _ = made.checkpoint
