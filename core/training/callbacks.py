"""Callbacks, loggers and checkpoint writing that every run of the command line gets."""

from __future__ import annotations

import copy
import shlex
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    LearningRateMonitor,
    ModelCheckpoint,
    RichProgressBar,
    WeightAveraging,
)
from lightning.pytorch.core.hooks import DataHooks
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.io import TorchCheckpointIO

from longseq.core import plugins
from longseq.core.checkpoints.foreign import record
from longseq.core.checkpoints.safe import load_checkpoint
from longseq.core.figures import new_figure, save_png
from longseq.core.files import atomic_path
from longseq.core.tables import read_rows
from longseq.core.training.guards import Continuation, StopOnNotFinite, StopOnSignal
from longseq.core.training.task import BaseTask


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint to a temporary name beside the target and renames it; reads without
    executing code.

    Lightning's own writes to the system's temporary folder and *moves*: across file systems a move
    is a copy, and a process killed in the middle leaves a truncated ``last.ckpt``.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        if "://" in str(path) or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        with atomic_path(path) as temporary:
            torch.save(checkpoint, temporary)

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        if "://" in str(path):
            return super().load_checkpoint(path, weights_only=True)
        return load_checkpoint(path)


class StepCheckpoint(ModelCheckpoint):
    """Keeps ``last.ckpt``, written every few optimiser steps and at the end, never amid
    accumulation.

    Args:
        every_n_steps: optimiser steps between writes.
        dirpath: folder; the logger's if None.
    """

    def __init__(self, every_n_steps: int, dirpath: str | None = None) -> None:
        super().__init__(
            dirpath,
            save_last=True,
            save_top_k=0,
            every_n_train_steps=every_n_steps,
            enable_version_counter=False,  # the folder is this run's: what is there is its own
        )
        self._trained: dict[str, Any] | None = None
        self._ended = False

    def _should_skip_saving_checkpoint(self, trainer: Trainer) -> bool:
        # Accumulated gradients are not in a checkpoint: only an optimiser step's end resumes
        # exactly.
        return trainer.fit_loop._should_accumulate() or super()._should_skip_saving_checkpoint(
            trainer
        )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._trained, self._ended = None, False

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        # The averaging callback puts its average over the weights where training ends, before the
        # last checkpoint is written; who goes on must start from what was trained.
        if any(isinstance(one, WeightAveraging) for one in trainer.callbacks):  # type: ignore[attr-defined]
            own = pl_module.state_dict()
            self._trained = {name: copy.deepcopy(value) for name, value in own.items()}

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._ended = True
        if not self._should_skip_saving_checkpoint(trainer):
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if self._ended and self._trained is not None and "current_model_state" in checkpoint:
            checkpoint["current_model_state"] = self._trained

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        for logger in trainer.loggers:
            logger.save()  # a run that is killed has logged what its checkpoint holds
        super()._save_checkpoint(trainer, filepath)


class BestCheckpoint(ModelCheckpoint):
    """Keeps ``best.ckpt``, over all attempts of a run.

    Args:
        monitor: metric to be minimised.
    """

    def __init__(self, monitor: str) -> None:
        super().__init__(
            filename="best",
            monitor=monitor,
            save_on_train_epoch_end=False,
            enable_version_counter=False,
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes the best score from the file that holds it: it may be younger than ``last.ckpt``,
        and its folder may have been moved."""
        path = Path(self.dirpath or ".") / f"{self.filename}{self.FILE_EXTENSION}"
        if not path.is_file():
            return  # a run in another folder has its own best
        own = load_checkpoint(path).get("callbacks", {}).get(self.state_key)
        if isinstance(own, dict) and isinstance(score := own.get("current_score"), torch.Tensor):
            self.best_model_path = self.kth_best_model_path = str(path)
            self.best_model_score = self.kth_value = score
            self.best_k_models = {str(path): score}


class Throughput(Callback):
    """Logs ``train/<unit>_per_s``: bases, windows or images per second, validation excluded."""

    def __init__(self) -> None:
        self._units, self._seconds, self._start = 0, 0.0, 0.0

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._start = self._start or time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.perf_counter()
        assert isinstance(pl_module, BaseTask)
        self._units += pl_module.count_units(batch)
        self._seconds += now - self._start
        self._start = now  # from here on: the next batch's loading time counts too
        is_last = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        if is_last or (batch_idx + 1) % max(1, trainer.log_every_n_steps) == 0:  # type: ignore[attr-defined]
            rate = self._units * trainer.world_size / max(self._seconds, 1e-9)
            pl_module.log(rate_name(pl_module), rate, prog_bar=True, batch_size=1)
            self._units, self._seconds = 0, 0.0

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start = 0.0


def rate_name(task: LightningModule) -> str:
    """Returns the name under which a task's training speed is logged."""
    return f"train/{getattr(task, 'unit', 'samples')}_per_s"


class Screen(Callback):
    """Says before training how large the model is, and after it what was reached and what to type
    next.

    Args:
        command: of the domain, such as "longseq genomics"; without one no next command is shown.
    """

    def __init__(self, command: str | None = None) -> None:
        self.command, self._trains = command, False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._trains = True  # where there is something left to do

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            copies = tuple(f"{name}." for name in getattr(pl_module, "copies", ()))
            own = [
                p
                for name, p in pl_module.named_parameters()
                if not name.startswith(copies or ("\0",))
            ]
            trained = sum(p.numel() for p in own if p.requires_grad)
            fixed = sum(p.numel() for p in own) - trained
            rest = f" and {fixed:,} fixed" if fixed else ""
            where = f"{trainer.world_size} × {trainer.strategy.root_device}"
            print(
                f"{type(pl_module).__name__}: {trained:,} parameters{rest}, on {where}",
                file=sys.stderr,
            )

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if not self._trains:
            print(
                f"note: nothing is trained: {trainer.global_step} steps are done, which is all "
                "that was asked for (trainer.max_steps, max_epochs)",
                file=sys.stderr,
            )
        rows = [
            (n, float(v))
            for n, v in sorted(trainer.callback_metrics.items())
            if n.startswith("val/")
        ]
        if rows:
            print(f"validation at the end{listing(rows)}", file=sys.stderr)
        kept = [c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)]
        best = next((c for c in kept if c.best_model_path), None)
        last = next((c.last_model_path for c in kept if c.last_model_path), None)
        if best is not None and best.best_model_score is not None:
            score = f"{best.monitor} {float(best.best_model_score):.4f}"
            print(f"best checkpoint ({score}): {_shortest(best.best_model_path)}", file=sys.stderr)
        path = best.best_model_path if best is not None else last
        data = getattr(trainer, "datamodule", None)
        if data is not None and type(data).test_dataloader is DataHooks.test_dataloader:
            return  # there is nothing to test on
        if path and self.command is not None:
            needed = record(pl_module, pl_module.hparams)["modules"]
            say_next(f"{self.command} test", path, [m for m in needed if not plugins.is_allowed(m)])


def listing(rows: Iterable[tuple[str, float]], form: str = ".4f") -> str:
    """Returns one line per name and value, to stand below a title."""
    rows = list(rows)
    width = max((len(name) for name, _ in rows), default=0)
    return "".join(f"\n  {name:<{width}}  {value:{form}}" for name, value in rows)


def say_next(command: str, checkpoint: str, modules: Sequence[str] = ()) -> None:
    """Prints the command to type next.

    Args:
        command: for example "longseq genomics test".
        checkpoint: for its ``--ckpt_path``.
        modules: from outside that it needs beside those that were named.
    """
    modules = [*plugins.named(), *modules]
    named = f" {plugins.OPTION} {','.join(modules)}" if modules else ""
    path = shlex.quote(_shortest(checkpoint))
    print(f"next: {command}{named} --ckpt_path {path}", file=sys.stderr)


def _shortest(path: str) -> str:
    """Returns a path relative to the current folder where it lies in it."""
    full, here = Path(path).absolute(), Path.cwd()
    return str(full.relative_to(here)) if full.is_relative_to(here) else str(full)


class LossCurve(Callback):
    """Draws ``loss_curve.png`` from the CSV logger's metrics when training ends."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        loggers = [logger for logger in trainer.loggers if isinstance(logger, CSVLogger)]
        if not loggers or not trainer.is_global_zero:
            return
        loggers[0].save()
        metrics = Path(loggers[0].log_dir) / "metrics.csv"
        if metrics.is_file():
            draw_loss_curve(metrics, metrics.with_name("loss_curve.png"))


def draw_loss_curve(metrics: Path, image: Path) -> None:
    """Draws training and validation loss over steps.

    Args:
        metrics: the CSV logger's file.
        image: PNG to write; untouched if no loss was logged.
    """
    rows = read_rows(metrics)
    curves = {
        name: [(int(row["step"]), float(row[name])) for row in rows if row.get(name)]
        for name in ("train/loss", "val/loss")
    }
    if not any(curves.values()):
        return
    figure = new_figure(6, 4)
    axes = figure.add_subplot()
    for name, points in curves.items():
        if points:
            marker = "o" if name.startswith("val") or len(points) == 1 else None
            axes.plot([x for x, _ in points], [y for _, y in points], marker=marker, label=name)
    axes.set(xlabel="optimiser step", ylabel="loss")
    axes.legend()
    save_png(figure, image)


class StepLog(Callback):
    """A plain progress line on stderr every few seconds, for logs and pipes where a progress bar is
    noise.

    Args:
        seconds: between lines.
    """

    def __init__(self, seconds: float = 10.0) -> None:
        self.seconds, self._last, self._said = seconds, 0.0, ""

    def _line(self, trainer: Trainer, force: bool = False) -> None:
        now = time.monotonic()
        if not trainer.is_global_zero or (not force and now - self._last < self.seconds):
            return
        self._last = now
        total = trainer.estimated_stepping_batches
        of = f"/{int(total)}" if total != float("inf") else ""
        names = ("train/loss", "val/loss", rate_name(trainer.lightning_module))
        logged = {
            name: float(trainer.callback_metrics[name])
            for name in names
            if name in trainer.callback_metrics
        }
        text = "  ".join(
            f"{name} {value:,.0f}" if "_per_s" in name else f"{name} {value:.4g}"
            for name, value in logged.items()
        )
        line = f"step {trainer.global_step}{of}  {text}"
        if line != self._said:  # validation may have ended at the training's last step
            print(line, file=sys.stderr, flush=True)
        self._said = line

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        self._line(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking and trainer.state.fn == "fit":
            self._line(trainer, force=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._line(trainer, force=True)


def progress_bar() -> Callback:
    """Returns a progress bar on stderr, which leaves stdout to results."""
    return RichProgressBar(console_kwargs={"stderr": True})


def default_callbacks(
    every_n_steps: int = 200,
    monitor: str | None = "val/loss",
    bar: bool | None = None,
    command: str | None = None,
) -> list[Callback]:
    """Returns what every ``fit`` gets: progress, ``last.ckpt`` and ``best.ckpt``, rates,
    throughput.

    Args:
        every_n_steps: optimiser steps between writes of ``last.ckpt``.
        monitor: metric to be minimised by ``best.ckpt``; None keeps only ``last.ckpt``.
        bar: True for a progress bar, False for plain lines, None for a bar where stderr is a
            terminal.
        command: of the domain, for what to type next.
    """
    bar = sys.stderr.isatty() if bar is None else bar
    return [
        progress_bar() if bar else StepLog(),
        Continuation(),
        StopOnNotFinite(),
        Throughput(),
        LearningRateMonitor(logging_interval="step"),
        *([BestCheckpoint(monitor)] if monitor else []),
        StepCheckpoint(every_n_steps),
        LossCurve(),
        Screen(command),
        StopOnSignal(),
    ]
