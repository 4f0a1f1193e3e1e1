"""Comparisons that ``longseq vision test`` shows, and that no command makes of options."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, NoReturn

from longseq.core.compare import Comparison, Row
from longseq.core.errors import ConfigError
from longseq.core.training.by_config import Values


class ShownByTest(Comparison):
    """A comparison beside one tested model; made by ``of_test`` alone."""

    shows: ClassVar[str]
    """What it compares, for the refusal of everything else."""

    @classmethod
    def _refuse(cls) -> NoReturn:
        raise ConfigError(f"longseq vision test shows {cls.shows} beside their baselines")

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """It has none: ``test`` shows it."""

    @classmethod
    def of(cls, args: argparse.Namespace) -> Iterator[Comparison]:
        """Refuses."""
        cls._refuse()

    def checkpoint(self, path: Path, name: str, seed: int | None) -> list[Row]:
        """Refuses."""
        self._refuse()

    def values(self, config: Path, seed: int) -> Values:
        """Refuses."""
        self._refuse()
