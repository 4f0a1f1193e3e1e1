"""The command's process: signals that ask it to end, and standard streams that may be closed."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any, TextIO, cast

from longseq.core.errors import LongseqError

_NAMES = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
ENDING = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))
"""Signals by which schedulers, shells and users end a job: SLURM and PBS send what they are told
to, a closed terminal SIGHUP, a limit of processor time SIGXCPU."""


class Told(KeyboardInterrupt):
    """A signal asked the command to end: what Ctrl-C raises, with the signal's number.

    Args:
        signum: the signal.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


def status_of(stop: KeyboardInterrupt) -> int:
    """Returns the exit status that a shell has for the signal behind an exception."""
    return 128 + int(getattr(stop, "signum", signal.SIGINT))


def _tell(signum: int, frame: FrameType | None) -> None:
    raise Told(signum)


def takes(signum: int) -> bool:
    """Returns whether a signal may be given a handler: one that is ignored stays so (``nohup``, a
    job in the background), and so does one that a script has a use of its own for.

    Args:
        signum: of ``ENDING``.
    """
    now = signal.getsignal(signum)
    if signum in (signal.SIGTERM, signal.SIGINT):
        return now is not signal.SIG_IGN
    return now in (signal.SIG_DFL, _tell)


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Raises ``Told`` where the block gets one of ``ENDING``, so that its temporary files are
    removed; without this such a signal ends the process where it stands. SIGINT is Python's own.
    """
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for one in ENDING:
            if signal.getsignal(one) is signal.SIG_DFL:
                before[one] = signal.signal(one, _tell)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def heed() -> None:
    """Lets a program that starts others and signals them hear what it ignores from its start: a job
    in the background ignores Ctrl-C, one under nohup SIGHUP, and so would what it starts."""
    defaults = {signal.SIGINT: signal.default_int_handler}
    for one in ENDING:
        if signal.getsignal(one) is signal.SIG_IGN:
            signal.signal(one, defaults.get(one, signal.SIG_DFL))


@contextlib.contextmanager
def heard_again() -> Iterator[None]:
    """Puts back what Ctrl-C does: Lightning, where one ends a training, has the process ignore
    every later one, and a notebook or another call in the same process would."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        if ignored and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)


def part_workers() -> None:
    """Gives workers that are forked from now on (of data loaders) a session of their own: what a
    terminal or a scheduler sends to the whole job is for this process alone, which needs them for
    the step at hand, and ends them."""
    if "workers" not in _parted:
        from multiprocessing.util import register_after_fork

        _parted["workers"] = _part
        register_after_fork(_part, lambda _: _part())


def _part() -> None:
    with contextlib.suppress(OSError, AttributeError):
        os.setsid()
    for one in ENDING:
        if callable(signal.getsignal(one)):
            own = signal.default_int_handler if one == signal.SIGINT else signal.SIG_DFL
            signal.signal(one, own)


_parted: dict[str, Any] = {}  # whether it is done; holds what the registry refers to weakly


def say(text: str) -> None:
    """Writes a line to standard error from a signal's handler, which may have interrupted another
    write there; a terminal that is gone is no fault.

    Args:
        text: the line.
    """
    with contextlib.suppress(OSError):
        os.write(2, f"{text}\n".encode())


class ClosedOutput(BrokenPipeError):
    """Whoever read the standard output has closed it: ``longseq … | head``."""


class FullOutput(LongseqError):
    """The standard output cannot be written: a full disk."""


_needed = [True]


def keep_going() -> None:
    """From now on a standard output that cannot be written ends nothing: a training has begun,
    which is worth more than what it prints, and all that it keeps goes into files."""
    _needed[0] = False


class _Raw(io.FileIO):
    """A standard stream's bytes; what cannot be written any more goes nowhere.

    Args:
        number: 1 or 2.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number, "wb", closefd=False)
        self._number = number

    def write(self, data: Any, /) -> Any:
        try:
            return super().write(data)
        except BlockingIOError:
            raise
        except OSError as error:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._number)
            os.close(nowhere)
            if self._number == 1 and _needed[0]:
                if error.errno in (errno.EPIPE, errno.EIO):  # EIO: of a terminal that is gone
                    raise ClosedOutput(error.errno, error.strerror) from None
                raise FullOutput(f"standard output: cannot be written: {error.strerror}") from None
            return memoryview(data).nbytes


def own_streams() -> None:
    """Puts streams into ``sys`` that survive the end of whoever reads them. Standard error never
    fails; standard output as ``keep_going`` says. One that was closed from the start is opened to
    nowhere: the next file that is opened would get its number, and what is printed."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            with contextlib.suppress(OSError):
                os.open(os.devnull, os.O_RDONLY if number == 0 else os.O_WRONLY)  # lowest free
    for number, name in ((1, "stdout"), (2, "stderr")):
        old = cast("TextIO | None", getattr(sys, name))
        if old is not None and not isinstance(old, io.TextIOWrapper):
            continue  # somebody's own
        try:
            raw = _Raw(number)
        except OSError:
            continue
        fresh = io.TextIOWrapper(
            io.BufferedWriter(raw),
            encoding=old.encoding if old else "utf-8",
            errors=old.errors if old else "backslashreplace",
            line_buffering=old is None or old.line_buffering or old.write_through,
        )
        if old is not None:
            with contextlib.suppress(OSError, ValueError):
                old.flush()
        setattr(sys, name, fresh)


def flush() -> int:
    """Writes what standard output still holds and returns the status that its loss stands for: 0,
    141 for a reader that is gone, 2 for a full disk, which is told."""
    status = 0
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except ClosedOutput:
        status = CLOSED
    except (OSError, ValueError, FullOutput) as error:
        status = 2
        with contextlib.suppress(OSError, ValueError):
            print(f"error: {error}", file=sys.stderr)
    with contextlib.suppress(OSError, ValueError):
        if sys.stderr is not None:
            sys.stderr.flush()
    return status


CLOSED = 128 + getattr(signal, "SIGPIPE", 13)
"""Exit status of a command whose output nobody reads any more, as a shell has it."""
