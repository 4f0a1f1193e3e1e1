"""The data module of genomes: one FASTA or GenBank file, split by region, chromosome or BED
file."""

from __future__ import annotations

from typing import Any

from torch.utils.data import DataLoader

from longseq.core.errors import ConfigError
from longseq.core.training.hyper import BaseData
from longseq.core.training.length_warmup import LengthWarmup
from longseq.core.training.loader import step_dataloader
from longseq.genomics.data.bed import read_bed
from longseq.genomics.data.fasta import Genome
from longseq.genomics.data.samples import SAMPLES
from longseq.genomics.data.splits import (
    Splits,
    split_by_chromosome,
    split_by_fraction,
    split_from_bed,
)
from longseq.genomics.data.windows import EvaluationDataset, StepDataset


class GenomeData(BaseData):
    """Training windows drawn by step, and validation and test regions read from end to end.

    The split is by BED file (4th column train, valid or test), by chromosome, or else by fraction:
    the test region is the end of the genome, the validation region lies before it.

    Args:
        fasta: FASTA (plain, gzip, bgzip) or GenBank file, or the name of a packaged sample.
        bed: BED file with the split of each region.
        valid_chromosomes: names of records for validation.
        test_chromosomes: names of records for the test.
        valid_fraction: share of the bases for validation, where neither of the above is given.
        test_fraction: share for the test.
        length: training window L.
        batch_size: windows a step at full length.
        start_length: first window of a length warm-up; None for none.
        length_warmup_steps: steps until the full length.
        steps_per_epoch: batches between two ends of an epoch; None for one pass over the training
            regions.
        eval_length: bases read at once in validation and test; the state is carried on.
        rc_augment: whether training windows are reverse-complemented half of the time.
        seed: of the training windows.
        num_workers: processes that make batches.
    """

    def __init__(
        self,
        fasta: str,
        bed: str | None = None,
        valid_chromosomes: list[str] | None = None,
        test_chromosomes: list[str] | None = None,
        valid_fraction: float = 0.05,
        test_fraction: float = 0.1,
        length: int = 1024,
        batch_size: int = 8,
        start_length: int | None = None,
        length_warmup_steps: int = 0,
        steps_per_epoch: int | None = None,
        eval_length: int = 16384,
        rc_augment: bool = True,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        if bed is not None and (valid_chromosomes or test_chromosomes):
            raise ConfigError(
                "give either bed, or valid_chromosomes and test_chromosomes, not both"
            )
        self.fasta, self.bed = fasta, bed
        self.valid_chromosomes, self.test_chromosomes = (
            valid_chromosomes or [],
            test_chromosomes or [],
        )
        self.valid_fraction, self.test_fraction = valid_fraction, test_fraction
        self.warmup = LengthWarmup(length, batch_size, start_length, length_warmup_steps)
        self.tokens_per_step = length * batch_size
        self.steps_per_epoch, self.eval_length = steps_per_epoch, eval_length
        self.rc_augment, self.seed, self.num_workers = rc_augment, seed, num_workers
        self._genome: Genome | None = None

    @property
    def genome(self) -> Genome:
        """The opened and validated genome."""
        if self._genome is None:
            self._genome = Genome(
                SAMPLES.path(self.fasta) if self.fasta in SAMPLES.names() else self.fasta
            )
            self._genome.validate()
        return self._genome

    def splits(self) -> Splits:
        """Returns the regions for training, validation and test."""
        if self.bed is not None:
            return split_from_bed(read_bed(self.bed, self.genome))
        if self.valid_chromosomes or self.test_chromosomes:
            resolve = self.genome.resolve
            valid, test = (
                [resolve(name) for name in names]
                for names in (self.valid_chromosomes, self.test_chromosomes)
            )
            return split_by_chromosome(self.genome.records, valid, test)
        return split_by_fraction(self.genome.records, self.valid_fraction, self.test_fraction)

    def setup(self, stage: str | None = None) -> None:
        """Reads and checks the genome, so that bad input fails before training starts."""
        for part, intervals in zip(("training", "validation", "test"), self.splits()):
            if part == "training" and stage in (None, "fit") and not intervals:
                raise ConfigError(f"{self.fasta}: the split leaves no bases for {part}")

    def train_dataloader(self) -> Any:
        """Returns the loader of training windows, which resumes at any step."""
        intervals = self.splits().train
        bases = sum(len(interval) for interval in intervals)
        steps = self.steps_per_epoch or max(1, bases // self.tokens_per_step)
        rank = self.trainer.global_rank if self.trainer is not None else 0
        windows = StepDataset(
            self.genome, intervals, self.warmup.schedule, self.seed, self.rc_augment, rank=rank
        )
        return step_dataloader(windows, self.trainer, steps, self.num_workers)

    def _evaluation(self, intervals: Any) -> Any:
        if not intervals:
            return []
        return DataLoader(
            EvaluationDataset(self.genome, intervals, self.eval_length), batch_size=None
        )

    def val_dataloader(self) -> Any:
        """Returns the validation regions in order."""
        return self._evaluation(self.splits().valid)

    def test_dataloader(self) -> Any:
        """Returns the test regions in order."""
        return self._evaluation(self.splits().test)
