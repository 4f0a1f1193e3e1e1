"""A loader that serves batches by training step, so that a resumed run sees just the batches
left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pickle import PicklingError
from typing import Any, Protocol

import numpy as np
import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from longseq.core.checks import check_positive
from longseq.core.errors import ConfigError


class StepDataset(Protocol):
    """A data set in which ``dataset[n]`` is the whole n-th training batch, a pure function of n."""

    def __getitem__(self, step: int, /) -> Any:
        """Returns batch ``step``."""


class StepLoader:
    """Yields ``dataset[n], dataset[n + 1], …``, n being the number of batches already trained on.

    The position is read from the trainer's own progress when the first batch of an epoch is asked
    for, not when the iterator is made: Lightning makes the iterator early
    (``estimated_stepping_batches`` does so before the checkpoint's progress is restored), and
    worker processes fetch ahead. So the n-th batch of a run is ``dataset[n]``, resumed or not,
    whatever the workers, accumulation or ``limit_train_batches``; with ``overfit_batches`` every
    epoch has the first ones again. With gradient accumulation n counts micro-batches. Under DDP
    each rank gets all the steps: the data set itself takes its rank's share of a batch.

    It has ``state_dict``, which tells Lightning that it can resume in the middle of an epoch.

    Args:
        dataset: indexed by training step.
        steps_per_epoch: batches per epoch.
        trainer: whose progress tells the position; None counts the batches handed out.
        start_step: the first step if there is no trainer.
        num_workers: processes that make batches; 0 makes them in this one.
        pin_memory: copy batches to pinned memory; None does so where CUDA is available.
        prefetch_factor: batches a worker makes ahead.
    """

    def __init__(
        self,
        dataset: StepDataset,
        steps_per_epoch: int,
        trainer: Trainer | None = None,
        start_step: int = 0,
        num_workers: int = 0,
        pin_memory: bool | None = None,
        prefetch_factor: int = 2,
    ) -> None:
        self.dataset, self.trainer = dataset, trainer
        self.steps_per_epoch = check_positive("steps_per_epoch", steps_per_epoch)
        if num_workers < 0 or start_step < 0:
            raise ConfigError(
                f"num_workers and start_step must be ≥ 0, got {num_workers} and {start_step}"
            )
        self.num_workers, self.prefetch_factor = num_workers, prefetch_factor
        self.pin_memory = torch.cuda.is_available() if pin_memory is None else pin_memory
        self._position = start_step

    def __len__(self) -> int:
        return self.steps_per_epoch

    def _steps(self) -> range:
        """Returns the steps left of the current epoch."""
        if self.trainer is None:
            left = self.steps_per_epoch - self._position % self.steps_per_epoch
            return range(self._position, self._position + left)
        progress = self.trainer.fit_loop.epoch_loop.batch_progress
        # `processed` is raised once per trained batch and never reset, unlike `ready` and
        # `completed`, which differ by one between checkpoints written at the end of a batch and at
        # the end of an epoch.
        done: int = progress.total.processed  # type: ignore[attr-defined]
        done_in_epoch = progress.current.ready
        length = min(self.steps_per_epoch, self.trainer.num_training_batches)
        left = max(1, int(length) - done_in_epoch)
        # The same few batches in every epoch.
        if self.trainer.overfit_batches:  # type: ignore[attr-defined]
            done = int(length) - left
        return range(done, done + left)

    def __iter__(self) -> Iterator[Any]:
        steps = self._steps()
        loader: DataLoader[Any] = DataLoader(
            self.dataset,  # type: ignore[arg-type]
            batch_size=None,
            sampler=steps,
            num_workers=self.num_workers,
            pin_memory=self.pin_memory,
            prefetch_factor=self.prefetch_factor if self.num_workers else None,
            # A generator of its own: DataLoader would draw its seed from the stream that dropout
            # uses.
            generator=torch.Generator().manual_seed(steps.start),
        )
        try:
            batches = iter(loader)
        except (AttributeError, TypeError, PicklingError) as error:
            if not self.num_workers:
                raise
            raise ConfigError(
                f"worker processes cannot be given what makes the batches "
                f"({type(self.dataset).__name__}: {error}); set data.num_workers to 0, or use no "
                "local functions, open files or trainers in it"
            ) from error
        for step, batch in zip(steps, batches, strict=True):
            self._position = step + 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Returns the position, for the record: on resuming, the trainer's progress decides."""
        return {"position": self._position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Restores the position where there is no trainer.

        Args:
            state: from ``state_dict``.
        """
        self._position = int(state["position"])


def data_ranks(trainer: Trainer | None) -> tuple[int, int]:
    """Returns the number of this process among those that take samples of their own, and how many
    they are: 0 of 1 where all processes work on one sequence.

    Args:
        trainer: of the run; None without one.
    """
    if trainer is None:
        return 0, 1
    found = getattr(trainer.strategy, "distributed_sampler_kwargs", None)
    return (0, 1) if found is None else (int(found["rank"]), int(found["num_replicas"]))


class EpochBatches:
    """Batches by training step: every epoch has all rows in an order of its own, and every rank
    other rows of it. An epoch's last rows that fill no batch are left out.

    Args:
        rows: numbers of the training rows.
        batch_size: rows per step and rank.
        seed: of the orders.
        make: makes a batch of (row numbers, epoch).
        ranks: this rank and how many there are, of ``data_ranks``.
    """

    def __init__(
        self,
        rows: np.ndarray,
        batch_size: int,
        seed: int,
        make: Callable[[np.ndarray, int], Any],
        ranks: tuple[int, int] = (0, 1),
    ) -> None:
        self.rows, self.seed, self.make, self.ranks = rows, seed, make, ranks
        self.size = min(batch_size * ranks[1], len(rows))
        self.per_epoch = max(1, len(rows) // self.size)

    def __getitem__(self, step: int) -> Any:
        epoch, at = divmod(step, self.per_epoch)
        order = np.random.default_rng([self.seed, epoch]).permutation(self.rows)
        rank, world = self.ranks
        return self.make(order[at * self.size : (at + 1) * self.size][rank::world], epoch)


def step_dataloader(
    dataset: StepDataset,
    start: Trainer | int | None,
    steps_per_epoch: int,
    num_workers: int = 0,
    **kwargs: Any,
) -> StepLoader:
    """Makes a ``StepLoader``; what a data module's ``train_dataloader`` returns.

    Args:
        dataset: indexed by training step.
        start: the trainer (``self.trainer`` in a data module), or the first step.
        steps_per_epoch: batches per epoch.
        num_workers: processes that make batches.
        **kwargs: more of ``StepLoader``'s arguments.
    """
    where = {"start_step": start} if isinstance(start, int) else {"trainer": start}
    return StepLoader(dataset, steps_per_epoch, num_workers=num_workers, **where, **kwargs)
