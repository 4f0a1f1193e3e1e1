"""Tests in a forked process, which takes the imports of its parent along, with a limit of processor
time: what other work there is on the machine changes no answer."""

from __future__ import annotations

import contextlib
import importlib
import os
import resource
import signal
import time
from collections.abc import Sequence
from pathlib import Path

SECONDS, IDLE = 60, 120
"""Processor time that the tests may take, and how long they may take none at all."""


def preload(modules: Sequence[str]) -> None:
    """Imports what is not ours once, for all that are forked.

    Args:
        modules: names.
    """
    import pytest  # noqa: F401

    for name in modules:
        # Some exist only after others have made them: what fails here is imported by the tests.
        with contextlib.suppress(Exception):
            importlib.import_module(name)


def _busy(session: int) -> tuple[float, bool]:
    """Returns the processor seconds of all processes of a session, and whether one is stopped."""
    total, stopped = 0, False
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            values = path.read_text().rsplit(")", 1)[1].split()
            if int(values[3]) == session:
                total += sum(map(int, values[11:15]))
                stopped |= values[0] in "Tt"
    return total / os.sysconf("SC_CLK_TCK"), stopped


def _wait(child: int, idle: float) -> int | None:
    """Returns the exit status of a child; None if it does nothing any more.

    Time counts only as long as this process runs itself and the child is not stopped from outside.
    """
    last, quiet = 0.0, 0.0
    while True:
        for _ in range(50):
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.02)
            quiet += 0.02
        taken, stopped = _busy(child)
        if taken != last or stopped:
            last, quiet = taken, 0.0
        if quiet > idle:
            return None


def run_tests(tests: Sequence[str], log: Path, seconds: int = SECONDS, idle: float = IDLE) -> str:
    """Runs tests in a forked process and returns what became of the mutant: "killed", "survived" or
    "out of time", which counts as killed.

    Args:
        tests: of pytest.
        log: where their output goes.
        seconds: of processor time.
        idle: seconds without any.
    """
    child = os.fork()
    if not child:
        try:
            os.setsid()
            out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(out, 1)
            os.dup2(out, 2)
            resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
            import pytest

            options = ["-x", "-p", "no:cacheprovider", "-p", "no:xdist"]
            os._exit(int(pytest.main([*options, *tests])))
        finally:
            os._exit(70)
    ended = _wait(child, idle)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # what the tests may have started
    if ended is None:
        os.waitpid(child, 0)
    if ended in (None, -signal.SIGXCPU):
        return "out of time"
    return "survived" if ended == 0 else "killed"
