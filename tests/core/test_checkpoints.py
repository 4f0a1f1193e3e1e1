"""Every unusable checkpoint is one line that says what is wrong; good ones come back equal."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from longseq.core.checkpoints import load_checkpoint, load_weights, read_weights, save_weights
from longseq.core.errors import ConfigError, DataError
from longseq.core.training.callbacks import AtomicCheckpointIO
from longseq.core.training.loading import load_task

HELPER = Path(__file__).parent / "training" / "fake_domain.py"


@pytest.fixture
def toy() -> ModuleType:
    module: ModuleType = runpy.run_path(str(HELPER))["install"]()
    return module


def _content(task: Any, **changes: Any) -> dict[str, Any]:
    return {"state_dict": task.state_dict(), "hyper_parameters": {**task.hparams, **changes}}


def _message(path: Path, load: Any = load_checkpoint, **arguments: Any) -> str:
    with pytest.raises(DataError) as caught:
        load(path, **arguments)
    text = str(caught.value)
    assert "\n" not in text
    assert str(path) in text
    return text


def test_round_trip(toy: ModuleType, tmp_path: Path) -> None:
    task = toy.ToyTask(width=3)
    AtomicCheckpointIO().save_checkpoint(_content(task), tmp_path / "sub" / "x.ckpt")
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["x.ckpt"]
    for expected in (None, "toy", toy.ToyTask):
        again = load_task(tmp_path / "sub" / "x.ckpt", expected)
        assert type(again) is toy.ToyTask
        assert not again.training
        assert dict(again.hparams) == dict(task.hparams)
        for name, value in task.state_dict().items():
            assert torch.equal(value, again.state_dict()[name])


def test_options_of_a_remote_storage_are_not_dropped(toy: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="storage_options"):  # Lightning's own answer
        AtomicCheckpointIO().save_checkpoint({}, tmp_path / "x.ckpt", storage_options={"a": 1})
    assert not (tmp_path / "x.ckpt").exists()


def test_unusable_files(toy: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    assert "no such checkpoint" in _message(path)
    path.write_bytes(b"")
    assert "empty" in _message(path)
    path.write_text("hello, I am no checkpoint")
    assert "is not a checkpoint" in _message(path)
    assert "is not a file" in _message(tmp_path)
    torch.save(_content(toy.ToyTask()), path)
    whole = path.read_bytes()
    for size in (5, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert "truncated or damaged" in _message(path)
    torch.save([1, 2], path)
    assert "no state_dict" in _message(path)
    path.write_bytes(b"\x80\x04garbage")
    assert "checkpoint" in _message(path)


def test_a_pickled_object_is_refused_and_not_executed(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (Path(tmp_path / "owned").touch, ())

    for legacy in (False, True):
        path = tmp_path / "evil.ckpt"
        content = {"state_dict": {}, "x": Evil() if not legacy else SimpleNamespace(a=1)}
        torch.save(content, path, _use_new_zipfile_serialization=not legacy)
        text = _message(path)
        assert "pickled Python objects, which longseq never executes" in text
        assert "safetensors" in text
    assert not (tmp_path / "owned").exists()


def test_another_model(toy: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    content = _content(toy.ToyTask())
    state = content["state_dict"]
    torch.save(
        {**content, "state_dict": {k: v for k, v in state.items() if k != "head.bias"}}, path
    )
    assert "missing: head.bias" in _message(path, load_task)
    torch.save({**content, "state_dict": {**state, "tail": torch.ones(1)}}, path)
    assert "unexpected: tail" in _message(path, load_task)
    torch.save(_content(toy.ToyTask(width=5), width=4), path)
    text = _message(path, load_task)
    assert "gru.weight_ih_l0 (15, 3) instead of (12, 3)" in text
    assert "and 2 more" in text
    torch.save(content, path)
    assert "is a checkpoint of toy, not of genomics" in _message(
        path, load_task, expected="genomics"
    )
    torch.save(_content(toy.ToyTask(), widht=3), path)
    text = _message(path, load_task)
    assert "holds widht" in text and "did you mean 'width'?" in text


@pytest.mark.parametrize(
    ("dotted", "says"),
    [
        (
            "os.system",
            "is of os.system, and code from outside longseq is imported only where it is named",
        ),
        ("longseq.core.errors.DataError", "no task"),
        ("longseq.core.training.task.nothing", "no task"),
        ("longseq.nowhere.Task", "cannot be imported"),
        (None, "does not say which model"),
    ],
)
def test_only_tasks_of_longseq_are_built(
    dotted: str | None, says: str, toy: ModuleType, tmp_path: Path
) -> None:
    torch.save(_content(toy.ToyTask(), _class_path=dotted), tmp_path / "x.ckpt")
    assert says in _message(tmp_path / "x.ckpt", load_task)


class _Tied(nn.Module):
    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.embed = nn.Embedding(4, width)
        self.head = nn.Linear(width, 4)
        self.head.weight = self.embed.weight


def test_safetensors(tmp_path: Path) -> None:
    path, net, other = tmp_path / "x.safetensors", _Tied(), _Tied()
    save_weights(path, net, {"width": 3})
    tensors, hyper = read_weights(path)
    assert hyper == {"width": 3}
    assert tensors["head.weight"] is tensors["embed.weight"]
    assert load_weights(path, other) == {"width": 3}
    assert torch.equal(other.head.weight, net.head.weight)
    assert other.head.weight is other.embed.weight
    assert "of another shape: embed.weight (4, 3) instead of (4, 2)" in _message(
        path, load_weights, module=_Tied(2)
    )
    assert "load_weights reads safetensors" in _message(path)
    before = path.read_bytes()
    with pytest.raises(ConfigError):
        save_weights(path, net, {"width": object()})
    assert path.read_bytes() == before
    path.write_bytes(before[:40])
    assert "truncated or damaged" in _message(path, read_weights)
    assert [file.name for file in tmp_path.iterdir()] == ["x.safetensors"]


class _Named(nn.Linear):
    """A module with extra state that is no tensor."""

    labels = ("a", "b")

    def get_extra_state(self) -> dict[str, list[str]]:
        return {"labels": list(self.labels)}

    def set_extra_state(self, state: dict[str, list[str]]) -> None:
        self.labels = tuple(state["labels"])


def test_safetensors_keep_extra_state(tmp_path: Path) -> None:
    net, other = nn.Sequential(_Named(2, 2)), nn.Sequential(_Named(2, 2))
    net[0].labels = ("cat", "dog <b>")
    save_weights(tmp_path / "x.safetensors", net, {})
    load_weights(tmp_path / "x.safetensors", other)
    assert other[0].labels == ("cat", "dog <b>") and torch.equal(other[0].weight, net[0].weight)
    with pytest.raises(DataError, match=r"unexpected: 0\._extra_state"):
        load_weights(tmp_path / "x.safetensors", nn.Sequential(nn.Linear(2, 2)))
    net[0].labels = (object(),)
    with pytest.raises(ConfigError, match="JSON-able"):
        save_weights(tmp_path / "x.safetensors", net, {})


def test_load_weights_from_a_lightning_checkpoint(toy: ModuleType, tmp_path: Path) -> None:
    task, other = toy.ToyTask(), toy.ToyTask()
    torch.save(_content(task), tmp_path / "x.ckpt")
    assert load_weights(tmp_path / "x.ckpt", other)["width"] == 4
    assert torch.equal(task.head.weight, other.head.weight)
