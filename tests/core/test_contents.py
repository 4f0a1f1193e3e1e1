"""Files of weights that lie about themselves are refused, in one line, before anything relies on
them."""

from __future__ import annotations

import json
import runpy
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from longseq.core import domain as domains
from longseq.core.checkpoints.layouts import read_state_dict
from longseq.core.checkpoints.safe import load_checkpoint, load_weights, read_weights
from longseq.core.errors import DataError
from longseq.core.shell.cli import main
from longseq.core.training.loading import harmless, load_task
from longseq.core.training.run import fit

HELPER = Path(__file__).parent / "training" / "fake_domain.py"


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.chdir(tmp_path)
    module: ModuleType = runpy.run_path(str(HELPER))["install"]()
    yield module
    domains.unregister_domain("toy")


def test_a_pickle_that_ends_in_a_word(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02X\x01")
        archive.writestr("a/version", b"3\n")
        archive.writestr("a/byteorder", b"little")
    with pytest.raises(DataError, match="truncated or damaged"):
        load_checkpoint(path)
    with pytest.raises(DataError, match="is no file of weights, or is damaged"):
        read_state_dict(path)


def test_names_with_line_breaks_stay_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "two\nlines.ckpt"
    torch.save({"state_dict": {"a\u2028b": torch.zeros(1)}}, path)
    with pytest.raises(DataError) as caught:
        load_task(path)
    assert len(str(caught.value).splitlines()) == 1 and "two\\nlines" in str(caught.value)


@pytest.mark.parametrize("section", ["hyper_parameters", "facts", "loops", "callbacks"])
@pytest.mark.parametrize("value", [[1, 2], "abc", 3, {1: 2}])
def test_parts_of_another_kind(tmp_path: Path, section: str, value: Any) -> None:
    torch.save({"state_dict": {}, section: value}, tmp_path / "x.ckpt")
    with pytest.raises(DataError, match=f"its {section} are no names with values"):
        load_checkpoint(tmp_path / "x.ckpt")


@pytest.mark.parametrize(
    "weight",
    [3, "text", torch.eye(3).to_sparse(), torch.empty(3, device="meta"), [1.0], None],
)
def test_weights_of_another_kind(tmp_path: Path, weight: Any) -> None:
    torch.save({"state_dict": {"weight": weight}}, tmp_path / "x.ckpt")
    with pytest.raises(DataError, match=r"its weight weight is no|holds pickled|damaged"):
        load_checkpoint(tmp_path / "x.ckpt")


def test_a_packed_record_is_not_unpacked(tmp_path: Path) -> None:
    torch.save({"state_dict": {"w": torch.zeros(100_000)}}, tmp_path / "good.ckpt")
    with (
        zipfile.ZipFile(tmp_path / "good.ckpt") as good,
        zipfile.ZipFile(tmp_path / "bad.ckpt", "w", zipfile.ZIP_DEFLATED) as bad,
    ):
        for name in good.namelist():
            bad.writestr(name, good.read(name))
    with pytest.raises(DataError, match="is packed, which no checkpoint's is"):
        load_checkpoint(tmp_path / "bad.ckpt")


@pytest.mark.parametrize("value", ["[]", "null", '"text"', "3"])
@pytest.mark.parametrize("key", ["hyper_parameters", "aliases", "extra_state"])
def test_metadata_of_safetensors(tmp_path: Path, key: str, value: str) -> None:
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(2)}, tmp_path / "x.safetensors", {key: value})
    with pytest.raises(DataError, match=f"its {key} are no names with values"):
        read_weights(tmp_path / "x.safetensors")


@pytest.mark.parametrize("source", ["none", 3, [], {"a": 1}])
def test_aliases_of_nothing(tmp_path: Path, source: Any) -> None:
    from safetensors.torch import save_file

    metadata = {"aliases": json.dumps({"bias": source})}
    save_file({"weight": torch.zeros(2)}, tmp_path / "x.safetensors", metadata)
    with pytest.raises(DataError, match="its alias bias is of no tensor"):
        load_weights(tmp_path / "x.safetensors", nn.Linear(2, 1))


@pytest.mark.parametrize(
    ("name", "value"),
    [("n_layers", 10**9), ("d_model", 10**6), ("d_model", -1), ("d_model", 0), ("n_layers", "a")],
)
def test_sizes_that_the_weights_contradict(tmp_path: Path, name: str, value: Any) -> None:
    from longseq.genomics.task import CausalLanguageModel

    task = CausalLanguageModel(d_model=8, n_layers=1, mixer="s4d")
    hyper = {**task.hparams, name: value}
    torch.save(
        {"state_dict": task.state_dict(), "hyper_parameters": hyper, "facts": {}},
        tmp_path / "x.ckpt",
    )
    with pytest.raises(DataError, match=r"x\.ckpt: its (hyper-parameters|n_layers|d_model)") as one:
        load_task(tmp_path / "x.ckpt")
    assert len(str(one.value).splitlines()) == 1
    assert main(["genomics", "fit", "--ckpt_path", str(tmp_path / "x.ckpt")]) == 2


@pytest.mark.parametrize("part", ["optimizer_states", "lr_schedulers", "loops"])
@pytest.mark.parametrize("value", [None, [], {}, [3], "x"])
def test_a_training_goes_on_whole_or_not_at_all(toy: ModuleType, part: str, value: Any) -> None:
    run = fit(toy.ToyTask(), toy.ToyData(), "out", 3, progress="lines")
    content = load_checkpoint(run.last)
    if value is None:
        del content[part]
    else:
        content[part] = value
    torch.save(content, "cut.ckpt")
    with pytest.raises(DataError, match=f"{part} are (missing or damaged|no names with values)"):
        fit(toy.ToyTask(), toy.ToyData(), "out", 6, ckpt_path="cut.ckpt", progress="lines")
    load_task("cut.ckpt") if part != "loops" else None


def test_a_checkpoint_downloads_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert harmless({"download": True, "root": "x"}) == {"download": False, "root": "x"}
    assert harmless({"root": "x"}) == {"root": "x"}


def test_changed_bytes_of_a_record_are_named(tmp_path: Path) -> None:
    """torch looks at no record's sum: one bit of the weights would be trained on, or served."""
    path = tmp_path / "a.ckpt"
    torch.save({"state_dict": {"a": torch.zeros(999)}}, path)
    whole = path.read_bytes()
    assert float(load_checkpoint(path)["state_dict"]["a"].sum()) == 0
    with zipfile.ZipFile(path) as archive:
        names = [one.filename for one in archive.infolist()]
        contents = {one: archive.read(one) for one in names}
        begins = {one: whole.index(one.encode()) + len(one) for one in names}
    begins["a/data/0"] += 2000  # amid the numbers
    for name, begin in begins.items():
        spoilt = bytearray(whole)
        # Between the name and the content lies padding; the content is looked for.
        if name != "a/data/0":
            begin = whole.index(contents[name], begin)
        spoilt[begin] ^= 1
        other = tmp_path / "b.ckpt"
        other.write_bytes(spoilt)
        for read in (load_checkpoint, read_state_dict):
            with pytest.raises(DataError, match=f"its record '{name}' is damaged: .*copy the file"):
                read(other)


def test_a_shortened_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    torch.save({"state_dict": {"a": torch.zeros(999)}}, path)
    path.write_bytes(path.read_bytes()[:-700])
    for read in (load_checkpoint, read_state_dict):
        with pytest.raises(DataError, match="truncated or damaged"):
            read(path)


def test_records_that_are_longer_than_the_file(tmp_path: Path) -> None:
    """Many entries of one record would be read, and summed, as often."""
    path = tmp_path / "a.ckpt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", bytes(5000))
        archive.filelist *= 50
    with pytest.raises(DataError, match="its records are longer than the file"):
        load_checkpoint(path)
