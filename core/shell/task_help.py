"""Help of every command of a domain: made once and kept, for making it imports torch or
Lightning."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.metadata
import io
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from longseq.core import plugins
from longseq.core.domain import TASK_COMMANDS, Domain, import_object
from longseq.core.errors import DataError
from longseq.core.files import atomic_path, cache_dir

WHOLE = "--help_all"
KEPT = 64
"""Texts that are kept, the newest."""


def _fingerprint(name: str, home: str, argv: Sequence[str]) -> str:
    """Returns a digest of all that the text depends on: the code, the libraries and the terminal's
    width."""
    parts = [name, *argv, sys.version, str(shutil.get_terminal_size().columns)]
    parts += [importlib.metadata.version(name) for name in ("lightning", "jsonargparse")]
    parts += plugins.fingerprint()
    named = (Path(text.partition("=")[2] or text) for text in argv)
    files = [file for file in named if file.is_file()]  # configurations of the user's own
    for package in ("longseq.core", home):
        module = importlib.import_module(package)
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
    own = domain.commands.get(command)
    if own is not None:
        return _printed(import_object(own.run, ":"), argv)
    if command in ("compare", "models"):
        return _printed(import_object(f"longseq.core.shell.{command}:run", ":"), domain, argv)
    if command == "demo":
        return _printed(import_object("longseq.core.shell.demo:run_demos", ":"), argv, [domain])
    if WHOLE not in argv:
        return str(import_object("longseq.core.shell.short_help:text", ":")(domain, command, argv))
    run = import_object("longseq.core.shell.lightning_cli:run", ":")
    return _printed(run, domain, command, ["--help"])


def _printed(run: Callable[..., object], *args: object) -> str:
    """Returns what a command prints before it exits."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        run(*args)
    return out.getvalue()


def asks_for_help(argv: Sequence[str]) -> bool:
    """Returns whether arguments of a command ask for its help."""
    return any(text in ("-h", "--help", WHOLE) for text in argv)


def show(domain: Domain, command: str, argv: Sequence[str] = ()) -> int:
    """Prints the help of a command, from the cache if it is there.

    Args:
        domain: whose.
        command: any.
        argv: its arguments; with ``--help_all`` every option is shown.

    Returns:
        The exit status.
    """
    if command in domain.commands or command not in TASK_COMMANDS:
        argv = ["--help"]  # whatever else was typed
    name = f"{domain.name}-{command}"
    return show_kept(name, domain.home, argv, lambda: _make(domain, command, argv))


def show_bench(name: str) -> int:
    """Prints the help of a benchmark, as ``show`` does, and returns the exit status."""
    argv = ["--help"]
    run = f"longseq.bench.{name}:run"
    return show_kept(
        f"bench-{name}", "longseq.bench", argv, lambda: _printed(import_object(run, ":"), argv)
    )


def show_kept(name: str, home: str, argv: Sequence[str], make: Callable[[], str]) -> int:
    """Prints a text, from the cache if it is there.

    Args:
        name: of the text, for its file.
        home: package whose code it depends on, beside the core's.
        argv: arguments that it depends on.
        make: returns it.

    Returns:
        The exit status.
    """
    try:
        cached = cache_dir("help") / f"{name}-{_fingerprint(name, home, argv)}.txt"
    # Nowhere to keep it, or a domain that is not in the package.
    except (DataError, ModuleNotFoundError):
        print(make(), end="")
        return 0
    if not cached.is_file():
        print("collecting the options; the next time they come at once …", file=sys.stderr)
        text = make()
        kept = sorted(cached.parent.glob("*.txt"), key=lambda file: file.stat().st_mtime)
        for old in kept[: -KEPT + 1]:
            old.unlink(missing_ok=True)
        with atomic_path(cached) as temporary:
            temporary.write_text(text, encoding="utf-8")
    print(cached.read_text(encoding="utf-8"), end="")
    return 0
