"""A folder on the path takes the place of what is installed, editable or not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from longseq.bench.shadow import shadow

_FINDER = """
import sys
from importlib.machinery import PathFinder

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "longseq.core":
            return PathFinder.find_spec("core", [{installed!r}])

Finder.__module__ = {module!r}
sys.meta_path.insert(0, Finder())
"""


def _imports(first: Path, site: Path) -> str:
    """Returns where a new process, with an editable install in ``site``, finds the module."""
    code = f"import site; site.addsitedir({str(site)!r}); import importlib.util as u\n"
    # An interpreter reads the folders of packages first and sitecustomize then.
    code += "import importlib; m = importlib.util.find_spec('sitecustomize')\n"
    code += "m and m.loader.exec_module(importlib.util.module_from_spec(m))\n"
    code += "print(u.find_spec('longseq.core').origin)"
    environment = {**os.environ, "PYTHONPATH": str(first)}
    command = [sys.executable, "-S", "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return str(Path(done.stdout.strip()).parent)


def test_an_editable_install_does_not_win(tmp_path: Path) -> None:
    first, site, installed = tmp_path / "first", tmp_path / "site", tmp_path / "installed"
    for folder in (first / "longseq" / "core", installed / "core"):
        folder.mkdir(parents=True)
        (folder / "__init__.py").touch()
    site.mkdir()
    (site / "one.pth").write_text("import the_finder\n")
    text = _FINDER.format(installed=str(installed), module="_editable_skbc_longseq")
    (site / "the_finder.py").write_text(text)
    assert _imports(first, site) == str(installed / "core")  # what an editable install does
    shadow(first)
    assert _imports(first, site) == str(first / "longseq" / "core")
    # Finders of other packages are left alone.
    (site / "the_finder.py").write_text(text.replace("_editable_skbc_longseq", "other"))
    assert _imports(first, site) == str(installed / "core")
