"""Help of fit, validate, test and predict: made once and kept, for making it imports torch or
Lightning."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.metadata
import io
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from longseq.core import plugins
from longseq.core.domain import Domain, import_object
from longseq.core.errors import DataError
from longseq.core.files import atomic_path, cache_dir

WHOLE = "--help_all"
KEPT = 64
"""Texts that are kept, the newest."""


def _fingerprint(domain: Domain, command: str, argv: Sequence[str]) -> str:
    """Returns a digest of all that the text depends on: the code, the libraries and the terminal's
    width."""
    parts = [domain.name, command, *argv, sys.version, str(shutil.get_terminal_size().columns)]
    parts += [importlib.metadata.version(name) for name in ("lightning", "jsonargparse")]
    parts += plugins.fingerprint()
    named = (Path(text.partition("=")[2] or text) for text in argv)
    files = [file for file in named if file.is_file()]  # configurations of the user's own
    for name in ("longseq.core", domain.home):
        module = importlib.import_module(name)
        for folder in getattr(module, "__path__", ()):
            files += sorted(
                file for kind in ("*.py", "*.yaml") for file in Path(folder).rglob(kind)
            )
        if not hasattr(module, "__path__") and module.__file__:  # a domain in one file
            files.append(Path(module.__file__))
    for file in files:
        status = file.stat()
        parts.append(f"{file} {status.st_mtime_ns} {status.st_size}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _make(domain: Domain, command: str, argv: Sequence[str]) -> str:
    plugins.load_installed()
    if WHOLE not in argv:
        return str(import_object("longseq.core.shell.short_help:text", ":")(domain, command, argv))
    out = io.StringIO()
    run = import_object("longseq.core.shell.lightning_cli:run", ":")
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        run(domain, command, ["--help"])
    return out.getvalue()


def asks_for_help(argv: Sequence[str]) -> bool:
    """Returns whether arguments of a task command ask for its help."""
    return any(text in ("-h", "--help", WHOLE) for text in argv)


def show(domain: Domain, command: str, argv: Sequence[str] = ()) -> int:
    """Prints the help of a task command, from the cache if it is there.

    Args:
        domain: whose.
        command: fit, validate, test or predict.
        argv: its arguments; with ``--help_all`` every option is shown.

    Returns:
        The exit status.
    """
    try:
        cached = (
            cache_dir("help") / f"{domain.name}-{command}-{_fingerprint(domain, command, argv)}.txt"
        )
    # Nowhere to keep it, or a domain that is not in the package.
    except (DataError, ModuleNotFoundError):
        print(_make(domain, command, argv), end="")
        return 0
    if not cached.is_file():
        print("collecting the options; the next time they come at once …", file=sys.stderr)
        text = _make(domain, command, argv)
        kept = sorted(cached.parent.glob("*.txt"), key=lambda file: file.stat().st_mtime)
        for old in kept[: -KEPT + 1]:
            old.unlink(missing_ok=True)
        with atomic_path(cached) as temporary:
            temporary.write_text(text, encoding="utf-8")
    print(cached.read_text(encoding="utf-8"), end="")
    return 0
