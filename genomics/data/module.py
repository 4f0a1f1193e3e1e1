"""The data module of genomes: one file or several, split by region, chromosome or BED
file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.utils.data import DataLoader

from longseq.core.errors import ConfigError, DataError
from longseq.core.training.hyper import BaseData
from longseq.core.training.length_warmup import LengthWarmup
from longseq.core.training.loader import data_ranks, step_dataloader
from longseq.genomics.data.bed import read_bed
from longseq.genomics.data.buckets import BucketDataset
from longseq.genomics.data.collection import Collection, open_genomes
from longseq.genomics.data.fasta import Genome
from longseq.genomics.data.samples import SAMPLES
from longseq.genomics.data.splits import (
    Interval,
    Splits,
    split_by_chromosome,
    split_by_fraction,
    split_from_bed,
)
from longseq.genomics.data.tokenizer import is_base
from longseq.genomics.data.windows import EvaluationDataset, StepDataset

TEST_FRACTION = 0.1
_PIECE = 1 << 20  # bases looked at at once


class GenomeData(BaseData):
    """Training windows drawn by step, and validation and test regions read from end to end.

    The split is by BED file (4th column train, valid or test), by chromosome, or else by fraction:
    the test region is the end of the genome, the validation region lies before it.

    Args:
        fasta: genome file (FASTA, GenBank, EMBL, FASTQ, plain or gzip), the name of a packaged
            sample, or a list of either; the records of several are named ``tag:record``.
        weights: how often the bases of each file are drawn, relative to one another; 1 if None.
        tags: a name for each file; those of the files if None.
        bed: BED file with the split of each region.
        valid_chromosomes: names of records for validation.
        test_chromosomes: names of records for the test.
        valid_fraction: share of the bases for validation, where neither of the above is given.
        test_fraction: share for the test; if None a tenth of a genome that the model was trained
            on, and all of any other.
        repeat_weight: of soft-masked (lower-case) bases in the training loss.
        length: training window L.
        batch_size: windows per step at full length.
        start_length: first window of a length warm-up; None for none. A shorter ``length`` has no
            warm-up, so that one may be asked of a configuration that has one.
        length_warmup_steps: steps until the full length.
        shortest_length: read the training regions once per pass, in windows of powers of two from
            this length to ``length``, none across a border; None for windows drawn at random.
        length_shares: of the bases, for the lengths from the shortest on; equal if None.
        length_cycles: how often a pass goes from short to long; 0 for a random order.
        steps_per_epoch: batches between two ends of an epoch; None for one pass over the training
            regions.
        eval_length: bases read at once in validation and test; the state is carried on.
        rc_augment: whether training windows are reverse-complemented half of the time.
        seed: of the training windows.
        num_workers: processes that make batches.
    """

    described_by = {"fasta": ("bed", "valid_chromosomes", "test_chromosomes")}

    def __init__(
        self,
        fasta: str | list[str],
        bed: str | None = None,
        valid_chromosomes: list[str] | None = None,
        test_chromosomes: list[str] | None = None,
        valid_fraction: float = 0.05,
        test_fraction: float | None = None,
        length: int = 1024,
        batch_size: int = 8,
        start_length: int | None = None,
        length_warmup_steps: int = 0,
        steps_per_epoch: int | None = None,
        eval_length: int = 16384,
        rc_augment: bool = True,
        seed: int = 0,
        num_workers: int = 0,
        weights: list[float] | None = None,
        tags: list[str] | None = None,
        repeat_weight: float = 1.0,
        shortest_length: int | None = None,
        length_shares: list[float] | None = None,
        length_cycles: int = 0,
    ) -> None:
        super().__init__()
        if bed is not None and (valid_chromosomes or test_chromosomes):
            raise ConfigError(
                "give either bed, or valid_chromosomes and test_chromosomes, not both"
            )
        self.files = [fasta] if isinstance(fasta, str) else list(fasta)
        if weights is not None and (
            len(weights) != len(self.files) or min(weights) < 0 or max(weights) <= 0
        ):
            raise ConfigError(
                f"data.weights: {len(self.files)} numbers of at least 0, not all 0, are needed, "
                f"got {weights}"
            )
        if not 0 <= repeat_weight <= 1:
            raise ConfigError(f"data.repeat_weight={repeat_weight} must lie in 0 … 1")
        self.weights, self.tags, self.repeat_weight = weights, tags, repeat_weight
        self.bed = bed
        self.valid_chromosomes, self.test_chromosomes = (
            valid_chromosomes or [],
            test_chromosomes or [],
        )
        self.valid_fraction, self.test_fraction = valid_fraction, test_fraction
        if shortest_length is None and (length_shares is not None or length_cycles):
            raise ConfigError("data.length_shares and data.length_cycles need data.shortest_length")
        if shortest_length is not None and (start_length is not None or weights is not None):
            raise ConfigError(
                "data.shortest_length reads every base once per pass: give neither start_length "
                "nor weights with it"
            )
        self.shortest_length = shortest_length
        self.length_shares, self.length_cycles = length_shares, length_cycles
        start = None if start_length is None else min(start_length, length)
        self.warmup = LengthWarmup(length, batch_size, start, length_warmup_steps)
        self.tokens_per_step = length * batch_size
        self.steps_per_epoch, self.eval_length = steps_per_epoch, eval_length
        self.rc_augment, self.seed, self.num_workers = rc_augment, seed, num_workers
        self._genome: Genome | Collection | None = None
        self.tested: list[Interval] = []

    @property
    def title(self) -> str:
        """The files, for messages."""
        return ", ".join(self.files)

    @property
    def genome(self) -> Genome | Collection:
        """The opened and validated genome."""
        if self._genome is None:
            names = SAMPLES.names()
            paths = [SAMPLES.path(one) if one in names else one for one in self.files]
            self._genome = open_genomes(paths, self.tags)
            self._genome.validate()
        return self._genome

    def splits(self) -> Splits:
        """Returns the regions for training, validation and test."""
        if self.bed is not None:
            return split_from_bed(read_bed(self.bed, self.genome))
        records = self.genome.records
        if self.valid_chromosomes or self.test_chromosomes:
            resolve = self.genome.resolve
            valid, test = (
                [resolve(name) for name in names]
                for names in (self.valid_chromosomes, self.test_chromosomes)
            )
            return split_by_chromosome(records, valid, test)
        if self.test_fraction is None and self._is_new():
            return Splits([], [], [Interval(name, 0, size) for name, size in records.items()])
        share = TEST_FRACTION if self.test_fraction is None else self.test_fraction
        if not isinstance(self.genome, Collection):
            return split_by_fraction(records, self.valid_fraction, share)
        splits = Splits([], [], [])
        for tag, genome in self.genome.genomes.items():  # the end of each file
            parts = split_by_fraction(genome.records, self.valid_fraction, share)
            for all_of, part in zip(splits, parts):
                all_of += [Interval(f"{tag}:{one.chrom}", one.start, one.end) for one in part]
        return splits

    def _is_new(self) -> bool:
        """Returns whether the model at hand was trained on other genomes."""
        trainer = self.trainer
        if trainer is None or trainer.state.fn is None or trainer.state.fn.value == "fit":
            return False
        known = getattr(trainer.lightning_module, "facts", {}).get("genomes")
        return known is not None and not set(self.genome.checksums()) & set(known)

    def facts(self) -> dict[str, Any]:
        """Returns the length of the training windows and the checksums of the genomes."""
        return {"length": self.warmup.length, "genomes": self.genome.checksums()}

    def setup(self, stage: str | None = None) -> None:
        """Reads and checks the genome, so that bad input fails before training starts."""
        splits = self.splits()
        if stage in (None, "fit"):
            if not splits.train:
                raise ConfigError(f"{self.title}: the split leaves no bases for training")
            self._check_known(splits.train, "training")
            self._check_known(splits.valid, "validation")

    def _check_known(self, intervals: Sequence[Interval], part: str) -> None:
        """Checks that there is something to score.

        Raises:
            DataError: if there are intervals, and none has a base to predict from another.
        """
        if intervals and not any(
            is_base(self.genome.fetch(one.chrom, low, min(low + _PIECE, one.end))).any()
            for one in intervals
            for low in range(one.start + 1, one.end, _PIECE)
        ):
            first = intervals[0]
            raise DataError(
                f"the {part} region has no base to predict: it is all N",
                path=self.genome.path,
                record=f"{first.chrom}:{first.start}-{first.end}",
                hint="hold out another region: data.bed, data.test_chromosomes, data.test_fraction",
            )

    def train_dataloader(self) -> Any:
        """Returns the loader of training windows, which resumes at any step."""
        intervals = self.splits().train
        bases = sum(len(interval) for interval in intervals)
        rank, world = data_ranks(self.trainer)
        if self.shortest_length is not None:
            buckets = self._buckets(intervals, rank, world)
            steps = self.steps_per_epoch or len(buckets)
            return step_dataloader(buckets, self.trainer, steps, self.num_workers)
        steps = self.steps_per_epoch or max(1, bases // (self.tokens_per_step * world))
        windows = StepDataset(
            self.genome,
            intervals,
            self.warmup.schedule,
            self.seed,
            self.rc_augment,
            rank=rank,
            world=world,
            weights=self._interval_weights(intervals),
            repeat_weight=self.repeat_weight,
        )
        return step_dataloader(windows, self.trainer, steps, self.num_workers)

    def _buckets(self, intervals: Sequence[Interval], rank: int, world: int) -> BucketDataset:
        assert self.shortest_length is not None
        return BucketDataset(
            self.genome,
            intervals,
            self.warmup.length,
            self.shortest_length,
            self.warmup.batch_size,
            self.length_shares,
            self.length_cycles,
            self.seed,
            self.rc_augment,
            rank=rank,
            world=world,
            repeat_weight=self.repeat_weight,
        )

    def _interval_weights(self, intervals: Sequence[Interval]) -> list[float] | None:
        if self.weights is None or not isinstance(self.genome, Collection):
            return None
        by_tag = dict(zip(self.genome.genomes, self.weights, strict=True))
        return [by_tag[one.chrom.partition(":")[0]] for one in intervals]

    def _evaluation(self, intervals: list[Interval], part: str) -> Any:
        if not intervals:
            return []
        self._check_known(intervals, part)
        windows = EvaluationDataset(self.genome, intervals, self.eval_length)
        self.tested = windows.intervals
        return DataLoader(windows, batch_size=None)

    def val_dataloader(self) -> Any:
        """Returns the validation regions in order."""
        return self._evaluation(self.splits().valid, "validation")

    def test_dataloader(self) -> Any:
        """Returns the test regions in order."""
        return self._evaluation(self.splits().test, "test")
