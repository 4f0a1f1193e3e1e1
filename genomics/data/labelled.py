"""Labelled sequences: FASTA with a table of labels, or labelled regions of a reference."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from longseq.core.checks import check_positive
from longseq.core.errors import ConfigError, DataError
from longseq.core.tables import read_rows
from longseq.core.training.hyper import BaseData
from longseq.core.training.loader import EpochBatches, data_ranks, step_dataloader
from longseq.genomics.data.bed import read_bed
from longseq.genomics.data.fasta import Genome
from longseq.genomics.data.padding import LabelledBatches
from longseq.genomics.data.tokenizer import reverse_complement

_SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class Labelled:
    """Sequences with what is known of them.

    Attributes:
        names: of the sequences.
        sequences: token ids, uint8 (n,) each.
        labels: a class each, or a number as text; "" where there is none.
        splits: "train", "valid", "test" or "" each.
        groups: a number each; equal sequences, also on opposite strands, have the same, so that
            none can be trained on and tested on.
    """

    names: list[str]
    sequences: list[np.ndarray]
    labels: list[str]
    splits: list[str]
    groups: np.ndarray


def read_labelled(
    fasta: str | Path, labels: str | Path | None = None, bed: str | Path | None = None
) -> Labelled:
    """Reads labelled sequences.

    Args:
        fasta: the sequences, or the reference of ``bed``.
        labels: .csv, .tsv or .parquet with the columns ``name`` (of the record) and ``label``, and
            ``split`` (train, valid, test) if they are split already; every record needs a row.
        bed: regions with the label in the fourth column; those on strand - are turned round.

    Raises:
        DataError: for records without a label, labels without a record, or an unknown split.
        ConfigError: if both or neither of labels and bed are given.
    """
    if (labels is None) == (bed is None):
        raise ConfigError("give either data.labels or data.bed")
    genome = Genome(fasta)
    genome.validate()
    if bed is not None:
        regions = read_bed(bed, genome)
        names = [f"{one.chrom}:{one.start + 1}-{one.end}({one.strand})" for one in regions]
        found = [one.name for one in regions]
        splits = [""] * len(regions)
        sequences = [
            genome.fetch(one.chrom, one.start, one.end, "-" if one.strand == "-" else "+")
            for one in regions
        ]
    else:
        assert labels is not None
        known = _table(labels)
        if stray := [name for name in known if name not in genome.records]:
            raise DataError(f"no record of {Path(fasta).name}", path=labels, record=stray[0])
        names = list(genome.records)
        if bare := [name for name in names if name not in known]:
            raise DataError(
                f"{len(bare):,} records have no row in {Path(labels).name}",
                path=fasta,
                record=bare[0],
            )
        found = [known[name][0] for name in names]
        splits = [known[name][1] for name in names]
        sequences = [genome.fetch(name, 0, genome.records[name]) for name in names]
    if "" in found:
        raise DataError("has no label", path=bed or labels, record=names[found.index("")])
    return Labelled(names, sequences, found, splits, _groups(sequences))


def _table(path: str | Path) -> dict[str, tuple[str, str]]:
    """Returns name → (label, split)."""
    known: dict[str, tuple[str, str]] = {}
    for row in read_rows(path):
        where = f"line {row.line}"
        if row.get("name") is None or row.get("label") is None:
            raise DataError("needs the columns name and label", path=path, record=where)
        split = (row.get("split") or "").strip()
        if split not in ("", *_SPLITS):
            raise DataError(f"split {split!r} is not train, valid or test", path=path, record=where)
        if row["name"] in known:
            raise DataError(f"a second row of {row['name']!r}", path=path, record=where)
        known[row["name"]] = row["label"].strip(), split
    if not known:
        raise DataError("has no rows", path=path)
    return known


def _groups(sequences: Sequence[np.ndarray]) -> np.ndarray:
    """Returns a number for each sequence, equal for equal ones and reverse complements."""
    seen: dict[bytes, int] = {}
    keys = (min(ids.tobytes(), reverse_complement(ids).tobytes()) for ids in sequences)
    return np.array([seen.setdefault(key, len(seen)) for key in keys])


def check_classes(labelled: Labelled, path: str | Path | None) -> None:
    """Tells numbers that would be trained as classes.

    Integers are classes, unless more than 20 of them stand on little more than a sequence each;
    numbers with decimals are measurements from five on, unless they recur.

    Args:
        labelled: the sequences, whose labels are to be classes.
        path: their file, for messages.

    Raises:
        DataError: if labels are numbers and more than half as many as sequences. Numbers with
            decimals that recur are warned of.
    """
    try:
        numbers = {float(text) for text in labelled.labels}
    except ValueError:
        return
    decimals = any(not number.is_integer() for number in numbers)
    if len(numbers) <= (4 if decimals else 20):
        return
    text = f"its labels are {len(numbers):,} different numbers, which would be as many classes"
    hint = "learn numbers with --data.regression true, in cross_validate with --regression"
    if 2 * len(numbers) > len(labelled.labels):
        raise DataError(text, path=path, hint=f"{hint}; name classes by words")
    if decimals:
        warnings.warn(f"{path}: {text} ({hint})", stacklevel=2)


def fold_of(labelled: Labelled, folds: int, seed: int, stratify: bool) -> np.ndarray:
    """Returns the fold of each sequence, int64 (n,); equal sequences share one.

    Args:
        labelled: the sequences.
        folds: how many, at least 2.
        seed: of the shuffle.
        stratify: whether folds have equal shares of each label.

    Raises:
        ConfigError: if there are fewer distinct sequences, of all or of a class, than folds need.
    """
    from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

    if folds < 2 or len(np.unique(labelled.groups)) < folds:
        raise ConfigError(f"{folds} folds of {len(set(labelled.groups))} distinct sequences")
    needed = max(folds, 4 if folds == 2 else 0)  # so that two of every class are trained on
    for label in sorted(set(labelled.labels)) if stratify else ():
        own = [group for group, one in zip(labelled.groups, labelled.labels) if one == label]
        if (count := len(set(own))) < needed:
            raise ConfigError(
                f"class {label!r} has {count} distinct sequences, {folds} folds need {needed}: "
                "leave it out, take fewer folds, or, if labels are numbers, learn them with "
                "--data.regression true, in cross_validate with --regression"
            )
    maker = StratifiedGroupKFold if stratify else GroupKFold
    splitter = maker(folds, shuffle=True, random_state=seed)
    found = np.zeros(len(labelled.names), np.int64)
    labels = np.array(labelled.labels) if stratify else np.zeros(len(found))
    for number, (_, test) in enumerate(splitter.split(found, labels, labelled.groups)):
        found[test] = number
    return found


class LabelledData(BaseData):
    """Sequences with a class or a number each, split by a column, by share, or into folds.

    Equal sequences, also on opposite strands, are always on the same side of a split.

    Args:
        fasta: the sequences, or the reference of ``bed``.
        labels: table with the columns name and label, and perhaps split; see ``read_labelled``.
        bed: regions of the reference with the label in the fourth column, in place of ``labels``.
        regression: whether labels are numbers.
        valid_fraction: share for validation, where the table does not split.
        test_fraction: share for the test, likewise.
        folds: of a cross-validation, whose fold ``fold`` is the test; 0 for none.
        fold: number of the test's fold.
        batch_size: sequences per step.
        seed: of splits and order.
        num_workers: processes that make batches.
    """

    fits = ("n_classes",)
    described_by = {"fasta": ("labels", "bed")}

    def __init__(
        self,
        fasta: str,
        labels: str | None = None,
        bed: str | None = None,
        regression: bool = False,
        valid_fraction: float = 0.1,
        test_fraction: float = 0.2,
        folds: int = 0,
        fold: int = 0,
        batch_size: int = 32,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        if not (valid_fraction >= 0 and test_fraction >= 0 and valid_fraction + test_fraction < 1):
            raise ConfigError("data.valid_fraction and test_fraction must be ≥ 0 and below 1")
        self.fasta, self.labels, self.bed, self.regression = fasta, labels, bed, regression
        self.valid_fraction, self.test_fraction = valid_fraction, test_fraction
        self.folds, self.fold, self.seed = folds, fold, seed
        self.batch_size = check_positive("batch_size", batch_size)
        self.num_workers = num_workers
        if folds and not 0 <= fold < folds:
            raise ConfigError(f"data.fold={fold} must lie in 0 … {folds - 1}")
        self._read: Labelled | None = None
        self._parts: dict[str, np.ndarray] | None = None
        self._values: np.ndarray | None = None

    @property
    def labelled(self) -> Labelled:
        """The sequences."""
        if self._read is None:
            self._read = read_labelled(self.fasta, self.labels, self.bed)
            if not self.regression:
                check_classes(self._read, self.labels or self.bed)
        return self._read

    @property
    def classes(self) -> list[str]:
        """The classes in order; none in regression."""
        return [] if self.regression else sorted(set(self.labelled.labels))

    def values(self) -> np.ndarray:
        """Returns the number of each sequence's class, int64 (n,), or its number, float64 (n,).

        Raises:
            DataError: for a label that is no number, in regression.
        """
        if self._values is None:  # of all sequences, and every batch asks for its own
            self._values = self._numbers()
        return self._values

    def _numbers(self) -> np.ndarray:
        """See ``values``."""
        if not self.regression:
            number = {name: i for i, name in enumerate(self.classes)}
            return np.array([number[one] for one in self.labelled.labels])
        found = []
        for name, text in zip(self.labelled.names, self.labelled.labels):
            try:
                value = float(text)
            except ValueError:
                value = float("nan")
            if not np.isfinite(value):
                path = self.labels or self.bed
                raise DataError(f"label {text!r} is no finite number", path=path, record=name)
            found.append(value)
        return np.array(found)

    def parts(self) -> dict[str, np.ndarray]:
        """Returns the rows of "train", "valid" and "test".

        Raises:
            DataError: if none is left for training.
        """
        if self._parts is not None:
            return self._parts
        splits = np.array(self.labelled.splits)
        if self.folds:
            where = fold_of(self.labelled, self.folds, self.seed, not self.regression)
            test = where == self.fold
            splits = np.where(test, "test", self._drawn(~test, self.valid_fraction, "valid"))
        elif (splits == "").all():
            splits = self._drawn(np.ones(len(splits), bool), self.test_fraction, "test")
            left = splits != "test"
            share = self.valid_fraction / (1 - self.test_fraction)
            splits = np.where(left, self._drawn(left, share, "valid"), "test")
        elif (splits == "").any():
            name = self.labelled.names[int((splits == "").argmax())]
            raise DataError("has no split, others have", path=self.labels, record=name)
        self._parts = {one: np.flatnonzero(splits == one) for one in _SPLITS}
        if not len(self._parts["train"]):
            raise DataError("no sequence is left for training", path=self.labels or self.bed)
        return self._parts

    def _drawn(self, among: np.ndarray, share: float, name: str) -> np.ndarray:
        """Returns "train" for each row, but ``name`` for a share of the groups among some rows."""
        groups = np.unique(self.labelled.groups[among])
        rng = np.random.default_rng([self.seed, len(name)])
        taken = rng.permutation(groups)[: round(share * len(groups))]
        return np.where(np.isin(self.labelled.groups, taken), name, "train")

    def facts(self) -> dict[str, Any]:
        """Returns the classes, or mean and deviation of the numbers for training."""
        if not self.regression:
            return {"classes": self.classes}
        values = self.values()[self.parts()["train"]]
        return {"mean": float(values.mean()), "deviation": float(values.std()) or 1.0}

    def model_arguments(self) -> dict[str, Any]:
        """Returns the number of classes; 0 in regression."""
        return {"n_classes": len(self.classes)}

    def setup(self, stage: str | None = None) -> None:
        """Reads and splits the sequences, so that bad input fails before training starts."""
        self.values()
        self.parts()
        if not self.regression and len(self.classes) < 2:
            raise DataError(
                f"all labels are {self.classes[0]!r}: two classes are needed",
                path=self.labels or self.bed,
            )

    def batch(self, rows: Sequence[int] | np.ndarray) -> dict[str, torch.Tensor]:
        """Returns sequences as a batch: ``input_ids`` (B, L), ``lengths`` (B,), ``target`` (B,).

        Args:
            rows: which.
        """
        return LabelledBatches(self.labelled.sequences, self.values(), self.regression)(rows)

    def train_dataloader(self) -> Any:
        """Returns the loader of training batches, which resumes at any step."""
        batches = EpochBatches(
            self.parts()["train"],
            self.batch_size,
            self.seed,
            LabelledBatches(self.labelled.sequences, self.values(), self.regression),
            data_ranks(self.trainer),
        )
        return step_dataloader(batches, self.trainer, batches.per_epoch, self.num_workers)

    def _evaluation(self, part: str) -> Any:
        rows = self.parts()[part]
        if not len(rows):
            return []
        order = rows[np.argsort([len(self.labelled.sequences[i]) for i in rows], kind="stable")]
        pieces = [order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)]
        return DataLoader(pieces, batch_size=None, collate_fn=self.batch)  # type: ignore[arg-type]

    def val_dataloader(self) -> Any:
        """Returns the validation sequences, by length."""
        return self._evaluation("valid")

    def test_dataloader(self) -> Any:
        """Returns the test sequences, by length."""
        return self._evaluation("test")
