"""Several genomes as one: records are told apart by the tag of their file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from longseq.core.errors import ConfigError, DataError
from longseq.genomics.data.fasta import Genome, resolve_name


class Collection:
    """Genomes that are read like one; their records are named ``tag:record``.

    Args:
        genomes: tag → genome, in order.

    Raises:
        ConfigError: if a tag is empty or has a colon.
    """

    def __init__(self, genomes: Mapping[str, Genome]) -> None:
        for tag in genomes:
            if not tag or ":" in tag:
                raise ConfigError(f"data.tags: {tag!r} must be a name without a colon")
        self.genomes = dict(genomes)
        self._records = {
            f"{tag}:{name}": size
            for tag, genome in self.genomes.items()
            for name, size in genome.records.items()
        }

    def __repr__(self) -> str:
        return f"Collection({', '.join(self.genomes)}: {len(self._records)} records)"

    @property
    def path(self) -> Path:
        """The first genome's file, for messages."""
        return next(iter(self.genomes.values())).path

    @property
    def records(self) -> dict[str, int]:
        """Length in bases of every record, ``tag:record``, in the order of the files; not to be
        changed."""
        return self._records

    def resolve(self, name: str) -> str:
        """Returns the record that a name means: with its tag, or without where only one has it.

        Raises:
            DataError: if there is none, or several.
        """
        if name in self._records:
            return name
        tag, _, record = name.partition(":")
        if record and tag in self.genomes:
            return f"{tag}:{self.genomes[tag].resolve(record)}"
        found = []
        for tag, genome in self.genomes.items():
            try:
                found.append(f"{tag}:{genome.resolve(name)}")
            except DataError:
                continue
        if len(found) > 1:
            raise DataError(f"record {name!r} is in several files", hint=f"give {found[0]}")
        return found[0] if found else resolve_name(name, self._records, self.path)

    def fetch(self, name: str, start: int, end: int, strand: str = "+") -> np.ndarray:
        """See ``Genome.fetch``."""
        genome, record = self._where(name)
        return genome.fetch(record, start, end, strand)

    def fetch_with_mask(
        self, name: str, start: int, end: int, strand: str = "+"
    ) -> tuple[np.ndarray, np.ndarray]:
        """See ``Genome.fetch_with_mask``."""
        genome, record = self._where(name)
        return genome.fetch_with_mask(record, start, end, strand)

    def _where(self, name: str) -> tuple[Genome, str]:
        tag, _, record = self.resolve(name).partition(":")
        return self.genomes[tag], record

    def validate(self) -> None:
        """See ``Genome.validate``."""
        for genome in self.genomes.values():
            genome.validate()

    def checksums(self) -> list[str]:
        """Returns the SHA-256 of every file."""
        return [one for genome in self.genomes.values() for one in genome.checksums()]


def open_genomes(
    paths: Sequence[str | Path], tags: Sequence[str] | None = None
) -> Genome | Collection:
    """Opens one genome, or several as one.

    Args:
        paths: their files.
        tags: a name for each; those of the files without their suffixes if None.

    Raises:
        ConfigError: if there is no file, or tags do not fit them or are not distinct.
        DataError: see ``Genome``.
    """
    if not paths:
        raise ConfigError("data.fasta: at least one file is needed")
    if tags is None:
        tags = [Path(path).name.split(".")[0].replace(":", "_") for path in paths]
        if len(set(tags)) < len(tags):
            raise ConfigError(f"data.fasta: {', '.join(tags)}: give distinct names as data.tags")
    if len(tags) != len(paths) or len(set(tags)) < len(tags):
        raise ConfigError(f"data.tags: {len(paths)} distinct names are needed, got {list(tags)}")
    if len(paths) == 1:
        return Genome(paths[0])
    return Collection({tag: Genome(path) for tag, path in zip(tags, paths)})
