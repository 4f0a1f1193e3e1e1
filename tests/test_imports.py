"""No domain imports another or the shell; nothing below the shell imports it (see
core/test_imports.py)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOMAINS = ("genomics", "timeseries", "vision", "audio", "weather")


def imported(path: Path) -> Iterator[str]:
    """Yields the modules of longseq that a file imports, lazily or not, and those that it names in
    text."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = node.value.partition(":")[0]
            if text.startswith("longseq.") and text.replace(".", "").replace("_", "").isalnum():
                yield text


def files(folder: str) -> list[Path]:
    found = sorted((ROOT / folder).rglob("*.py"))
    assert found, folder
    return found


@pytest.mark.parametrize("domain", DOMAINS)
def test_domains_import_neither_each_other_nor_the_shell(domain: str) -> None:
    others = tuple(f"longseq.{name}" for name in (*DOMAINS, "bench") if name != domain)
    for path in files(domain):
        for name in imported(path):
            assert not name.startswith((*others, "longseq.core.shell")), f"{path}: {name}"


def test_nothing_below_the_shell_imports_it_or_a_domain() -> None:
    above = tuple(f"longseq.{name}" for name in (*DOMAINS, "bench"))
    for path in files("core"):
        if path.is_relative_to(ROOT / "core" / "shell"):
            continue
        for name in imported(path):
            assert not name.startswith("longseq.core.shell"), f"{path}: {name}"
            assert not name.startswith(above), f"{path}: {name}"


def test_a_lazy_import_and_a_named_module_are_seen(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_text(
        'def f():\n    from longseq.core import shell\nX = "longseq.audio.scan:run"\nY = '
        '"longseq.md"'
    )
    assert {"longseq.core.shell", "longseq.audio.scan"} <= set(imported(path))
