"""Windows of series of any lengths that lie end to end, with no axis of all series' rows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from longseq.timeseries.data.long_file import Piece
from longseq.timeseries.data.windows import ROUNDING, window_scales


@dataclass(frozen=True)
class Ragged:
    """Series from their first to their last value, end to end.

    Args:
        values: float64 (N,), NaN where missing within a series.
        starts: row of the axis on which every series begins (C,).
        lengths: rows of every series (C,); 0 for one without values.
    """

    values: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray

    @classmethod
    def of(cls, piece: Piece, rows: np.ndarray) -> Ragged:
        """Returns the series of a piece.

        Args:
            piece: of a long file.
            rows: of the axis, of every row of the piece (R,).
        """
        seen, count = ~np.isnan(piece.values), len(piece.names)
        codes, rows, values = piece.codes[seen], rows[seen], piece.values[seen]
        starts, ends = np.zeros(count, np.int64), np.zeros(count, np.int64)
        starts[codes[::-1]], ends[codes] = rows[::-1], rows + 1
        lengths = ends - starts
        bounds = np.concatenate([[0], np.cumsum(lengths)])
        flat = np.full(bounds[-1], np.nan)
        flat[bounds[codes] + rows - starts[codes]] = values
        return cls(flat, starts, lengths)

    @classmethod
    def joined(cls, parts: list[Ragged]) -> Ragged:
        """Returns the series of all parts."""
        return cls(
            *(
                np.concatenate([getattr(part, name) for part in parts])
                for name in ("values", "starts", "lengths")
            )
        )

    @cached_property
    def bounds(self) -> np.ndarray:
        """First value of every series, and one past the last value (C + 1,)."""
        return np.concatenate([[0], np.cumsum(self.lengths)])

    def scales(self, held: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns mean and deviation of every series without its last ``held`` rows, as
        ``windows.spread`` does."""
        count = len(self.lengths)
        codes = np.repeat(np.arange(count), self.lengths)
        place = np.arange(len(self.values)) - self.bounds[codes]
        kept = (place < self.lengths[codes] - held) & ~np.isnan(self.values)
        codes, values = codes[kept], self.values[kept]
        seen = np.maximum(np.bincount(codes, minlength=count), 1)
        mean = np.bincount(codes, values, count) / seen
        largest = np.zeros(count)
        np.maximum.at(largest, codes, np.abs(values))
        power = np.frexp(largest)[1]
        around = np.ldexp(values - mean[codes], -power[codes])
        std = np.ldexp(np.sqrt(np.bincount(codes, around**2, count) / seen), power)
        return mean, np.where(std > ROUNDING * largest, std, 1.0)

    def cutoffs(self, least: int, horizon: int, held: int, last: bool = False) -> np.ndarray:
        """Returns the first target of every window, as its place among the values, int64 (P,).

        Args:
            least: rows since a series began that a context needs.
            horizon: rows h of the target, of which at least one was observed.
            held: last rows of every series that are no targets.
            last: only the last window of every series.
        """
        seen = np.concatenate([[0], np.cumsum(~np.isnan(self.values))])
        begin, end = self.bounds[:-1] + max(least, 1), self.bounds[1:] - held - horizon
        if last:
            at = end[end >= begin]
        else:
            count = np.maximum(end - begin + 1, 0)
            at = np.repeat(begin - np.cumsum(count) + count, count) + np.arange(count.sum())
        return at[seen[at + horizon] > seen[at]]

    def tails(self, rows: int, which: np.ndarray) -> Ragged:
        """Returns the last rows of some series; a series whose row before them was not observed
        keeps what that carried forward."""
        parts = []
        for c in which:
            own = self.values[self.bounds[c] : self.bounds[c + 1]]
            kept = own[-rows:]
            if len(own) > rows and np.isnan(kept[0]):
                # What stood before is carried on, and a value before the context changes nothing.
                at = len(own) - rows - int(np.argmax(~np.isnan(own[: len(own) - rows][::-1]))) - 1
                kept = own[at:]
            parts.append(kept)
        lengths = np.array([len(one) for one in parts], np.int64)
        starts = self.starts[which] + self.lengths[which] - lengths
        return Ragged(np.concatenate([np.empty(0), *parts]), starts, lengths)


class RaggedWindows:
    """Scaled windows of single series, as of ``windows.Windows.batch_of_pairs``.

    Args:
        series: end to end.
        mean: of the scaler (C,).
        std: of the scaler (C,).
        marks: calendar features of the axis (T, F).
        context: L.
        horizon: h.
    """

    def __init__(
        self,
        series: Ragged,
        mean: np.ndarray,
        std: np.ndarray,
        marks: Tensor,
        context: int,
        horizon: int,
    ) -> None:
        self.context, self.horizon, self.marks = context, horizon, marks
        self.starts, self.bounds = series.starts, series.bounds
        self.observed = ~np.isnan(series.values)
        codes = np.repeat(np.arange(len(series.lengths)), series.lengths)
        rows = np.where(self.observed, np.arange(len(codes)), 0)
        # Every series begins with a value, so none is carried into the next.
        carried = series.values[np.maximum.accumulate(rows)] if len(rows) else series.values
        self.values = ((carried - mean[codes]) / std[codes]).astype(np.float32)
        self._scale = window_scales(mean, std)

    def batch(self, at: np.ndarray) -> dict[str, Tensor]:
        """Returns windows, stacked into (B, …, 1).

        Args:
            at: first target of every window, of ``Ragged.cutoffs``.
        """
        c = np.searchsorted(self.bounds, at, side="right") - 1
        first = self.bounds[c][:, None]
        past = at[:, None] + np.arange(-self.context, 0)
        future = at[:, None] + np.arange(self.horizon)
        inside, near = past >= first, np.maximum(past, first)
        axis = self.starts[c][:, None] - first
        found = {
            "x": self.values[near],
            "y": self.values[future],
            "x_mask": self.observed[near] & inside,
            "y_mask": self.observed[future],
            **{name: value[c] for name, value in self._scale.items()},
        }
        batch = {name: torch.from_numpy(value).unsqueeze(-1) for name, value in found.items()}
        marks = {"x_mark": np.maximum(axis + past, 0), "y_mark": axis + future}
        return batch | {name: self.marks[torch.from_numpy(rows)] for name, rows in marks.items()}
