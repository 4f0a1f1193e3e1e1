"""Genomes whose bases are labelled by their annotated genes: strand and codon position."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from longseq.core.errors import ConfigError, DataError
from longseq.core.training.loader import data_ranks, step_dataloader
from longseq.genomics.data.annotation import Feature, own_features, read_features
from longseq.genomics.data.collection import Collection
from longseq.genomics.data.fasta import Genome
from longseq.genomics.data.module import GenomeData
from longseq.genomics.data.splits import Interval
from longseq.genomics.data.tokenizer import IGNORE_INDEX, PAD, is_base
from longseq.genomics.data.windows import StepDataset
from longseq.genomics.gene_scores import codon_places

# 0: between genes; 1, 2, 3: codon positions on the strand +; 4, 5, 6: on the strand −.
STATES = 7
OTHER_STRAND = (0, 4, 5, 6, 1, 2, 3)  # the state of the same base read on the opposite strand


def gene_states(features: Sequence[Feature], size: int) -> np.ndarray:
    """Returns the state of every base of a record, int8 (size,); −1 where two genes say otherwise
    of a base, or a gene does not count (``Feature.counts``).

    Args:
        features: of the record; only coding sequences count.
        size: of the record.
    """
    states, taken = np.zeros(size, np.int8), np.zeros(size, bool)
    for one in features:
        if one.kind != "CDS":
            continue
        places, _ = codon_places(one, size)
        position = (np.arange(len(places)) - (one.phase or 0)) % 3
        own = (1 + position + (3 if one.strand == "-" else 0)).astype(np.int8)
        if not one.counts:
            own[:] = -1
        clash = taken[places] & (states[places] != own)
        states[places] = np.where(clash, -1, own)
        taken[places] = True
    return states


class GeneWindows(StepDataset):
    """Training windows with the state of every base, indexed by the optimiser's step; see
    ``StepDataset`` for how they are drawn.

    Args:
        states: of ``gene_states``, by record.
        genome: the sequence.
        intervals: where windows may lie.
        **drawing: see ``StepDataset``.
    """

    def __init__(
        self,
        states: Mapping[str, np.ndarray],
        genome: Genome | Collection,
        intervals: Sequence[Interval],
        **drawing: Any,
    ) -> None:
        super().__init__(genome, intervals, **drawing)
        self.states = states

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        """Returns ``input_ids``, ``targets`` (B, L) and ``lengths`` (B,) of a step."""
        _, length = self.schedule(step)
        return _batch(self.genome, self.states, self.places(step), length)


class GeneRegions(Dataset[dict[str, Tensor]]):
    """All bases of some regions once, in windows that follow each other.

    Args:
        states: see ``GeneWindows``.
        genome: the sequence.
        intervals: what is read.
        length: bases of a window.
        batch_size: windows at once.
    """

    def __init__(
        self,
        states: Mapping[str, np.ndarray],
        genome: Genome | Collection,
        intervals: Sequence[Interval],
        length: int,
        batch_size: int,
    ) -> None:
        self.states, self.genome, self.length, self.size = states, genome, length, batch_size
        self.places = [
            Interval(one.chrom, low, min(low + length, one.end))
            for one in intervals
            for low in range(one.start, one.end, length)
        ]

    def __len__(self) -> int:
        return -(-len(self.places) // self.size)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """See ``GeneWindows``."""
        if not 0 <= index < len(self):
            raise IndexError(f"batch {index} of {len(self)}")
        rows = self.places[index * self.size : (index + 1) * self.size]
        return _batch(self.genome, self.states, rows, max(map(len, rows)))


def _batch(
    genome: Genome | Collection,
    states: Mapping[str, np.ndarray],
    places: Sequence[Interval],
    length: int,
) -> dict[str, Tensor]:
    ids = np.full((len(places), length), PAD, np.int64)
    targets = np.full((len(places), length), IGNORE_INDEX, np.int64)
    for row, one in enumerate(places):
        own = genome.fetch(one.chrom, one.start, one.end)
        said = states[one.chrom][one.start : one.end]
        ids[row, : len(own)] = own
        targets[row, : len(own)] = np.where(is_base(own) & (said >= 0), said, IGNORE_INDEX)
    lengths = torch.tensor([len(one) for one in places])
    return {
        "input_ids": torch.from_numpy(ids),
        "targets": torch.from_numpy(targets),
        "lengths": lengths,
    }


class GeneLabelData(GenomeData):
    """Windows of annotated genomes, each base with its state: between genes, or the strand and the
    codon position of its gene. What two genes share in different frames, pseudogenes and N do not
    count. Splits are those of ``GenomeData``.

    Args:
        fasta: see ``GenomeData``; GenBank and EMBL files have their own annotation.
        genes: GFF3, GenBank or EMBL file with the genes of each file of ``fasta``; their own if
            None.
        bed: see ``GenomeData``.
        valid_chromosomes: see ``GenomeData``.
        test_chromosomes: see ``GenomeData``.
        valid_fraction: see ``GenomeData``.
        test_fraction: see ``GenomeData``.
        length: bases of a training window.
        batch_size: windows per step.
        eval_length: bases of a window in validation and test.
        steps_per_epoch: see ``GenomeData``.
        seed: of the training windows.
        num_workers: processes that make batches.
    """

    described_by = {"fasta": ("genes", *GenomeData.described_by["fasta"])}

    def __init__(
        self,
        fasta: str | list[str],
        genes: str | list[str] | None = None,
        bed: str | None = None,
        valid_chromosomes: list[str] | None = None,
        test_chromosomes: list[str] | None = None,
        valid_fraction: float = 0.05,
        test_fraction: float | None = None,
        length: int = 2048,
        batch_size: int = 8,
        eval_length: int = 8192,
        steps_per_epoch: int | None = None,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__(
            fasta,
            bed,
            valid_chromosomes,
            test_chromosomes,
            valid_fraction,
            test_fraction,
            length,
            batch_size,
            eval_length=eval_length,
            steps_per_epoch=steps_per_epoch,
            rc_augment=False,
            seed=seed,
            num_workers=num_workers,
        )
        self.annotations = [genes] if isinstance(genes, str) else genes
        if self.annotations is not None and len(self.annotations) != len(self.files):
            raise ConfigError(
                f"data.genes: one annotation for each of {len(self.files)} genomes is needed, "
                f"got {len(self.annotations)}"
            )
        self._states: dict[str, np.ndarray] | None = None

    @property
    def states(self) -> dict[str, np.ndarray]:
        """The states of every record's bases, see ``gene_states``."""
        if self._states is None:
            genome = self.genome
            parts = genome.genomes if isinstance(genome, Collection) else {"": genome}
            self._states = {}
            for number, (tag, one) in enumerate(parts.items()):
                path = self.annotations[number] if self.annotations else None
                found = read_features(path, one) if path else own_features(one.path, one)
                if not any(feature.kind == "CDS" for feature in found):
                    raise DataError(
                        "has no coding sequences to learn or test labels by",
                        path=path or one.path,
                        hint="give data.genes a GFF3, GenBank or EMBL file with CDS",
                    )
                for name, size in one.records.items():
                    own = [feature for feature in found if feature.chrom == name]
                    self._states[f"{tag}:{name}" if tag else name] = gene_states(own, size)
        return self._states

    def setup(self, stage: str | None = None) -> None:
        """Reads and checks genomes and annotations, so that bad input fails early."""
        super().setup(stage)
        _ = self.states

    def train_dataloader(self) -> Any:
        """Returns the loader of training windows, which resumes at any step."""
        intervals = self.splits().train
        rank, world = data_ranks(self.trainer)
        bases = sum(map(len, intervals))
        steps = self.steps_per_epoch or max(1, bases // (self.tokens_per_step * world))
        windows = GeneWindows(
            self.states,
            self.genome,
            intervals,
            schedule=self.warmup.schedule,
            seed=self.seed,
            rank=rank,
            world=world,
        )
        return step_dataloader(windows, self.trainer, steps, self.num_workers)

    def _evaluation(self, intervals: list[Interval], part: str) -> Any:
        if not intervals:
            return []
        self._check_known(intervals, part)
        size = self.warmup.batch_size
        regions = GeneRegions(self.states, self.genome, intervals, self.eval_length, size)
        return DataLoader(regions, batch_size=None)
