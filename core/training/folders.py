"""A run's folder ``root/name/version_k``: claimed by one run, continued by what resumes it."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.csv_logs import _ExperimentWriter
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from longseq.core.checkpoints.safe import load_checkpoint
from longseq.core.errors import DataError, LongseqError
from longseq.core.files import atomic_path, full_disk, hold_folder, sweep

# What a run writes before its first step.
_HEADS = re.compile(r"events\.out\.tfevents\..*|hparams\.yaml|config\.yaml")


def claim_version(folder: Path) -> int:
    """Makes the next free ``version_k`` of a folder and returns k; no two runs get the same.

    Args:
        folder: of a run's name.

    Raises:
        DataError: if it cannot be written.
    """
    for part in (folder, *folder.parents):
        if part.is_symlink() and not part.exists():
            raise DataError(
                f"cannot be written: is a link to {os.readlink(part)}, which is not there",
                path=part,
                hint="make that folder, or remove the link",
            )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # What a killed run was writing, where nobody resumes it.
        for one in (*folder.glob("version_*"), *folder.glob("version_*/checkpoints")):
            if one.is_dir():
                sweep(str(one))
        texts = [one.name.removeprefix("version_") for one in folder.glob("version_*")]
        number = max((int(text) + 1 for text in texts if text.isdecimal()), default=0)
        while True:
            try:
                (folder / f"version_{number}").mkdir()
                return number
            except FileExistsError:  # another run was quicker
                number += 1
    except OSError as error:
        raise DataError(f"cannot be written: {error.strerror}", path=folder) from error


@contextmanager
def nothing_left(trainer: Trainer) -> Iterator[None]:
    """Removes the folder of a run if the block is refused before a step of it has left anything
    there, and what is empty then, up to the root of all runs.

    Args:
        trainer: of the run.

    Raises:
        DataError: if the disk is full; names the run's folder.
    """
    try:
        yield
    except LongseqError:
        if trainer.is_global_zero and (own := _own_folder(trainer)) is not None:
            names = (own, trainer.default_root_dir)
            folder, root = (Path(one).expanduser().resolve() for one in names)
            above = [one for one in folder.parents if one == root or root in one.parents]
            inside = sorted(folder.rglob("*"), reverse=True)
            files = [one for one in inside if not one.is_dir()]
            begun = trainer.global_step > 0 or any(not _HEADS.match(one.name) for one in files)
            if not above or begun:
                raise
            with suppress(OSError):  # the first that is not empty stays, and all above it
                for one in files:
                    one.unlink()
                for one in (*(one for one in inside if one.is_dir()), folder, *above):
                    one.rmdir()
        raise
    except OSError as error:  # of a log, which loggers write by themselves
        if full := full_disk(error, _own_folder(trainer) or trainer.default_root_dir):
            raise full from error
        raise


def _own_folder(trainer: Trainer) -> str | None:
    """Returns the folder of a run as this process knows it. ``trainer.log_dir`` asks all processes,
    of which the others may have ended by the same error, or not be here at all."""
    first = trainer.loggers[0] if trainer.loggers else None
    return getattr(first, "log_dir", None) or getattr(first, "save_dir", None)


def resumed_folder(
    checkpoint: str | Path | None, root: str | Path, name: str | None
) -> Path | None:
    """Returns the folder ``root/name/version_k`` that a run goes on in: the one whose ``last.ckpt``
    it resumes. From any other checkpoint, or under another name, a run gets a folder of its own.

    Args:
        checkpoint: that is resumed, if one is.
        root: of the new run.
        name: of the new run; None for the checkpoint's.
    """
    if checkpoint is None:
        return None
    file = Path(checkpoint).expanduser().resolve()
    if file.name != "last.ckpt" or file.parent.name != "checkpoints":
        return None
    version = file.parents[1]
    if not version.name.removeprefix("version_").isdecimal():
        return None
    if version.parents[1] != Path(root).expanduser().resolve():
        return None
    return version if name in (None, version.parent.name) else None


def own_checkpoint(root: str | Path, name: str) -> str | None:
    """Returns the ``last.ckpt`` that a run of this name has written last; None if there is none.

    Args:
        root: a domain's output folder.
        name: of the run.
    """
    files = (Path(root).expanduser() / name).glob("version_*/checkpoints/last.ckpt")
    found = sorted(files, key=lambda file: file.stat().st_mtime)
    return str(found[-1]) if found else None


def loggers_of(root: str | Path, name: str, resumed: Path | None = None) -> list[Logger]:
    """Returns a TensorBoard and a CSV logger that share one folder.

    Args:
        root: for example ``outputs/genomics``; "~" is the home folder.
        name: of the run.
        resumed: folder to go on in from its ``last.ckpt``: what was logged after that is dropped.
            None claims the next free ``root/name/version_k`` when it is first asked for.

    Raises:
        DataError: if another run that is alive writes into ``resumed``.
    """
    root = Path(root).expanduser()
    if resumed is None:
        board = _Board(str(root), name=name)
        return [board, _Rows(board)]
    name = resumed.parent.name
    version = int(resumed.name.removeprefix("version_"))
    step = int(load_checkpoint(resumed / "checkpoints/last.ckpt").get("global_step") or 0)
    board = _Board(str(root), name=name, version=version, purge_step=step)
    board.hold(resumed)
    return [board, _Rows(board, step)]


class _Board(TensorBoardLogger):
    """Claims the run's folder and holds it until the run ends."""

    _held: int | None = None

    def _get_next_version(self) -> int:
        if rank_zero_only.rank:  # type: ignore[attr-defined]
            return 0  # only rank 0 writes; the others are told where
        number = claim_version(Path(self.root_dir))
        self.hold(Path(self.root_dir) / f"version_{number}")
        return number

    def hold(self, folder: Path) -> None:
        """Locks a folder until ``finalize`` or this process's end.

        Raises:
            DataError: if another process has locked it.
        """
        if not rank_zero_only.rank:  # type: ignore[attr-defined]
            hint = "wait for it, or give another --name"
            self._held = hold_folder(folder, "another run", hint)

    def finalize(self, status: str) -> None:
        super().finalize(status)
        if self._held is not None:
            os.close(self._held)
            self._held = None


class _Rows(CSVLogger):
    """``metrics.csv`` beside the board's file; a resumed run goes on with its rows.

    Args:
        board: whose folder.
        step: optimiser steps that the resumed checkpoint holds; None for a new run.
    """

    def __init__(self, board: _Board, step: int | None = None) -> None:
        super().__init__(board.save_dir, name=board.name, version=board._version)
        self._board, self._step = board, step

    def _get_next_version(self) -> int:
        return int(self._board.version)

    @property
    def experiment(self) -> _ExperimentWriter:
        if self._experiment is None and not rank_zero_only.rank:  # type: ignore[attr-defined]
            self._experiment = _Writer(self.log_dir, self._step)
        return super().experiment


class _Writer(ExperimentWriter):
    """Keeps the rows of the run so far, where Lightning's would delete them."""

    def __init__(self, log_dir: str, step: int | None) -> None:
        file = Path(log_dir) / self.NAME_METRICS_FILE
        names, rows = _rows_before(file, step) if step is not None and file.is_file() else ([], [])
        super().__init__(log_dir=log_dir)
        if rows:
            with atomic_path(file) as temporary, temporary.open("w", newline="") as stream:
                writer = csv.DictWriter(stream, fieldnames=names)
                writer.writeheader()
                writer.writerows(rows)
            self.metrics_keys = names


def _rows_before(file: Path, step: int) -> tuple[list[str], list[dict[str, Any]]]:
    """Returns the columns and the whole rows of a file of metrics that are of steps before one."""
    with file.open(newline="", encoding="utf-8", errors="replace") as stream:
        reader = csv.DictReader(stream, strict=False)
        names = list(reader.fieldnames or [])
        rows = [
            row
            for row in reader
            if None not in row
            and None not in row.values()
            and (text := row.get("step") or "").isdecimal()
            and int(text) < step
        ]
    return names, rows
