"""The ``longseq`` program: the command line, then an end of the process that unloads nothing."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
import warnings
from typing import NoReturn, TextIO

from longseq.core import plugins, process
from longseq.core.shell.cli import attended

SPINS = 10_000
"""Rounds, some 30 µs, that a thread of a command waits awake for its next share of work."""


def wait_briefly(command: str) -> None:
    """Lets threads that wait for work fall asleep soon, if the environment says nothing of it.

    GNU's OpenMP, which torch brings on Linux, lets them wait awake for a millisecond: where
    another program needs the processor, a training with two threads then takes two to eight times
    as long. The runtime reads its setting once, when torch is imported: call this before.

    Args:
        command: the first word of the command line; measurements and users' own scripts are left
            as they are.
    """
    if command not in ("bench", "run") and "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))


def run() -> NoReturn:
    """Runs the command line and ends the process with its exit status.

    Code from outside (a script of ``longseq run``, a plug-in) may count on the interpreter's own
    end, for a file that it never closes: then the process ends by that.
    """
    # A script of the user's, and whoever asks Python for warnings, has them as Python shows them.
    if not sys.warnoptions and sys.argv[1:2] != ["run"]:
        warnings.showwarning = note
    wait_briefly("".join(sys.argv[1:2]))
    status = attended()
    if sys.argv[1:2] == ["run"] or plugins.ran():
        sys.exit(process.flush() or status)
    leave(status)


def note(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Shows a warning as one line that says what it is about, not where in which package's source
    it was raised; what a later version of a package will do is not the user's business. Arguments
    as of ``warnings.showwarning``."""
    if issubclass(category, FutureWarning | DeprecationWarning | PendingDeprecationWarning):
        return
    with contextlib.suppress(OSError, ValueError):  # a closed stderr
        print(f"note: {' '.join(str(message).split())}", file=file or sys.stderr)


def leave(status: int) -> NoReturn:
    """Ends the process: waits for threads, runs what ``atexit`` was given, flushes, and exits.

    The interpreter's own end also unloads every library, which for torch's CUDA build with
    Lightning takes 1.3 s of CPU time and touches 130 MB of pages that nothing has read before.
    Nothing of a command's result depends on it: files are closed by those who opened them.

    Args:
        status: exit status; instead of 0 what an output stands for that cannot be written to its
            end.
    """
    # What the interpreter itself calls at its end, in its order; neither is promised to stay.
    first, second = getattr(threading, "_shutdown", None), getattr(atexit, "_run_exitfuncs", None)
    if first is None or second is None:
        sys.exit(status)
    first()
    second()
    lost = process.flush()
    status = status or lost
    os._exit(status & 0xFF)


if __name__ == "__main__":
    run()
