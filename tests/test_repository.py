"""The repository's own promises: what `make test` says of skipped tests, and bounds on every
dependency."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]

TESTS = """
import pytest

@pytest.mark.skipif(True, reason="no hypercube: pip install hypercube")
@pytest.mark.parametrize("n", range(3))
def test_a(n): ...

def test_b(): pytest.skip("the moon is down")

def test_c(): pytest.importorskip("absent_module")

def test_d(): ...
"""


def test_skipped_tests_are_told_in_one_line_per_reason(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text())
    (tmp_path / "test_it.py").write_text(TESTS)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-n",
        "1",
        "--rootdir",
        str(tmp_path),
        str(tmp_path),
    ]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout
    text = run.stdout.partition("skipped, and why")[2]
    assert re.search(r"^ +3  no hypercube: pip install hypercube$", text, re.MULTILINE), run.stdout
    assert re.search(r"^ +1  the moon is down$", text, re.MULTILINE)
    assert re.search(r"^ +1  could not import 'absent_module'", text, re.MULTILINE)
    (tmp_path / "test_it.py").write_text("def test_d(): ...")
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0 and "skipped" not in run.stdout


def bounds() -> dict[str, Version]:
    found: dict[str, Version] = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if not line.startswith("#"):
            match = re.fullmatch(r"([a-z0-9-]+)<=([0-9.a-z]+)", line)
            assert match, line
            assert match[1] not in found, line
            found[match[1]] = Version(match[2])
    return found


def test_every_dependency_has_a_tested_upper_bound() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    # Compared with by hand, not installed by `make test`.
    named = [
        *project["dependencies"],
        *(line for k, v in extras.items() if k != "mamba-ssm" for line in v),
    ]
    known = bounds()
    for line in named:
        requirement = Requirement(line)
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        if name != "longseq":
            assert name in known, f"{name} has no bound: make update"
            assert requirement.specifier.contains(known[name]), line


@pytest.mark.parametrize("target", ["demo", "test"])
def test_both_commands_install_within_the_bounds(target: str) -> None:
    # A make that runs these tests hands its own options on.
    own = {"MAKEFLAGS", "MAKELEVEL", "MFLAGS", "MAKEOVERRIDES", "TORCH"}
    env = {name: value for name, value in os.environ.items() if name not in own}

    def planned(*options: str) -> str:
        command = ["make", "--dry-run", "--always-make", target, *options]
        run = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
        return run.stdout

    (line,) = [text for text in planned("TORCH=2.11.0").splitlines() if "--editable" in text]
    assert "--constraint constraints.txt" in line and "torch==2.11.0" in line
    assert line.startswith(".venv-2.11.0/bin/python")
    plain = planned()
    assert "torch==" not in plain and ".venv/bin/python -m pip install" in plain
