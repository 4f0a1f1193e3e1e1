"""The scaler, and windows of context and target: pairs of a series and a cutoff, none dropped."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import Dataset

from longseq.timeseries.data.calendar import calendar_features, resolution
from longseq.timeseries.data.panel import CELLS, Panel
from longseq.timeseries.data.protocols import Part

# A deviation below so much of the largest value is the rounding of a file, not a signal.
ROUNDING = 1e-8


def spread(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and deviation of every column of (T, C) without its NaN; the deviation of a
    column that is constant to rounding is 1, and the mean of one without values 0."""
    means, stds = np.zeros(values.shape[1]), np.ones(values.shape[1])
    some = max(1, CELLS // max(1, len(values)))
    for start in range(0, values.shape[1], some):
        part = slice(start, start + some)
        column = values[:, part]
        known = ~np.isnan(column)
        count = np.maximum(known.sum(0), 1)
        filled = np.where(known, column, 0.0)
        mean = filled.sum(0) / count
        largest = np.abs(filled).max(0, initial=0.0)
        # By a power of two, which rounds nothing: squares of 1e-170 are 0.
        power = np.frexp(largest)[1]
        around = np.ldexp(np.where(known, column - mean, 0.0), -power)
        std = np.ldexp(np.sqrt((around**2).sum(0) / count), power)
        means[part], stds[part] = mean, np.where(std > ROUNDING * largest, std, 1.0)
    return means, stds


def window_scales(mean: np.ndarray, std: np.ndarray) -> dict[str, np.ndarray]:
    """Returns what windows hold of the scales of series, float32 (C,): ``mean``, ``unit`` and
    ``zero``, the z-score of 0, which is a number where the others are beyond float32."""
    with np.errstate(over="ignore"):
        found = {"mean": mean, "unit": std, "zero": -mean / std}
        return {name: value.astype(np.float32) for name, value in found.items()}


@dataclass(frozen=True)
class Scaler:
    """z-scores of every series with the mean and standard deviation of the training rows.

    Args:
        ids: names of the series.
        mean: float64 (C,).
        std: float64 (C,), 1 for a series that is constant in training.
        covariates: mean and deviation of every covariate over the training rows of all series, by
            its kind and name ("future:promo").
    """

    ids: tuple[str, ...]
    mean: np.ndarray
    std: np.ndarray
    covariates: dict[str, tuple[float, float]] = field(default_factory=dict)

    @classmethod
    def fit(cls, panel: Panel, train: Part) -> Scaler:
        """Fits on the observed values of the training rows, and on no others."""
        scales: dict[str, tuple[float, float]] = {}
        for kind, names in panel.covariates.names.items():
            for name in names:
                value = getattr(panel.covariates, kind)[name]
                rows = value if kind == "static" else value[train.start : train.end]
                mean, std = spread(rows.reshape(-1, 1))
                scales[f"{kind}:{name}"] = (float(mean[0]), float(std[0]))
        return cls(panel.ids, *spread(panel.values[train.start : train.end]), scales)

    def transform(self, values: np.ndarray) -> np.ndarray:
        """Returns (…, C) values as z-scores."""
        return (values - self.mean) / self.std

    def inverse(self, scaled: np.ndarray) -> np.ndarray:
        """Returns (…, C) z-scores as values."""
        return scaled * self.std + self.mean

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values that travel with a checkpoint."""
        own = {"ids": list(self.ids), "mean": self.mean.tolist(), "std": self.std.tolist()}
        scales = {name: list(pair) for name, pair in self.covariates.items()}
        return {**own, **({"covariates": scales} if scales else {})}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Scaler:
        """Returns the scaler that ``to_dict`` wrote."""
        scales = {key: (a, b) for key, (a, b) in content.get("covariates", {}).items()}
        return cls(
            tuple(content["ids"]), np.array(content["mean"]), np.array(content["std"]), scales
        )


class Windows:
    """Scaled windows of a panel by cutoff.

    A window is a dict of float32 tensors: ``x`` (L, C) the context, ``y`` (h, C) the target, and
    ``x_mark`` (L, F) and ``y_mark`` (h, F) the calendar features of both, which are known
    beforehand; and of bool tensors that say what was observed: ``x_mask`` (L, C), ``y_mask``
    (h, C). Values that were not are carried forward in ``x``, and in ``y`` they mean nothing.
    Windows of single series hold the covariates of the scaler too, 0 where they are not known:
    ``x_cov`` (L, Q + P), those of the future and of the past; ``y_cov`` (h, Q); ``static`` (S,).
    ``mean`` and ``unit`` (C,) are those of the scaler, infinite or 0 where float32 does not hold
    them; ``zero`` (C,) is where 0 lies in z-scores.

    Args:
        panel: the series.
        scaler: fitted on the training rows.
        cutoffs: first target row of every window.
        context: L.
        horizon: h.
        least: rows since a series began that a context needs; L if None. What is shorter than L is
            padded on the left.
    """

    def __init__(
        self,
        panel: Panel,
        scaler: Scaler,
        cutoffs: Sequence[int],
        context: int,
        horizon: int,
        least: int | None = None,
    ) -> None:
        self.cutoffs, self.context, self.horizon = cutoffs, context, horizon
        self.least = context if least is None else least
        values = np.empty(panel.values.shape, np.float32)
        for part, carried in panel.carried_parts():  # copies of all series are what costs memory
            values[:, part] = (carried - scaler.mean[part]) / scaler.std[part]
        self.values = torch.from_numpy(values)
        self.observed = torch.from_numpy(panel.observed)
        self.starts = panel.starts
        self.scaler = scaler
        self._scale = {
            name: torch.from_numpy(value)
            for name, value in window_scales(scaler.mean, scaler.std).items()
        }
        self._future, self._past, self._static = _scaled_covariates(panel, scaler)
        self.marks = torch.from_numpy(calendar_features(panel.ds, resolution(panel.freq)))

    def __len__(self) -> int:
        return len(self.cutoffs)

    @property
    def series(self) -> int:
        """Number of series C."""
        return self.values.shape[1]

    @cached_property
    def pairs(self) -> np.ndarray:
        """Windows of single series, as ``place in cutoffs · C + series``, whole numbers (P,).

        Those whose series has begun ``least`` rows before the cutoff, and of whose targets at least
        one was observed.
        """
        at = np.asarray(self.cutoffs, np.int64)
        seen = np.zeros((len(self.observed) + 1, self.series), np.int32)
        np.cumsum(self.observed.numpy(), axis=0, out=seen[1:])
        begun = self.starts + max(self.least, 1)
        kind = _kind(len(at) * self.series)
        some, found = max(1, CELLS // max(1, self.series)), [np.empty(0, kind)]
        for first in range(0, len(at), some):
            row = at[first : first + some]
            targets = seen[np.minimum(row + self.horizon, len(self.observed))] - seen[row]
            chosen = np.flatnonzero((targets > 0) & (begun[None] <= row[:, None]))
            found.append((first * self.series + chosen).astype(kind))
        return np.concatenate(found)

    def at(self, cutoffs: Sequence[int]) -> Windows:
        """Returns the windows of other cutoffs."""
        other = copy.copy(self)
        other.__dict__.pop("pairs", None)
        other.cutoffs = cutoffs
        return other

    def batch(self, which: Sequence[int]) -> dict[str, Tensor]:
        """Returns windows of all series, stacked into (B, …, C).

        Args:
            which: positions in ``cutoffs``.
        """
        at = torch.tensor([self.cutoffs[i] for i in which])
        return self._gather(at, slice(None))

    def batch_of_pairs(self, pairs: Sequence[int] | np.ndarray) -> dict[str, Tensor]:
        """Returns windows of one series each, stacked into (B, …, 1).

        Args:
            pairs: as in ``pairs``.
        """
        place, series = np.divmod(np.asarray(pairs, np.int64), self.series)
        at = torch.tensor([self.cutoffs[int(i)] for i in place])
        c = torch.from_numpy(series).unsqueeze(1)
        found = self._gather(at, c)
        if not self.scaler.covariates:
            return found
        past, future = _rows(at, self.context, self.horizon)
        near = past.clamp(min=0)
        inside = (past >= 0).unsqueeze(-1)
        x = torch.cat([self._future[near, c], self._past[near, c]], -1) * inside
        y = self._future[future.clamp(max=len(self._future) - 1), c]
        return found | {"x_cov": x, "y_cov": y, "static": self._static[c[:, 0]]}

    def _gather(self, at: Tensor, series: Any) -> dict[str, Tensor]:
        past, future = _rows(at, self.context, self.horizon)
        whole = isinstance(series, slice)
        near = past.clamp(min=0)
        inside = (past >= 0).unsqueeze(-1) if whole else past >= 0
        found = {
            "x": self.values[near, series],
            "y": self.values[future, series],
            "x_mask": self.observed[near, series] & inside,
            "y_mask": self.observed[future, series],
        }
        if not whole:
            found = {name: value.unsqueeze(-1) for name, value in found.items()}
        for key, value in self._scale.items():
            found[key] = value.expand(len(at), -1) if whole else value[series]
        return found | {"x_mark": self.marks[near], "y_mark": self.marks[future]}


def _kind(count: int) -> type[np.signedinteger[Any]]:
    """Returns the kind of whole numbers that counts so far, with no byte more than it takes."""
    return np.int32 if count < 2**31 else np.int64


def _rows(at: Tensor, context: int, horizon: int) -> tuple[Tensor, Tensor]:
    """Returns the rows of contexts (B, L), below 0 before the panel, and of targets (B, h)."""
    return (
        at.unsqueeze(1) + torch.arange(-context, 0),
        at.unsqueeze(1) + torch.arange(horizon),
    )


def _scaled_covariates(panel: Panel, scaler: Scaler) -> tuple[Tensor, Tensor, Tensor]:
    """Returns covariates in z-scores, 0 where unknown: (T, C, Q), (T, C, P) and (C, S)."""
    count = len(panel.ids)

    def stacked(kind: str, empty: tuple[int, ...]) -> Tensor:
        chosen = [name for name in scaler.covariates if name.startswith(f"{kind}:")]
        if not chosen:
            return torch.zeros(empty)
        parts = []
        for name in chosen:
            mean, std = scaler.covariates[name]
            value = getattr(panel.covariates, kind)[name.partition(":")[2]]
            if kind == "past":
                value = pd.DataFrame(value).ffill().to_numpy()
            parts.append(np.nan_to_num((value - mean) / std))
        return torch.from_numpy(np.stack(parts, -1).astype(np.float32))

    rows = len(panel)
    return (
        stacked("future", (rows, count, 0)),
        stacked("past", (rows, count, 0)),
        stacked("static", (count, 0)),
    )


class TrainWindows(Dataset[Any]):
    """``dataset[n]`` is the n-th training batch, a pure function of n: epochs of shuffled windows.

    Args:
        windows: of the training part.
        batch_size: windows per batch; an epoch's last batch is filled from the next epoch's first
            windows.
        seed: of the shuffles.
        rank: of this process.
        world: number of processes.
        pairs: whether a window is one of one series; False for all series at a cutoff.
    """

    def __init__(
        self,
        windows: Windows,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        pairs: bool = False,
    ) -> None:
        self.windows, self.batch_size, self.seed = windows, batch_size, seed
        self.rank, self.world, self.pairs = rank, world, pairs
        self._cached: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.windows.pairs) if self.pairs else len(self.windows)

    def _order(self, epoch: int) -> np.ndarray:
        if self._cached is None or self._cached[0] != epoch:
            generator = np.random.default_rng([self.seed, epoch])
            order = generator.permutation(len(self))
            self._cached = epoch, order.astype(_kind(len(order)))
        return self._cached[1]

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        first = (step * self.world + self.rank) * self.batch_size
        places = (divmod(i, len(self)) for i in range(first, first + self.batch_size))
        chosen = [int(self._order(epoch)[place]) for epoch, place in places]
        if self.pairs:
            return self.windows.batch_of_pairs(self.windows.pairs[chosen])
        return self.windows.batch(chosen)


class EvaluationWindows(Dataset[Any]):
    """Batches that hold every window once, in order; the last is as short as it must be.

    Args:
        windows: of the validation or test part.
        batch_size: windows per batch; a matter of memory, not of the result.
        rank: of this process, which takes every ``world``-th window.
        world: number of processes.
        pairs: whether a window is one of one series; False for all series at a cutoff.
    """

    def __init__(
        self, windows: Windows, batch_size: int, rank: int = 0, world: int = 1, pairs: bool = False
    ) -> None:
        self.windows, self.batch_size, self.pairs = windows, batch_size, pairs
        self._mine = range(rank, len(windows.pairs) if pairs else len(windows), world)

    def __len__(self) -> int:
        return -(-len(self._mine) // self.batch_size)

    def __getitem__(self, place: int) -> dict[str, Tensor]:
        if not 0 <= place < len(self):
            raise IndexError(place)
        start = place * self.batch_size
        mine = self._mine[start : start + self.batch_size]
        if self.pairs:
            return self.windows.batch_of_pairs(self.windows.pairs[np.asarray(mine)])
        return self.windows.batch(mine)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return (self[place] for place in range(len(self)))
