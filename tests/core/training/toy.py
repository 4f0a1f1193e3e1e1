"""A toy task and data module with dropout, and ``fit`` to train it, also in processes to be
killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import nn
from torch.utils.data import DataLoader
from torchmetrics import MeanSquaredError

from longseq.core.training.callbacks import AtomicCheckpointIO, StepCheckpoint
from longseq.core.training.hyper import BaseData
from longseq.core.training.loader import step_dataloader
from longseq.core.training.task import BaseTask


class ToySteps:
    """Batch n is a pure function of n: (4, 6, 3) inputs and their shifted cumulative mean."""

    def __init__(self, seed: int = 0) -> None:
        self.seed, self.seen = seed, []

    def __getitem__(self, step: int) -> dict[str, torch.Tensor]:
        self.seen.append(step)
        generator = torch.Generator().manual_seed(1000 * self.seed + step)
        x = torch.randn(4, 6, 3, generator=generator)
        return {"input_ids": x, "step": torch.tensor([step])}


class ToyTask(BaseTask):
    """A GRU with dropout that predicts a running mean.

    Args:
        width: of the GRU.
        dropout: probability.
        lr: learning rate.
        warmup_steps: of the schedule.
    """

    def __init__(
        self, width: int = 4, dropout: float = 0.3, lr: float = 1e-2, warmup_steps: int = 2
    ) -> None:
        super().__init__(lr=lr, warmup_steps=warmup_steps, total_steps=40)
        self.gru = nn.GRU(3, width, batch_first=True)
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(width, 3)
        self.trained: list[int] = []

    def make_metrics(self) -> dict[str, Any]:
        return {"mse": MeanSquaredError()}

    def compute(self, batch: dict[str, torch.Tensor]) -> dict[str, Any]:
        x = batch["input_ids"]
        if self.training:
            self.trained += batch["step"].tolist()
        y = self.head(self.drop(self.gru(x)[0]))
        target = x.cumsum(1) / torch.arange(1, x.shape[1] + 1).view(1, -1, 1)
        return {
            "loss": (y - target).square().mean(),
            "count": x.shape[0],
            "preds": y,
            "target": target,
        }

    def predict_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        return self.head(self.gru(batch["input_ids"])[0])


class ToyData(BaseData):
    """Batches by step, and a validation loader that draws random numbers from the global generator.

    Args:
        seed: of the data.
        steps_per_epoch: batches per epoch.
        num_workers: of the training loader.
    """

    def __init__(self, seed: int = 0, steps_per_epoch: int = 5, num_workers: int = 0) -> None:
        super().__init__()
        self.seed, self.steps_per_epoch, self.num_workers = seed, steps_per_epoch, num_workers

    def train_dataloader(self) -> Any:
        return step_dataloader(
            ToySteps(self.seed), self.trainer, self.steps_per_epoch, self.num_workers
        )

    def val_dataloader(self) -> DataLoader[Any]:
        steps = ToySteps(self.seed + 77)
        return DataLoader([{k: v[0] for k, v in steps[i].items()} for i in range(4)], batch_size=2)

    test_dataloader = predict_dataloader = val_dataloader


class KillAt(Callback):
    """Kills the process with signal 9 after so many batches.

    Args:
        batches: number of trained batches.
    """

    def __init__(self, batches: int) -> None:
        self.batches = batches

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.fit_loop.epoch_loop.batch_progress.total.ready >= self.batches:
            os.kill(os.getpid(), signal.SIGKILL)


def fit(
    folder: str,
    steps: int = 12,
    every: int = 3,
    kill_at: int | None = None,
    resume: bool = False,
    workers: int = 0,
    accumulate: int = 1,
    max_epochs: int | None = None,
    out: str | None = None,
) -> ToyTask:
    """Trains the toy with a checkpoint every few steps, and writes its weights to ``out``.

    Args:
        folder: for ``last.ckpt``.
        steps: optimiser steps, if ``max_epochs`` is None.
        every: optimiser steps between checkpoints.
        kill_at: batches after which the process is killed.
        resume: from ``last.ckpt``.
        workers: of the loader.
        accumulate: batches an optimiser step.
        max_epochs: epochs, in place of steps.
        out: file for the weights.
    """
    torch.set_num_threads(1)
    torch.manual_seed(5)
    task, data = ToyTask(), ToyData(num_workers=workers)
    callbacks: list[Callback] = [StepCheckpoint(every, dirpath=folder)]
    if kill_at is not None:
        callbacks.append(KillAt(kill_at))
    trainer = Trainer(
        max_steps=steps if max_epochs is None else -1,
        max_epochs=-1 if max_epochs is None else max_epochs,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=callbacks,
        accumulate_grad_batches=accumulate,
        use_distributed_sampler=False,
        num_sanity_val_steps=1,
        plugins=[AtomicCheckpointIO()],
    )
    trainer.fit(task, data, ckpt_path=str(Path(folder) / "last.ckpt") if resume else None)
    if out is not None:
        state = {
            "weights": task.state_dict(),
            "trained": task.trained,
            "epoch": trainer.current_epoch,
        }
        torch.save({**state, "optimizer": trainer.optimizers[0].state_dict()["state"]}, out)
    return task


def demo(argv: list[str]) -> int:
    """The domain's demo.

    Args:
        argv: printed.
    """
    print("demo", *argv)
    return 0


if __name__ == "__kill__":
    # Of the loader's workers; the parent is a forkserver.
    multiprocessing.set_start_method("fork", force=True)
    fit(**ARGS)  # type: ignore[name-defined]  # noqa: F821
