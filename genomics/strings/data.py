"""Training data of proteins and molecules: whole strings, or with a part to be filled in."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from longseq.core.checks import check_positive
from longseq.core.errors import ConfigError, DataError
from longseq.core.training.hyper import BaseData
from longseq.core.training.loader import EpochBatches, data_ranks, step_dataloader
from longseq.genomics.data.tokenizer import IGNORE_INDEX
from longseq.genomics.strings.alphabets import (
    MIDDLE,
    PAD,
    SUFFIX,
    alphabet_of,
    infilled,
    whole,
)
from longseq.genomics.strings.reading import read_strings


@dataclass(frozen=True)
class TrainingStrings:
    """Makes training batches of strings; worker processes get it without the trainer and model that
    a data module knows.

    Args:
        strings: token ids, uint8 (n,) each.
        max_length: of what is read of a string.
        infill: share of strings of which a part is to be filled in.
        seed: of parts, by string and epoch.
    """

    strings: Sequence[np.ndarray]
    max_length: int
    infill: float
    seed: int

    def __call__(self, rows: np.ndarray, epoch: int) -> dict[str, torch.Tensor]:
        """Returns the batch of some strings in an epoch.

        Args:
            rows: numbers of the strings.
            epoch: from 0.
        """
        return batch([self.string(int(i), epoch) for i in rows])

    def string(self, row: int, epoch: int) -> np.ndarray:
        """Returns the tokens of a string as an epoch has them, uint8 (n + 2 or n + 4,).

        Args:
            row: number of the string.
            epoch: from 0.
        """
        ids = self.strings[row]
        rng = np.random.default_rng([self.seed, epoch, row])
        at, size = 0, len(ids)
        if size > self.max_length:
            at = int(rng.integers(size - self.max_length + 1))
            ids = ids[at : at + self.max_length]
        if rng.random() >= self.infill:
            marked = whole(ids)  # a part has the marks of the ends that it has
            return marked[at > 0 : len(marked) - (at + len(ids) < size)]
        start, stop = sorted(rng.integers(0, len(ids) + 1, 2).tolist())
        return infilled(ids, start, stop)


class StringData(BaseData):
    """Strings of a file, split at random; equal strings are always on the same side.

    Strings that are merely alike (homologous proteins, a molecule written in two ways) are not
    recognised: cluster or canonicalise them first, and test on a file of their own.

    Args:
        file: FASTA, .smi, or a table; see ``read_strings``.
        alphabet: "protein" or "smiles".
        column: of a table.
        max_length: symbols of a training string; of a longer one every epoch takes another part.
        infill: share of the training strings of which a part is moved to the end, so that the model
            learns to fill it in; see ``infilled``.
        valid_fraction: share of the distinct strings for validation.
        test_fraction: share for the test; 1 for a file that is only tested.
        batch_size: strings per step.
        seed: of splits, order and parts.
        num_workers: processes that make batches.
    """

    fits = ("alphabet",)

    def __init__(
        self,
        file: str,
        alphabet: str = "protein",
        column: str | None = None,
        max_length: int = 1024,
        infill: float = 0.5,
        valid_fraction: float = 0.1,
        test_fraction: float = 0.1,
        batch_size: int = 32,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        self.alphabet = alphabet_of(alphabet)
        if not (valid_fraction >= 0 and test_fraction >= 0 and valid_fraction + test_fraction <= 1):
            raise ConfigError("data.valid_fraction and test_fraction must be ≥ 0, at most 1 in sum")
        if not 0 <= infill <= 1:
            raise ConfigError(f"data.infill={infill} must lie in 0 … 1")
        self.file, self.column, self.infill = file, column, infill
        self.max_length = check_positive("data.max_length", max_length)
        self.valid_fraction, self.test_fraction = valid_fraction, test_fraction
        self.batch_size = check_positive("data.batch_size", batch_size)
        self.seed, self.num_workers = seed, num_workers
        self._read: tuple[list[str], list[np.ndarray]] | None = None
        self._parts: dict[str, np.ndarray] | None = None

    @property
    def strings(self) -> list[np.ndarray]:
        """Token ids of all strings, uint8 (n,) each."""
        if self._read is None:
            self._read = read_strings(self.file, self.alphabet, self.column)
        return self._read[1]

    def parts(self) -> dict[str, np.ndarray]:
        """Returns the rows of "train", "valid" and "test"."""
        if self._parts is not None:
            return self._parts
        rng = np.random.default_rng(self.seed)
        distinct = sorted({row.tobytes() for row in self.strings})
        order = rng.permutation(len(distinct))
        tested = round(self.test_fraction * len(distinct))
        valid = round(self.valid_fraction * len(distinct))
        side = np.full(len(distinct), "train", dtype=object)
        side[order[:tested]], side[order[tested : tested + valid]] = "test", "valid"
        of = dict(zip(distinct, side))
        sides = np.array([of[row.tobytes()] for row in self.strings])
        self._parts = {name: np.flatnonzero(sides == name) for name in ("train", "valid", "test")}
        return self._parts

    def model_arguments(self) -> dict[str, Any]:
        """Returns the alphabet's name."""
        return {"alphabet": self.alphabet.name}

    def facts(self) -> dict[str, Any]:
        """Returns the checksum of the training strings, the length of the longest, and whether
        parts are to be filled in."""
        rows = self.parts()["train"]
        found = hashlib.sha256(b"\0".join(sorted(self.strings[i].tobytes() for i in rows)))
        return {
            "strings": found.hexdigest(),
            "longest": max(map(len, self.strings)),
            "fills": self.infill > 0,
        }

    def setup(self, stage: str | None = None) -> None:
        """Reads the strings, so that bad input fails before training starts.

        Raises:
            DataError: if none is left for training, or for the test.
        """
        for part, stages in (("train", (None, "fit")), ("test", ("test",))):
            if not len(self.parts()[part]) and stage in stages:
                text = f"none of its strings is in the {part} part"
                hint = "change data.valid_fraction and data.test_fraction"
                raise DataError(text, path=self.file, hint=hint)

    def training_strings(self) -> TrainingStrings:
        """Returns what makes training batches of all strings."""
        return TrainingStrings(self.strings, self.max_length, self.infill, self.seed)

    def train_dataloader(self) -> Any:
        """Returns the loader of training batches, which resumes at any step."""
        batches = EpochBatches(
            self.parts()["train"],
            self.batch_size,
            self.seed,
            self.training_strings(),
            data_ranks(self.trainer),
        )
        return step_dataloader(batches, self.trainer, batches.per_epoch, self.num_workers)

    def _evaluation(self, part: str) -> Any:
        rows = self.parts()[part]
        if not len(rows):
            return []
        order = rows[np.argsort([len(self.strings[i]) for i in rows], kind="stable")]
        pieces = [order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)]
        return DataLoader(
            pieces,  # type: ignore[arg-type]
            batch_size=None,
            collate_fn=lambda some: batch([whole(self.strings[i]) for i in some]),
        )

    def val_dataloader(self) -> Any:
        """Returns the validation strings, whole, by length."""
        return self._evaluation("valid")

    def test_dataloader(self) -> Any:
        """Returns the test strings, whole, by length."""
        return self._evaluation("test")


def batch(rows: Sequence[np.ndarray]) -> dict[str, torch.Tensor]:
    """Returns tokens as ``input_ids`` (B, L), each followed by its ``targets`` (B, L), -100 after
    a string's end and where the next token is a mark.

    Args:
        rows: tokens, uint8 (n,) each, of at least two.
    """
    most = max(map(len, rows))
    ids = np.full((len(rows), most), PAD, np.int64)
    for row, tokens in zip(ids, rows):
        row[: len(tokens)] = tokens
    unknown = np.isin(ids[:, 1:], (PAD, SUFFIX, MIDDLE))  # where a part is cut out is chance
    targets = np.where(unknown, IGNORE_INDEX, ids[:, 1:])
    return {
        "input_ids": torch.from_numpy(ids[:, :-1].copy()),
        "targets": torch.from_numpy(targets),
    }
