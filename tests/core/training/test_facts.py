"""What a run learns of its data: taken from the data module, kept in the checkpoint, read from old
ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from longseq.audio.calibration import Calibration
from longseq.audio.export import EXAMPLE, load_detector
from longseq.core.checkpoints.safe import load_checkpoint, load_weights
from longseq.core.errors import ConfigError
from longseq.core.shell.cli import main
from longseq.core.training.loading import load_task
from longseq.timeseries.data.module import ForecastData
from longseq.timeseries.task import MixerForecaster, SpaceTime
from longseq.vision.task import ImageClassifier

SMALL = {"context": 48, "horizon": 6, "d_model": 8}
FIT = [
    "timeseries",
    "fit",
    "--data.path=electricity_demand",
    "--data.context=48",
    "--data.horizon=6",
]
FIT += ["--model=SpaceTime", "--model.d_model=8", "--model.d_state=4", "--model.context=48"]
FIT += ["--model.horizon=6", "--trainer.max_steps=1", "--trainer.val_check_interval=1", "--name=a"]


def test_facts_travel_and_bind_only_the_training(workdir: Path, capsys) -> None:
    assert main(FIT) == 0
    last = "outputs/timeseries/a/version_0/checkpoints/last.ckpt"
    content = load_checkpoint(last)
    data = ForecastData("electricity_demand", context=48, horizon=6)
    assert content["facts"] == data.facts() and "scaler" not in content["hyper_parameters"]
    assert load_task(last, SpaceTime).facts == data.facts()
    # Trained on other rows: evaluation may be, going on may not.
    other = [f"--ckpt_path={last}", "--data.protocol=rolling"]
    assert main(["timeseries", "test", *other]) == 0
    going_on = [
        "timeseries",
        "fit",
        "--data.path=electricity_demand",
        "--trainer.max_steps=2",
        *other,
    ]
    assert main(going_on) == 2
    assert "another mean or standard deviation" in capsys.readouterr().err
    assert main([*FIT[:-1], "--name=b", f"--init_from={last}", "--data.protocol=rolling"]) == 0


def test_the_scaler_of_an_old_checkpoint_is_found(tmp_path: Path) -> None:
    task = SpaceTime(**SMALL, d_state=4)
    scaler = {"ids": ["a"], "mean": [0.5], "std": [2.0], "train_end": "7"}
    content = {
        "state_dict": task.state_dict(),
        "hyper_parameters": {**task.hparams, "scaler": scaler},
    }
    torch.save(content, tmp_path / "old.ckpt")
    loaded = load_task(tmp_path / "old.ckpt", "timeseries")
    assert isinstance(loaded, SpaceTime) and loaded.scaler == scaler
    load_weights(tmp_path / "old.ckpt", SpaceTime(**SMALL, d_state=4))
    assert MixerForecaster(**SMALL).scaler is None


def test_what_old_checkpoints_kept_among_the_weights_is_found(tmp_path: Path) -> None:
    small = {
        "model": "vit_pico",
        "num_classes": 2,
        "img_size": 12,
        "model_kwargs": {"d_model": 12, "n_layers": 1},
    }
    task = ImageClassifier(**small)
    facts = {"classes": ["a", "b"], "preprocess": {"img_size": 12}}
    state = {**task.state_dict(), "_extra_state": facts}
    torch.save({"state_dict": state, "hyper_parameters": dict(task.hparams)}, tmp_path / "old.ckpt")
    loaded = load_task(tmp_path / "old.ckpt", ImageClassifier)
    assert (
        isinstance(loaded, ImageClassifier)
        and loaded.facts == facts
        and loaded.classes == ["a", "b"]
    )
    load_weights(tmp_path / "old.ckpt", task)  # --init_from


def test_the_packaged_detector_still_knows_its_songs() -> None:
    task = load_detector(EXAMPLE)
    assert task.calibration.windows > 0 and task.familiarity is not None
    assert task.methods and set(task.songs) == {"train", "valid", "test"}
    task.calibration = Calibration(2.0)
    assert task.facts["calibration"]["slope"] == 2.0 and task.calibration == Calibration(2.0)


def test_attributes_without_facts_have_defaults() -> None:
    task = ImageClassifier("vit_pico", 2, img_size=12, model_kwargs={"d_model": 12, "n_layers": 1})
    assert task.classes == [] and task.preprocess == {} and task.facts == {} and task.data is None
    with pytest.raises(ConfigError):
        ImageClassifier("vit_pico", 1)
