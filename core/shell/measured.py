"""What ``validate`` and ``test`` print: what was measured, beside baselines after a whole test."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from lightning.fabric.utilities.data import sized_len
from lightning.pytorch import Trainer

from longseq.core.compare import Comparison, report_test
from longseq.core.domain import Domain
from longseq.core.training.callbacks import listing, say_next
from longseq.core.training.task import BaseTask

Measured = Sequence[Mapping[str, float]]


def show(trainer: Trainer, command: str, checkpoint: str | Path | None, found: Measured) -> None:
    """Prints what was measured, of each loader.

    Args:
        trainer: that measured it.
        command: "validate" or "test".
        checkpoint: that was measured.
        found: values by name, of each loader.
    """
    if trainer.is_global_zero:
        for values in found:
            print(f"{command} of {checkpoint}{listing(values.items(), '.6g')}")


def part_of_test(trainer: Trainer) -> str | None:
    """Returns how much of the test data a limit has let through, in words, or None for all.

    Args:
        trainer: after its test.
    """
    loaders = trainer.test_dataloaders
    loaders = loaders if isinstance(loaders, (list, tuple)) else [loaders]
    limits = trainer.num_test_batches
    for loader, taken in zip(loaders, limits if isinstance(limits, list) else [limits]):
        batches = sized_len(loader)  # None for a stream
        if batches is not None and taken < batches:
            return f"{taken:,} of {batches:,} batches of the test data were taken"
    return None


def show_test(
    trainer: Trainer,
    beside: Comparison,
    task: BaseTask,
    found: Measured,
    checkpoint: str | Path | None,
) -> None:
    """Prints the score beside the baselines, or without them where they saw more data than it.

    Args:
        trainer: after its test.
        beside: the domain's comparison.
        task: that was tested.
        found: values by name, of each loader.
        checkpoint: that was tested.
    """
    cut = part_of_test(trainer)
    if cut:
        show(trainer, "test", checkpoint, found)
        print(f"note: {cut}; baselines stand beside a test of all of it", file=sys.stderr)
        return
    metrics = {name.removeprefix("test/"): value for name, value in found[0].items()}
    report_test(beside, task, metrics)
    rest = ", ".join(f"{name} {value:.6g}" for name, value in found[0].items())
    print(f"all that was measured: {rest}")


def say_predict(domain: Domain, words: Sequence[str] | None, checkpoint: str) -> None:
    """Prints the call of ``predict`` that comes after a test, as it runs.

    Args:
        domain: of the checkpoint.
        words: that ``predict`` needs beside it; None where only the user knows them.
        checkpoint: that was tested.
    """
    command = f"longseq {domain.name} predict"
    if words is None and "predict" in domain.commands:
        print(f"{command} --help says how to predict by it", file=sys.stderr)
    else:
        say_next(shlex.join([*command.split(), *(words or ())]), checkpoint)
