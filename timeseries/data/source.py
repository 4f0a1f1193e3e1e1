"""Where a frame came from: the place of a row in messages, and what the reader understood."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path

from longseq.core.errors import DataError


def say(name: str, value: str) -> str:
    """Returns how an option is given: on the command line, in ``fit``, and from Python.

    Args:
        name: of the option, for example "zone".
        value: for example "Europe/Berlin".
    """
    quoted = shlex.quote(value)
    return f"--{name} {quoted}, --data.{name} {quoted} in fit, {name}={value!r} in Python"


@dataclass
class Source:
    """Where a frame came from, and what was understood of it.

    Args:
        file: for messages.
        first_line: of the file that the first row stands in; 0 where there are no lines.
        notes: sentences for the user, filled while reading.
        european: whether the file separates its columns by semicolons, and so decimals by commas.
        first_row: of the file, where the frame is a piece of it.
    """

    file: Path
    first_line: int = 2
    notes: list[str] = field(default_factory=list)
    european: bool = False
    first_row: int = 0

    def where(self, row: int) -> str:
        """Returns the place of a row."""
        row += self.first_row
        return f"line {row + self.first_line}" if self.first_line else f"row {row}"

    def error(self, text: str, row: int | None = None, hint: str | None = None) -> DataError:
        """Returns an error that names the file, and the row where there is one."""
        record = None if row is None else self.where(row)
        return DataError(text, path=self.file, record=record, hint=hint)
