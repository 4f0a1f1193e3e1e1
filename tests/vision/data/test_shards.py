"""Tar shards: classes by file, JSON and folder, parts, workers, damage, many images."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from longseq.core.errors import DataError
from longseq.core.shell.cli import main
from longseq.vision.data.module import ImageData
from longseq.vision.data.pixels import Reading
from longseq.vision.data.shards import ShardImages, _members
from longseq.vision.data.sources import open_source


def picture(value: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((9, 9, 3), value, np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def write(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def shard(first: int, count: int, kind: str = "cls") -> dict[str, bytes]:
    """Images of the values first, first + 1, …, whose class is the value modulo 2."""
    found = {}
    for i in range(first, first + count):
        label = str(i % 2)
        name = {"folder": f"{label}/{i:04d}"}.get(kind, f"{i:04d}")
        found[f"{name}.png"] = picture(i)
        if kind == "cls":
            found[f"{name}.cls"] = label.encode()
        elif kind == "json":
            found[f"{name}.json"] = json.dumps({"label": i % 2, "note": "é"}).encode()
    return found


@pytest.mark.parametrize("kind", ["cls", "json", "folder"])
def test_classes_and_pixels_are_those_of_the_members(tmp_path: Path, kind: str) -> None:
    write(tmp_path / "set/a-train-000.tar", shard(0, 5, kind))
    write(tmp_path / "set/a-train-001.tar", shard(5, 4, kind))
    write(tmp_path / "set/a-val-000.tar", shard(20, 2, kind))
    found = open_source(str(tmp_path / "set"), Reading())
    assert isinstance(found.train, ShardImages) and found.test is None
    assert found.train.classes == ["0", "1"] and len(found.train) == 9
    assert found.valid is not None and len(found.valid) == 2
    for i in (8, 0, 5):  # in any order
        assert found.train.labels[i] == i % 2
        assert (found.train.image(i) == i).all()
    again = pickle.loads(pickle.dumps(found.train))  # as a worker process gets it
    assert (again.image(6) == 6).all() and "a-train-001.tar" in str(again.where(6).path)


@pytest.mark.parametrize("first", [".cls", ".json"])
def test_a_class_file_goes_before_json_wherever_it_stands(tmp_path: Path, first: str) -> None:
    members = shard(0, 4) | {f"{i:04d}.json": b'{"label": "other"}' for i in range(4)}
    names = sorted(members, key=lambda name: (name[:4], Path(name).suffix != first, name))
    path = write(tmp_path / "train.tar", {name: members[name] for name in names})
    source = open_source(str(path), Reading())
    assert source.train.classes == ["0", "1"] and source.train.labels.tolist() == [0, 1, 0, 1]


def test_a_pattern_and_folders_of_parts_name_shards(tmp_path: Path) -> None:
    for i in range(3):
        write(tmp_path / f"x-{i:03d}.tar", shard(4 * i, 4))
    assert len(open_source(str(tmp_path / "x-{000..001}.tar"), Reading()).train) == 8
    write(tmp_path / "set/train/0.tar", shard(0, 4))
    write(tmp_path / "set/Test/0.tar", shard(4, 2))
    found = open_source(str(tmp_path / "set"), Reading())
    assert len(found.train) == 4 and found.test is not None and len(found.test) == 2
    with pytest.raises(DataError, match=r"x-003\.tar: no such shard"):
        open_source(str(tmp_path / "x-{002..004}.tar"), Reading())


def test_numbers_sort_as_numbers(tmp_path: Path) -> None:
    members = {}
    for i in (2, 10, 1):
        members |= {f"{i}.png": picture(i), f"{i}.cls": str(i).encode()}
    train = open_source(str(write(tmp_path / "a.tar", members)), Reading()).train
    assert train.classes == ["1", "2", "10"] and train.labels.tolist() == [1, 2, 0]


def test_it_trains_with_two_workers_as_with_none(tmp_path: Path, workdir: Path) -> None:
    for i in range(2):
        write(tmp_path / f"set/train-{i}.tar", shard(20 * i, 20))
    losses = []
    for workers in (0, 2):
        data = ImageData(
            str(tmp_path / "set"), img_size=8, batch_size=8, augment="none", num_workers=workers
        )
        loader = data.train_dataloader()
        losses.append([float(batch["image"].sum()) for batch, _ in zip(loader, range(3))])
    assert losses[0] == losses[1]
    argv = ["vision", "fit", f"--data.source={tmp_path / 'set'}", "--data.img_size=12"]
    argv += ["--data.batch_size=8", "--model.model_kwargs={dims: [8], depths: [1]}"]
    argv += ["--trainer.max_steps=1", "--trainer.val_check_interval=1", "--trainer.logger=false"]
    assert main([*argv, "--trainer.enable_checkpointing=false"]) == 0


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("name", ["a.png", f"{'d' * 90}/{'e' * 90}/a.png", "ü/é.png"])
def test_every_form_of_header_is_read_as_tarfile_does(tmp_path: Path, form, name) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=form) as archive:
        for member, content in ((name, picture(3)), ("x/b.png", picture(4))):
            info = tarfile.TarInfo(member)
            info.size = len(content)
            info.mtime = 1.5 if form == tarfile.PAX_FORMAT else 1  # type: ignore[assignment]
            archive.addfile(info, io.BytesIO(content))
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
    with tarfile.open(path) as archive:
        expected = [(m.name, m.offset_data, m.size) for m in archive if m.isreg()]
    assert list(_members(path)) == expected and len(expected) == 2


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    good = shard(0, 4)
    for name, members, text in (
        ("none", {"a.png": picture(1), **good}, "a.png: has no class"),
        ("json", {**good, "0000.json": b"{"}, "0000.json: is no json"),
        ("list", {"1.png": picture(1), "1.json": b'{"label": [1]}', **good}, "number or a name"),
        ("twice", {**good, "0001.jpg": picture(1)}, "same key"),
        ("one", shard(0, 1), "one class only"),
        ("empty", {"a.txt": b""}, "holds no images"),
    ):
        with pytest.raises(DataError, match=text):
            open_source(str(write(tmp_path / f"{name}.tar", members)), Reading())
    packed = write(tmp_path / "a.tar.gz", good, "w:gz")
    with pytest.raises(DataError, match="compressed shard"):
        open_source(str(packed), Reading())
    (tmp_path / "text.tar").write_text("hello" * 200)
    with pytest.raises(DataError, match="not a tar archive"):
        open_source(str(tmp_path / "text.tar"), Reading())
    write(tmp_path / "new/train.tar", good)
    write(tmp_path / "new/test.tar", {"9.png": picture(1), "9.cls": b"7"})
    with pytest.raises(DataError, match="class '7'"):
        open_source(str(tmp_path / "new"), Reading())


def test_a_shard_cut_after_it_was_opened_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", shard(0, 4))
    train = open_source(str(path), Reading()).train
    path.write_bytes(path.read_bytes()[: int(train.places[3, 1]) + 10])  # type: ignore[attr-defined]
    with pytest.raises(DataError, match=r"a\.tar.*0003\.png.*truncated"):
        train.image(3)
    assert torch.equal(train.image(0), torch.zeros(3, 9, 9, dtype=torch.uint8))


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT])
def test_a_shard_cut_off_anywhere_is_refused(form: int, tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w", format=form) as archive:
        for name, content in shard(0, 4).items():
            info = tarfile.TarInfo(f"é{name}")  # a header of its own in the pax format
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    whole = path.read_bytes()
    members = list(_members(path))
    assert len(members) == 8
    _, offset, size = members[4]
    for length in (offset - 412, offset + size - 20):  # in its header, in its content
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"x\.tar: is not a tar archive, or is .*cut off"):
            open_source(str(path), Reading())
    path.write_bytes(whole[: offset - 500] + b"damaged" + whole[offset - 493 :])
    with pytest.raises(DataError, match="is damaged"):
        open_source(str(path), Reading())


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_links_in_the_place_of_images_are_refused(kind: bytes, tmp_path: Path) -> None:
    path = write(tmp_path / "x.tar", shard(0, 4))
    with tarfile.open(path, "a") as archive:
        link = tarfile.TarInfo("0009.png")
        link.type, link.linkname = kind, "0001.png"
        archive.addfile(link)
    with pytest.raises(DataError, match=r"x\.tar: 0009\.png: is a link to 0001\.png.*dereference"):
        open_source(str(path), Reading())


def test_a_compressed_shard_among_others_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "train-0.tar", shard(0, 4))
    write(tmp_path / "train-1.tar.gz", shard(4, 4), "w:gz")
    with pytest.raises(DataError, match=r"train-1\.tar\.gz: is a compressed shard"):
        open_source(str(tmp_path), Reading())


def test_shards_of_no_part_beside_those_of_parts_are_refused(tmp_path: Path) -> None:
    # Those of an evaluation were trained on in silence.
    write(tmp_path / "train-000.tar", shard(0, 4))
    write(tmp_path / "eval-000.tar", shard(4, 4))
    with pytest.raises(DataError, match=r"eval-000\.tar: is of no part by its name"):
        open_source(str(tmp_path), Reading())
    (tmp_path / "train-000.tar").rename(tmp_path / "more-000.tar")
    assert len(open_source(str(tmp_path), Reading()).train) == 8


def test_endings_in_capital_letters_and_classes_without_images(tmp_path: Path, capsys) -> None:
    members = {name.upper(): content for name, content in shard(0, 4).items()}
    write(tmp_path / "set/train.tar", members)
    found = open_source(str(tmp_path / "set"), Reading())
    assert found.train.labels.tolist() == [0, 1, 0, 1] and capsys.readouterr().err == ""
    write(tmp_path / "set/train.tar", members | {"0007.exr": b"x", "0007.cls": b"1"})
    assert len(open_source(str(tmp_path / "set"), Reading()).train) == 4
    assert "1 of its classes have no image of a known ending, such as 0007" in (
        capsys.readouterr().err
    )
