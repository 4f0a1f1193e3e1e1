"""Samples that ship with a domain's package: names and paths; sources and licences stand in
SOURCE.md."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path

from longseq.core.errors import ConfigError, did_you_mean


class Samples:
    """The packaged samples of a domain, in ``<domain>/samples``.

    Args:
        domain: the domain's name.
        files: a sample's name → its file (or folder) name; each at most 3 MB, with its source and
            licence in ``<domain>/samples/SOURCE.md``.
    """

    def __init__(self, domain: str, files: Mapping[str, str]) -> None:
        self.domain = domain
        self.files = dict(files)

    def names(self) -> list[str]:
        """Returns the names of the samples."""
        return sorted(self.files)

    def path(self, name: str) -> Path:
        """Returns the path of a sample.

        Args:
            name: a sample's name or its file name.

        Raises:
            ConfigError: if there is no such sample, with the nearest name.
        """
        file = self.files.get(name, name)
        if file not in self.files.values():
            raise ConfigError(
                f"no packaged {self.domain} sample {name!r}; {did_you_mean(name, self.files)}"
            )
        package = importlib.import_module(f"longseq.{self.domain}")
        for folder in package.__path__:
            found = Path(folder) / "samples" / file
            if found.exists():
                return found
        raise ConfigError(f"the packaged {self.domain} sample {file} is missing: reinstall longseq")
