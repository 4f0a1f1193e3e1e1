"""File formats from outside: readers that a plug-in adds to a domain, by the file's suffix."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from longseq.core import plugins
from longseq.core.errors import ConfigError, DataError
from longseq.core.registry import Registry

R = TypeVar("R", bound=Callable[..., Any])


class Formats(Registry[R]):
    """Readers of one domain's files by suffix; they come before the domain's own.

    Args:
        kind: of file, for messages: "table", "image", "sound".
    """

    def add(self, name: str, thing: R) -> None:
        """Adds a reader.

        Args:
            name: the suffix, with its dot: ".jsonl", ".ome.zarr".
            thing: the reader; what it takes and returns is the domain's.

        Raises:
            ConfigError: if that is no suffix, or the suffix has another reader.
        """
        if not name.startswith(".") or len(name) < 2 or "/" in name:
            raise ConfigError(f"{name!r} is no suffix of files; give it with its dot: '.jsonl'")
        super().add(name.lower(), thing)

    def suffix_of(self, name: Any) -> str | None:
        """Returns the longest registered suffix that a file's name ends with; None if none does.

        Args:
            name: path, or name of an archive's member.
        """
        plugins.load_installed()
        last = Path(str(name)).name.lower()
        return max((one for one in self if last.endswith(one)), key=len, default=None)

    def read(self, name: Any, *args: Any) -> Any:
        """Returns what the reader of a file makes of it.

        Args:
            name: the file's path, whose suffix is registered.
            *args: of the reader.

        Raises:
            DataError: as ``guard``.
        """
        suffix = self.suffix_of(name)
        assert suffix is not None
        with self.guard(name):
            return self[suffix](*args)

    @contextmanager
    def guard(self, name: Any) -> Iterator[None]:
        """Runs a reader's code; what a generator raises comes only as it is read.

        Args:
            name: the file's path, whose suffix is registered.

        Raises:
            DataError: that of the reader as it is; anything else as one line with the file's name
                and the place in the reader.
        """
        try:
            yield
        except (DataError, MemoryError):
            raise
        except (Exception, SystemExit) as error:  # the plug-in's code may raise anything
            suffix = self.suffix_of(name)
            raise DataError(
                f"the reader of {suffix} files failed: {plugins.why(error)}", path=name
            ) from error

    def identity(self, name: Any) -> str:
        """Returns what tells one version of a file's reader from another, for keys of caches.

        Args:
            name: the file's path; of no registered suffix, "".
        """
        suffix = self.suffix_of(name)
        if suffix is None:
            return ""
        reader: Any = self[suffix]
        module = sys.modules.get(reader.__module__)
        source = getattr(module, "__file__", None)
        changed = os.stat(source).st_mtime_ns if source and os.path.exists(source) else 0
        return f"{reader.__module__}.{reader.__qualname__}\0{changed}"
