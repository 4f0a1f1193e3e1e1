"""Tests of where trainings lie: the newest checkpoint, also of runs told to go elsewhere."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from longseq.core.command_line import CommandParser
from longseq.core.errors import DataError
from longseq.core.runs import known_roots, newest_checkpoint, remember_root


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LONGSEQ_CACHE_DIR", str(tmp_path / "cache"))
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def _run(root: Path, age: int) -> Path:
    file = root / "fit" / "version_0" / "checkpoints" / "last.ckpt"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"")
    os.utime(file, (1_000_000 - age, 1_000_000 - age))
    return file


def test_the_newest_of_all_roots(here: Path, tmp_path: Path) -> None:
    usual = _run(here / "outputs" / "genomics", age=10)
    assert Path(newest_checkpoint(*known_roots("genomics"))).resolve() == usual
    other = _run(tmp_path / "else where" / "ü", age=5)
    remember_root("genomics", tmp_path / "else where" / "ü")
    remember_root("genomics", "outputs/genomics")
    assert Path(newest_checkpoint(*known_roots("genomics"))).resolve() == other
    assert len(known_roots("genomics")) == 2 and len(known_roots("vision")) == 1
    parser = CommandParser(prog="longseq genomics embed")
    parser.add_argument("--ckpt_path", nargs="*")
    assert parser.parse_args(["--ckpt_path", "last", "b.ckpt"]).ckpt_path == [str(other), "b.ckpt"]
    (here / "last").touch()  # a file of that name
    assert parser.parse_args(["--ckpt_path", "last"]).ckpt_path == ["last"]


def test_a_run_started_elsewhere_is_not_this_folders(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remember_root("genomics", tmp_path / "far")
    monkeypatch.chdir(tmp_path)
    assert known_roots("genomics") == [Path("outputs/genomics")]
    with pytest.raises(DataError, match=r"holds no last\.ckpt"):
        newest_checkpoint(*known_roots("genomics"))


def test_damaged_notes_are_as_none(here: Path, tmp_path: Path) -> None:
    file = tmp_path / "cache" / "runs" / "genomics.json"
    file.parent.mkdir(parents=True)
    for text in ("{", "[]", '{"a": 3}', ""):
        file.write_text(text)
        assert len(known_roots("genomics")) == 1
        remember_root("genomics", tmp_path / "far")
        assert len(known_roots("genomics")) == 2


def test_where_nothing_can_be_noted(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGSEQ_CACHE_DIR", "/dev/null/cache")
    remember_root("genomics", here / "far")
    assert len(known_roots("genomics")) == 1
