"""Errors that a user can act on: one line that names the file, the record, what is wrong and what
to do."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from pathlib import Path

_BREAKS = re.compile("[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]")  # where str.splitlines cuts


class LongseqError(Exception):
    """Base of every error that the command line prints as one line.

    Attributes:
        status: that the command line exits with.
    """

    status = 2

    def __str__(self) -> str:
        """Returns the message as one line: a name in it, of a file, a record or a weight, may hold
        line breaks."""
        return _BREAKS.sub(lambda one: ascii(one[0])[1:-1], super().__str__())


class ConfigError(LongseqError, ValueError):
    """A wrong hyper-parameter, name or option."""


class ArgumentError(LongseqError, ValueError):
    """A tensor of the wrong shape, dtype or device was passed to an operator."""


class BackendError(LongseqError, RuntimeError):
    """A kernel backend that was asked for by name cannot serve the call."""


def with_article(name: str) -> str:
    """Returns a name behind "a" or "an", by its first letter.

    Args:
        name: of a class.
    """
    return f"an {name}" if name[:1] in "AEIOaeio" else f"a {name}"


class DataError(LongseqError, ValueError):
    """An input file that cannot be used.

    Args:
        message: what is wrong, in plain words.
        path: the file.
        record: the record, line or region in the file.
        hint: what the user can do next.
    """

    def __init__(
        self,
        message: str,
        *,
        path: str | Path | None = None,
        record: object = None,
        hint: str | None = None,
    ) -> None:
        where = str(path) if path is not None else ""
        if record is not None:
            where = f"{where}: {record}" if where else str(record)
        text = f"{where}: {message}" if where else message
        super().__init__(f"{text} ({hint})" if hint else text)
        self.path, self.record, self.hint = path, record, hint


def plain(text: str) -> str:
    """Returns a text that a terminal can show: control characters and bytes of no character, which
    file names may hold, are written as escapes.

    Args:
        text: a message, or a name.
    """
    return "".join(
        one if one.isprintable() or one == "\n" else one.encode("unicode_escape").decode()
        for one in text
    )


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns a suggestion for a misspelt name, or the list of known names.

    Args:
        name: what the user wrote.
        known: the valid names.
    """
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names)}"


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether an error is of memory that could not be had: Python's, NumPy's, torch's on a
    CPU or a GPU, or one of a worker of a data loader.

    Args:
        error: any.
    """
    text = str(error)
    return isinstance(error, MemoryError) or any(
        words in text for words in ("can't allocate memory", "out of memory", "MemoryError")
    )


_OTHERS = {
    "within local rank has zero length": "there are fewer validation or test samples than "
    "processes, and this one has none: take fewer processes (--trainer.devices), or hold out more",
    "Connection closed by peer": "another process of this run has ended; its own message says why",
    "Connection reset by peer": "another process of this run has ended; its own message says why",
}
"""What errors of Lightning and of torch's gloo stand for in a run of several processes."""


def of_processes(error: BaseException) -> str | None:
    """Returns what has gone wrong between the processes of a run, in one line; None if nothing of
    the kind.

    Args:
        error: any.
    """
    if not isinstance(error, RuntimeError):
        return None
    return next((line for words, line in _OTHERS.items() if words in str(error)), None)
