"""``longseq demo``: every domain in turn, missing requirements said, one page in the end."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

from longseq.core.domain import Command, Domain, load_domain, register_domain, unregister_domain
from longseq.core.results import Score
from longseq.core.shell.cli import main
from longseq.core.shell.demo import run_demos
from longseq.core.training.by_config import Train


@pytest.fixture
def domains(monkeypatch, section):
    """Two domains with demos, of which the second needs a package that nobody has."""
    made = []
    for name, requires in (("toys", ()), ("games", ("no_such_package_at_all",))):
        module = ModuleType(f"longseq.{name}.demo")

        def demo(out: Path, train: Train, max_steps: int | None = None, name: str = name):
            made.append((name, max_steps))
            return section(out, 0.4, domain=name)

        module.demo = demo  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, f"longseq.{name}", ModuleType(f"longseq.{name}"))
        monkeypatch.setitem(sys.modules, f"longseq.{name}.demo", module)
        shown = Command("a demo", f"longseq.{name}.demo:demo")
        register_domain(Domain(name, "help", requires=requires, demo=shown))
    monkeypatch.setattr("longseq.core.shell.demo.list_domains", lambda: ["toys", "games"])
    yield made
    unregister_domain("toys")
    unregister_domain("games")


def test_all_demos_make_one_page(domains, tmp_path: Path, capsys) -> None:
    assert main(["demo", "--out", str(tmp_path), "--max_steps", "3"]) == 0
    assert domains == [("toys", 3)]
    out = capsys.readouterr().out
    assert "games (2 of 2)" in out and "left out: longseq games needs no_such_package_at_all" in out
    assert "mamba beats the best baseline, mean" in out
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert 'id="toys"' in page and 'id="games"' not in page


def test_wrong_use_is_one_line(domains, tmp_path: Path, capsys) -> None:
    assert main(["demo", "--max_steps", "0", "--out", str(tmp_path)]) == 2
    assert "--max_steps must be at least 1" in capsys.readouterr().err
    assert main(["games", "demo"]) == 2
    assert 'pip install "longseq[games]"' in capsys.readouterr().err
    assert domains == [] and list(tmp_path.iterdir()) == []


def test_scores_of_a_section_have_a_verdict(domains, section, tmp_path: Path) -> None:
    assert run_demos(["--out", str(tmp_path)], [load_domain("toys")]) == 0
    made = section(tmp_path, 0.4)
    assert made.verdict.startswith("mamba beats the best baseline") and isinstance(
        made.scores[0], Score
    )
