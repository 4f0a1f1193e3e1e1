"""Reading a checkpoint: its data module with changes, and classes that have moved since it was
written."""

import importlib
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch

from longseq.core.domain import current_path
from longseq.core.errors import DataError
from longseq.core.training.loading import load_data, load_task
from longseq.genomics.data.module import GenomeData
from longseq.timeseries.data.module import ForecastData
from longseq.weather.video.moving_digits import MovingDigits
from longseq.weather.video.task import VideoForecaster


def write(path: Path, **content: object) -> Path:
    torch.save({"state_dict": {}, **content}, path)
    return path


def test_data_comes_back_with_changes(tmp_path: Path) -> None:
    hyper = dict(GenomeData("tiny", length=64).hparams)
    file = write(tmp_path / "a.ckpt", datamodule_hyper_parameters={**hyper, "_instantiator": "x"})
    data = load_data(file, GenomeData, batch_size=3)
    assert (
        data.hparams["fasta"] == "tiny"
        and data.hparams["length"] == 64
        and data.hparams["batch_size"] == 3
    )
    with pytest.raises(DataError, match="does not say on which ForecastData it was trained"):
        load_data(file, ForecastData)
    with pytest.raises(DataError, match="do not fit GenomeData"):
        load_data(file, GenomeData, no_such=1)
    with pytest.raises(DataError, match="does not say on which GenomeData"):
        load_data(write(tmp_path / "b.ckpt"), GenomeData)


def test_classes_that_have_moved_are_found(tmp_path: Path) -> None:
    task = VideoForecaster(depths=[8], n_layers=1)
    hyper = {**task.hparams, "_class_path": "longseq.weather.video.VideoForecaster"}
    digits = {"_class_path": "longseq.weather.data.moving_digits.MovingDigits"}
    content = {"hyper_parameters": hyper, "datamodule_hyper_parameters": digits}
    file = write(tmp_path / "a.ckpt", **content)
    torch.save({**content, "state_dict": task.state_dict()}, file)
    assert type(load_task(file, "weather")) is VideoForecaster
    assert type(load_data(file, MovingDigits)) is MovingDigits
    assert current_path("mine.Model") == "mine.Model"


def test_an_argument_that_an_earlier_version_called_otherwise_keeps_its_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = VideoForecaster(depths=[8], n_layers=1)
    hyper = dict(task.hparams)
    hyper["layers"] = hyper.pop("n_layers")
    file = write(tmp_path / "a.ckpt", hyper_parameters=hyper)
    torch.save({"hyper_parameters": hyper, "state_dict": task.state_dict()}, file)
    before = VideoForecaster.upgrade

    def upgrade(content: dict) -> None:
        before(content)
        content["hyper_parameters"]["n_layers"] = content["hyper_parameters"].pop("layers")

    monkeypatch.setattr(VideoForecaster, "upgrade", upgrade)
    assert load_task(file, "weather").hparams["n_layers"] == 1


def test_a_class_of_ones_own_that_has_changed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "from longseq.core.training.task import BaseTask\n\n\nclass {}(BaseTask):\n"
        "    def __init__(self, {}, **recipe):\n        super().__init__(**recipe)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "changing", raising=False)
    hyper = {"_class_path": "changing.Own", "context": 4, "lr": 0.1}
    file = write(tmp_path / "a.ckpt", hyper_parameters=hyper)
    cases = {
        ("Own", "context=1, *, gain"): "holds no gain, which changing.Own needs; has the class",
        ("Own", "length=1"): "holds context, which changing.Own does not take",
        ("Owns", "context=1"): "is of changing.Own, but changing has no such class; did you mean "
        "'Owns'?",
    }
    for (name, arguments), said in cases.items():
        (tmp_path / "changing.py").write_text(code.format(name, arguments))
        shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)  # of the same second
        importlib.invalidate_caches()
        sys.modules.pop("changing", None)
        with pytest.raises(DataError, match=re.escape(said)) as refused:
            load_task(file, allow=["changing"])
        assert str(file) in str(refused.value)
