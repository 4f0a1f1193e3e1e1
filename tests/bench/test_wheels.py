"""The check of the wheel: what it must hold, which packages an extra may see, what is found."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import Distribution
from pathlib import Path

import pytest

from longseq.bench import wheels

METADATA = """Metadata-Version: 2.1
Name: longseq
Version: 1
Provides-Extra: pictures
Provides-Extra: more
Requires-Dist: rich
Requires-Dist: pytest; extra == "pictures"
Requires-Dist: longseq[pictures]; extra == "more"
Requires-Dist: no-such-package; extra == "more"
Requires-Dist: polars; sys_platform == "plan9"
"""


@pytest.fixture
def package(tmp_path: Path) -> Distribution:
    folder = tmp_path / "longseq-1.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(METADATA)
    return Distribution.at(folder)


def test_an_extra_sees_what_it_asks_for_and_no_more(package: Distribution, tmp_path: Path) -> None:
    plain, pictures = (wheels.needed(package, extra) for extra in ("", "pictures"))
    assert {"rich", "pygments", "markdown-it-py"} <= plain and "pytest" not in plain
    assert pictures == plain | {"pytest", "pluggy", "iniconfig", "packaging"}
    assert wheels.needed(package, "more") == pictures
    wheels.lay_out(plain, tmp_path / "links")
    run = [sys.executable, "-I", "-S", "-c"]
    start = f"import sys; sys.path.insert(0, {str(tmp_path / 'links')!r}); import "
    assert subprocess.run([*run, start + "rich"], check=False).returncode == 0
    missing = subprocess.run([*run, start + "pytest"], capture_output=True, check=False)
    assert b"ModuleNotFoundError" in missing.stderr


def test_a_wheel_without_its_kernels_or_with_sources_is_found() -> None:
    good = [one if one.endswith((".typed", ".fa", ".txt")) else f"{one}x" for one in wheels.WANTED]
    assert wheels.contents(good) == []
    assert wheels.contents(good[1:]) == ["longseq/core/py.typed is not in it"]
    assert wheels.contents([*good, "longseq/core/a.cpp"]) == ["longseq/core/a.cpp is in it"]


def test_modules_that_cannot_be_imported_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    (folder / "inner").mkdir(parents=True)
    for name in ("__init__", "good", "inner/__init__"):
        (folder / f"{name}.py").touch()
    (folder / "__main__.py").write_text("raise SystemExit(1)")
    found = wheels.check(Path(sys.executable), tmp_path, tmp_path, "odd")
    assert found == []
    (folder / "bad.py").write_text("import no_such_module")
    (folder / "inner" / "worse.py").write_text("raise SystemExit(3)")
    found = wheels.check(Path(sys.executable), tmp_path, tmp_path, "odd")
    assert [one.split(":")[0] for one in found] == ["odd.bad", "odd.inner.worse"]
    assert "no_such_module" in found[0]
    (gone,) = wheels.check(Path(sys.executable), tmp_path, tmp_path, "no_such_package")
    assert "ended with 1" in gone
