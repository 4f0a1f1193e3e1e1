"""The sanitizer runs: which modules a watched process sees, and what it is told."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from longseq.bench import sanitize
from longseq.core.ops import cpu_calls

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not shutil.which("g++"), reason="needs Linux with g++"
)


def test_sources_are_links_and_compiled_modules_those_of_the_build(tmp_path: Path) -> None:
    for name in ("_cpu", "_experts"):
        (tmp_path / f"{name}.cpython-311.so").touch()
    packages = sanitize.tree(tmp_path)
    sanitize.tree(tmp_path)  # again over what is there
    core = packages / "longseq" / "core"
    assert [one.resolve().parent for one in core.glob("*.so")] == [tmp_path]
    assert (core / "files.py").samefile(sanitize.ROOT / "core" / "files.py")
    assert (packages / "longseq" / "genomics" / "_experts.cpython-311.so").exists()


@pytest.mark.parametrize("kind", sanitize.KINDS)
def test_the_sanitizer_is_loaded_first(tmp_path: Path, kind: str) -> None:
    found = sanitize.environment(kind, tmp_path)
    assert Path(found["LD_PRELOAD"].split(":")[0]).is_file()
    assert str(tmp_path) in found["ASAN_OPTIONS"]


@pytest.mark.parametrize("kind", sanitize.KINDS)
def test_a_compiler_without_the_libraries_is_a_reason_not_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    compiler = tmp_path / "g++"
    compiler.write_text(
        '#!/bin/sh\necho "${1#-print-file-name=}"\n'
    )  # what g++ says of unknown ones
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(sanitize, "build", lambda *_: pytest.fail("it was built"))
    assert sanitize.main(["--only", kind]) == 0
    wanted = {"address": "libasan.so, libstdc++.so, libubsan.so", "thread": "libtsan.so"}[kind]
    assert f"{kind}: skipped: g++ has no {wanted} (" in capsys.readouterr().out
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert "there is no g++" in sanitize.missing(kind)


def test_parameters_are_spread_evenly() -> None:
    items = [SimpleNamespace(nodeid=f"t.py::a[{i}]") for i in range(7)]
    items.append(SimpleNamespace(nodeid="t.py::b"))
    names = [one.nodeid for one in sanitize.thin(items, 3)]
    assert names == ["t.py::a[0]", "t.py::a[3]", "t.py::a[6]", "t.py::b"]
    assert len(sanitize.thin(items, 1)) == 2


def test_undefined_behaviour_is_found_in_the_standard_error(tmp_path: Path) -> None:
    """A process that dies of it has written no file of its own."""
    (tmp_path / "packages").mkdir()
    for text, count in (("a warning", 0), ("x.h:1:2: runtime error: null", 1), ("", 0)):
        code = f"import os; os.write(2, {text.encode()!r}); os._exit(66)"
        assert sanitize.run(["-c", code], "thread", tmp_path) == 66
        assert len(sanitize.reports(tmp_path)) == count, text


def test_modules_of_another_build_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGSEQ_SANITIZED", "address")
    with pytest.raises(SystemExit, match="is not the module that was built for address"):
        sanitize.pytest_configure(None)
    assert cpu_calls.threads(1) == 1
