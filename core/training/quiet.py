"""A run's screen without the framework's advertisements."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """Drops advertisements and warnings that the user can do nothing about, while the block
    runs."""
    names = ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed")
    loggers = [logging.getLogger(name) for name in names]
    with warnings.catch_warnings():
        for message in (
            ".*treespec, LeafSpec.*",
            ".*Experiment logs directory .* exists and is not empty.*",
            ".*callbacks used to create the checkpoint need to be provided.*",
            ".*The dirpath has changed from.*",
            ".*Checkpoint directory .* exists and is not empty.*",
            ".*is smaller than the logging interval.*",
            ".*does not have many workers.*",
        ):
            warnings.filterwarnings("ignore", message=message)
        for logger in loggers:
            logger.addFilter(_worth_saying)
        try:
            yield
        finally:
            for logger in loggers:
                logger.removeFilter(_worth_saying)


_NOISE = (
    "Tip:",
    "available: False",
    "TPU available",
    "HPU available",
    "`Trainer.fit` stopped",
    "Seed set",
    "Restoring states from the checkpoint",
    "Loaded model weights from the checkpoint",
    "Detected KeyboardInterrupt",
)


def _worth_saying(record: logging.LogRecord) -> bool:
    """Returns whether a line of Lightning's tells the user something: our own lines have the
    rest."""
    return not any(noise in record.getMessage() for noise in _NOISE)
