"""Batches of generated series for the pretraining of the zero-shot forecaster."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from longseq.core.checks import check_positive
from longseq.core.errors import ConfigError
from longseq.core.training.hyper import BaseData
from longseq.core.training.loader import step_dataloader
from longseq.timeseries.data.synthetic import generate

BLOCK = 64
CONTEXTS = (48, 96, 192, 320, 512, 1024, 2048)
_SHARES = (0.20, 0.20, 0.20, 0.12, 0.20, 0.06, 0.02)
_PATCH = 16


def make_batch(seed: int, step: int, size: int) -> dict[str, Any]:
    """Returns batch ``step``, a pure function of its arguments.

    A dict of ``x`` (N, L + 64), NaN where nothing was observed; ``hint`` (N,), a period or 0;
    ``cutoffs``, ends of contexts; ``reach`` (N,), steps ahead that count.

    Args:
        seed: of all batches.
        step: of training.
        size: series; fewer of more than 512 rows.
    """
    rng = np.random.default_rng([seed, step])
    context = int(rng.choice(CONTEXTS, p=_SHARES))
    n = size if context < 1024 else max(16, size * 512 // context // 2)
    x, periods = generate(rng, n, context + BLOCK)
    # Histories begin at different rows.
    start = np.where(rng.random(n) < 0.75, (rng.random(n) ** 0.6 * (context - 10)).astype(int), 0)
    if context > 320:
        start = np.where(rng.random(n) < 0.6, 0, start)
    x[np.arange(context + BLOCK)[None] < start[:, None]] = np.nan
    # The calendar often names the period, sometimes says nothing, and now and then is wrong.
    hint = np.where(rng.random(n) < 0.55, periods, 0)
    hint = np.where(rng.random(n) < 0.08, rng.choice([4, 7, 12, 24], n), hint)
    grid = np.arange(_PATCH, context + 1, _PATCH)
    some = rng.choice(grid[len(grid) // 4 :], min(4, len(grid)) - 1).tolist()
    whole = rng.random(n) < 0.4
    far = np.exp(rng.uniform(np.log(6), np.log(BLOCK), n)).astype(int)
    reach = np.where(whole, BLOCK, np.maximum(6, far))
    return {
        "x": torch.from_numpy(x).float(),
        "hint": torch.from_numpy(hint),
        "cutoffs": sorted({context, *some}),
        "reach": torch.from_numpy(reach),
    }


class _Batches(Dataset[Any]):
    def __init__(self, seed: int, size: int, rank: int, world: int, count: int | None) -> None:
        self.seed, self.size, self.rank, self.world, self.count = seed, size, rank, world, count

    def __len__(self) -> int:
        return self.count or 0

    def __getitem__(self, step: int) -> dict[str, Any]:
        if self.count is not None and not 0 <= step < self.count:
            raise IndexError(step)
        return make_batch(self.seed, step * self.world + self.rank, self.size)


class GeneratedSeries(BaseData):
    """Generated series without end: trends, seasons, Gaussian processes, counts, chaos and more.

    Args:
        batch_size: series a training step.
        steps_per_epoch: batches between two ends of an epoch.
        valid_batches: batches of the validation, the same ones always.
        seed: of the training batches; validation has its own.
        num_workers: processes that make batches.
    """

    def __init__(
        self,
        batch_size: int = 128,
        steps_per_epoch: int = 1000,
        valid_batches: int = 24,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        for name, value in (
            ("batch_size", batch_size),
            ("steps_per_epoch", steps_per_epoch),
            ("valid_batches", valid_batches),
        ):
            check_positive(name, value)
        self.batch_size, self.steps_per_epoch = batch_size, steps_per_epoch
        self.valid_batches, self.seed, self.num_workers = valid_batches, seed, num_workers

    def train_dataloader(self) -> Any:
        """Returns the loader of training batches, which resumes at any step."""
        trainer = self.trainer
        rank, world = (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)
        batches = _Batches(self.seed, self.batch_size, rank, world, None)
        return step_dataloader(batches, trainer, self.steps_per_epoch, self.num_workers)

    def val_dataloader(self) -> Any:
        """Returns the validation batches, of a seed that training does not use."""
        size = max(16, self.batch_size // 2)
        return DataLoader(_Batches(2**32 - 1, size, 0, 1, self.valid_batches), batch_size=None)

    def setup(self, stage: str) -> None:
        """Raises ``ConfigError`` for a test: generated series have none."""
        super().setup(stage)
        if stage == "test":
            raise ConfigError(
                "generated series have no test: score the checkpoint on your own, longseq "
                "timeseries predict FILE --ckpt_path … --cutoffs 3"
            )
