"""The page "Build on it", executed: its files are written, its Python and its commands run."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[1] / "docs" / "extend.md"
BLOCK = re.compile(r'^```(python)?(?: title="([\w.]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
SECTIONS = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the files of all sections, as later ones use those of earlier ones."""
    folder = tmp_path_factory.mktemp("extend")
    for section in SECTIONS:
        for _, name, text in BLOCK.findall(section):
            if name:
                (folder / name).write_text(text, encoding="utf-8")
    yield folder


def run(arguments: list[str], folder: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *sys.path])}
    environment["LONGSEQ_CACHE_DIR"] = str(folder / "cache")
    command = [sys.executable, *arguments]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, (arguments, done.stdout[-1500:], done.stderr[-3000:])


@pytest.mark.parametrize("section", SECTIONS, ids=lambda text: text.split("\n")[0])
def test_every_block_runs(section: str, workdir: Path) -> None:
    blocks = BLOCK.findall(section)
    assert any(name for _, name, _ in blocks) and any(not kind for kind, _, _ in blocks)
    for kind, name, text in blocks:
        if kind and not name:
            run(["-c", text], workdir)
        for line in [] if kind else text.splitlines():
            program, *rest = shlex.split(line)
            assert program == "longseq"
            run(["-m", "longseq.core.shell.cli", *rest], workdir)


def test_every_section_names_its_files() -> None:
    assert [text.split("\n")[0] for text in SECTIONS] == [
        f"Add a {what}" for what in ("mixer", "model", "metric", "format", "domain")
    ]
    assert all(re.search(r"^Files: ", text, re.MULTILINE) for text in SECTIONS)
