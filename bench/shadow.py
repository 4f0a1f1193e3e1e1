"""Sources in a folder in place of the installed ones, as sanitizers and mutants need them.

A folder on ``PYTHONPATH`` comes before what is installed, but not before the finder of an editable
install, which stands first of all and knows every module by name.
"""

from __future__ import annotations

from pathlib import Path

_START = '''"""Read by Python as it starts: longseq is what this folder has."""

import sys

sys.meta_path[:] = [one for one in sys.meta_path if "longseq" not in getattr(one, "__module__", "")]
'''


def shadow(folder: Path) -> None:
    """Makes a folder that holds ``longseq`` win over an editable install, in every process that has
    it first on ``PYTHONPATH``.

    Args:
        folder: that is put there.
    """
    (folder / "sitecustomize.py").write_text(_START)
