"""The scaler, and windows of context and target: every cutoff, no last batch dropped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from longseq.timeseries.data.calendar import calendar_features, resolution
from longseq.timeseries.data.frames import Panel
from longseq.timeseries.data.protocols import Part


@dataclass(frozen=True)
class Scaler:
    """z-scores of every series with the mean and standard deviation of the training rows.

    Args:
        ids: names of the series.
        mean: float64 (C,).
        std: float64 (C,), 1 for a series that is constant in training.
    """

    ids: tuple[str, ...]
    mean: np.ndarray
    std: np.ndarray

    @classmethod
    def fit(cls, panel: Panel, train: Part) -> Scaler:
        """Fits on the training rows, and on no other."""
        rows = panel.values[train.start : train.end]
        std = rows.std(axis=0)
        return cls(panel.ids, rows.mean(axis=0), np.where(std > 0, std, 1.0))

    def transform(self, values: np.ndarray) -> np.ndarray:
        """Returns (…, C) values as z-scores."""
        return (values - self.mean) / self.std

    def inverse(self, scaled: np.ndarray) -> np.ndarray:
        """Returns (…, C) z-scores as values."""
        return scaled * self.std + self.mean

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values that travel with a checkpoint."""
        return {"ids": list(self.ids), "mean": self.mean.tolist(), "std": self.std.tolist()}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Scaler:
        """Returns the scaler that ``to_dict`` wrote."""
        return cls(tuple(content["ids"]), np.array(content["mean"]), np.array(content["std"]))


class Windows:
    """Scaled windows of a panel by cutoff.

    A window is a dict of float32 tensors: ``x`` (L, C) the context, ``y`` (h, C) the target, and
    ``x_mark`` (L, F) and ``y_mark`` (h, F) the calendar features of both, which are known
    beforehand.

    Args:
        panel: the series.
        scaler: fitted on the training rows.
        cutoffs: first target row of every window.
        context: L.
        horizon: h.
    """

    def __init__(
        self, panel: Panel, scaler: Scaler, cutoffs: Sequence[int], context: int, horizon: int
    ) -> None:
        self.cutoffs, self.context, self.horizon = cutoffs, context, horizon
        self.values = torch.from_numpy(scaler.transform(panel.values).astype(np.float32))
        marks = calendar_features(panel.ds, resolution(panel.freq))
        self.marks = torch.from_numpy(marks)

    def __len__(self) -> int:
        return len(self.cutoffs)

    def batch(self, which: Sequence[int]) -> dict[str, Tensor]:
        """Returns windows stacked into (B, …).

        Args:
            which: positions in ``cutoffs``.
        """
        at = torch.tensor([self.cutoffs[i] for i in which]).unsqueeze(1)
        past, next_ = at + torch.arange(-self.context, 0), at + torch.arange(self.horizon)
        return {
            "x": self.values[past],
            "y": self.values[next_],
            "x_mark": self.marks[past],
            "y_mark": self.marks[next_],
        }


class TrainWindows(Dataset[Any]):
    """``dataset[n]`` is the n-th training batch, a pure function of n: epochs of shuffled windows.

    Args:
        windows: of the training part.
        batch_size: windows a batch; an epoch's last batch is filled from the next epoch's first
            windows.
        seed: of the shuffles.
        rank: of this process.
        world: number of processes.
    """

    def __init__(
        self, windows: Windows, batch_size: int, seed: int, rank: int = 0, world: int = 1
    ) -> None:
        self.windows, self.batch_size, self.seed = windows, batch_size, seed
        self.rank, self.world = rank, world
        self._cached: tuple[int, np.ndarray] | None = None

    def _order(self, epoch: int) -> np.ndarray:
        if self._cached is None or self._cached[0] != epoch:
            generator = np.random.default_rng([self.seed, epoch])
            self._cached = epoch, generator.permutation(len(self.windows))
        return self._cached[1]

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        first = (step * self.world + self.rank) * self.batch_size
        places = (divmod(i, len(self.windows)) for i in range(first, first + self.batch_size))
        return self.windows.batch([int(self._order(epoch)[place]) for epoch, place in places])


class EvaluationWindows(Dataset[Any]):
    """Batches that hold every window once, in order; the last is as short as it must be.

    Args:
        windows: of the validation or test part.
        batch_size: windows a batch; a matter of memory, not of the result.
        rank: of this process, which takes every ``world``-th window.
        world: number of processes.
    """

    def __init__(self, windows: Windows, batch_size: int, rank: int = 0, world: int = 1) -> None:
        self.windows, self.batch_size = windows, batch_size
        self._mine = range(rank, len(windows), world)

    def __len__(self) -> int:
        return -(-len(self._mine) // self.batch_size)

    def __getitem__(self, place: int) -> dict[str, Tensor]:
        if not 0 <= place < len(self):
            raise IndexError(place)
        start = place * self.batch_size
        return self.windows.batch(self._mine[start : start + self.batch_size])

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return (self[place] for place in range(len(self)))
