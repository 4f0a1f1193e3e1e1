"""Sequences of different lengths as one batch, padded at the right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from longseq.genomics.data.tokenizer import PAD


def pad(sequences: Sequence[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns sequences as one batch, int64 (B, L) padded at the right, and their lengths (B,).

    Args:
        sequences: token ids, of at least one base each.
    """
    lengths = torch.tensor([len(ids) for ids in sequences])
    batch = np.full((len(sequences), int(lengths.max())), PAD, np.int64)
    for row, ids in zip(batch, sequences):
        row[: len(ids)] = ids
    return torch.from_numpy(batch), lengths


@dataclass(frozen=True)
class LabelledBatches:
    """Makes batches of labelled sequences; worker processes get it without the trainer and model
    that a data module knows.

    Args:
        sequences: tokens of all sequences, uint8 (n,) each.
        values: their classes or numbers (N,).
        regression: whether they are numbers.
    """

    sequences: Sequence[np.ndarray]
    values: np.ndarray
    regression: bool

    def __call__(self, rows: Sequence[int] | np.ndarray, epoch: int = 0) -> dict[str, torch.Tensor]:
        """Returns ``input_ids`` (B, L), ``lengths`` (B,) and ``target`` (B,).

        Args:
            rows: which.
            epoch: all are alike.
        """
        ids, lengths = pad([self.sequences[i] for i in rows])
        target = torch.from_numpy(self.values[rows])
        if self.regression:
            target = target.float()
        return {"input_ids": ids, "lengths": lengths, "target": target}
