"""Plug-ins and domains from outside that are broken: each is told in one line, and stops nothing
else."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from longseq.core import plugins
from longseq.core.domain import (
    Command,
    Domain,
    list_domains,
    register_domain,
    unregister_domain,
)
from longseq.core.errors import ConfigError
from longseq.core.mixers.base import MIXERS, mixer_class
from longseq.core.shell.cli import main
from longseq.timeseries import FORMATS

HALF = """
from longseq.core.domain import Domain, register_domain
from longseq.core.mixers.attention import Attention
from longseq.core.mixers import register_mixer
from longseq.timeseries import FORMATS


@register_mixer("{0}")
class Own(Attention):
    ...


@FORMATS.register(".{0}")
def read(path):
    ...


register_domain(Domain("{0}", "of {0}", package="{0}"))
{1}
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path, and no kept plug-ins before and after."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("LONGSEQ_CACHE_DIR", str(tmp_path / "cache"))
    plugins.installed.cache_clear()
    plugins.load_installed.cache_clear()
    yield tmp_path
    plugins.installed.cache_clear()
    plugins.load_installed.cache_clear()
    unregister_domain("moon")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("not a module!", "its entry point 'not a module!' names no module"),
        ("", "its entry point '' names no module"),
        ("broken_one:register", "names register, which is not there"),
        ("broken_one:here.deeper", "names deeper, which is not there"),
        ("not_there", "ModuleNotFoundError: No module named 'not_there'"),
        ("ends", "it ends the program with sys.exit(3) (ends.py, line 2)"),
        ("asks", "IndexError: tuple index out of range (asks.py, line 1)"),
    ],
)
def test_a_broken_entry_point_stops_no_command(
    site: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    value: str,
    said: str,
) -> None:
    (site / "broken_one.py").write_text("here = 1\n")
    (site / "ends.py").write_text("import sys\nsys.exit(3)\n")
    (site / "asks.py").write_text("()[0]\n")
    entries = [EntryPoint("first", value, plugins.GROUP)]
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: entries)
    assert main(["--help"]) == 0
    assert "plug-ins: first (an unnamed package); longseq doctor" in capsys.readouterr().out
    assert main(["timeseries", "fit", "--horizon", "3"]) == 2  # of no help, but it is reached
    first, *_, last = capsys.readouterr().err.splitlines()
    assert first.startswith("note: the plug-in first of an unnamed package is left out: ")
    assert first.endswith(said) and last.startswith("error: ") and "--data.horizon" in last


def test_what_a_plug_in_registered_before_it_failed_is_taken_out(
    site: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (site / "whole.py").write_text(HALF.format("whole", ""))
    (site / "half.py").write_text(HALF.format("half", "import whole\nimport nowhere"))
    entries = [EntryPoint("half", "half", plugins.GROUP)]
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: entries)
    try:
        plugins.load_installed()
        assert "No module named 'nowhere'" in capsys.readouterr().err
        assert ".whole" in FORMATS and "whole" in list_domains()  # which half was first to import
        assert ".half" not in FORMATS and "half" not in list_domains()
        assert FORMATS.suffix_of("a.half") is None
        with pytest.raises(ConfigError, match="no mixer named 'half'"):
            mixer_class("half")
        assert mixer_class("whole").__module__ == "whole"
        assert mixer_class("mamba").__module__.startswith("longseq.")
    finally:
        unregister_domain("whole")
        FORMATS._things.pop(".whole", None)
        MIXERS._things.pop("whole", None)


def test_an_entry_point_that_names_a_function_imports_its_module(
    site: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (site / "works.py").write_text("def register():\n    raise RuntimeError\n")
    entries = [EntryPoint("works", "works:register", plugins.GROUP)]
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: entries)
    plugins.load_installed()
    assert capsys.readouterr().err == "" and plugins.is_allowed("works")


@pytest.mark.parametrize(
    ("parts", "command", "said"),
    [
        ({"task": "moons.Task"}, "fit", "names longseq.moon as its package, but there is no"),
        (
            {"task": "moons.Task", "package": "moons"},
            "fit",
            "names moons.Task as its task, but there is no Task",
        ),
        (
            {"task": "moons.part.Task", "package": "moons"},
            "test",
            "its task, but there is no module 'moons.part'",
        ),
        ({"task": "Task", "package": "moons"}, "fit", "as its task, but there is no module 'Task'"),
        (
            {"task": "moons.Here", "data": "moons.Gone", "package": "moons"},
            "fit",
            "names moons.Gone as its data, but there is no Gone",
        ),
        (
            {"commands": {"count": Command("counts", "moons:gone")}},
            "count",
            "names moons:gone as its commands['count'], but there is no gone",
        ),
        ({"models": "moons.GONE"}, "models", "names moons.GONE as its models, but there is no"),
        ({"demo": Command("demo", "moons:gone")}, "demo", "names moons:gone as its demo, but"),
        ({"compare": Command("c", "moons:Gone")}, "compare", "names moons:Gone as its compare"),
    ],
)
@pytest.mark.parametrize("ask", [["--help"], []])
def test_a_domain_that_names_what_is_not_there(
    site: Path, capsys: pytest.CaptureFixture[str], parts, command: str, said: str, ask: list[str]
) -> None:
    (site / "moons.py").write_text("class Here: ...\n")
    register_domain(Domain("moon", "moons", **parts))
    assert main(["moon", command, *ask]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: the domain moon ") and said in err and err.count("\n") == 1
