"""``longseq genomics compare``: language models beside Markov models on held-out regions of one
genome."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from longseq.core.compare import Comparison, Row
from longseq.core.errors import DataError
from longseq.core.training.by_config import Values
from longseq.core.training.loading import load_data, load_task
from longseq.genomics.baselines import BASELINES
from longseq.genomics.data.module import GenomeData
from longseq.genomics.data.samples import SAMPLES
from longseq.genomics.metrics import perplexity
from longseq.genomics.predict import stream_log_likelihood
from longseq.genomics.task import CausalLanguageModel

# What decides which bases are the test's.
_SPLIT = ("bed", "valid_chromosomes", "test_chromosomes", "valid_fraction", "test_fraction")


class GenomeComparison(Comparison):
    """Bits per base of the test regions, each read from its first base to its last.

    Args:
        data: the genome and its split.
    """

    baselines = BASELINES
    score = "bits_per_base"
    columns = {
        "model": "",
        "kind": "",
        "seed": "d",
        "bits_per_base": ".6f",
        "perplexity": ".6f",
        "parameters": "d",
        "bases": "d",
        "verdict": "",
    }

    def __init__(self, data: GenomeData) -> None:
        self.data, self.splits = data, data.splits()
        data.setup("fit")
        if not self.splits.test:
            raise DataError("the split leaves no bases for the test", path=data.fasta)

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        names = ", ".join(SAMPLES.names())
        parser.add_argument(
            "--data", required=True, help=f"FASTA or GenBank file, or a sample: {names}"
        )
        parser.add_argument("--bed", help="BED file with the split (by fraction)")
        parser.add_argument(
            "--valid_fraction", type=float, default=0.05, help="for validation (0.05)"
        )
        parser.add_argument("--test_fraction", type=float, default=0.1, help="for the test (0.1)")

    @classmethod
    def of(cls, args: argparse.Namespace) -> Iterator[GenomeComparison]:
        fractions = {"valid_fraction": args.valid_fraction, "test_fraction": args.test_fraction}
        yield cls(GenomeData(args.data, args.bed, **fractions))

    at_test = ("markov",)

    @classmethod
    def of_test(cls, task: Any, data: Any) -> GenomeComparison | None:
        known = isinstance(task, CausalLanguageModel) and isinstance(data, GenomeData)
        return cls(data) if known else None

    def tested(self, task: Any, metrics: Mapping[str, float]) -> Row:
        parameters = sum(parameter.numel() for parameter in task.model.parameters())
        bases = sum(len(interval) for interval in self.splits.test)
        return self._row(
            str(task.hparams["mixer"]), "model", metrics["bits_per_base"], parameters, bases
        )

    @property
    def metric(self) -> str:
        return "bits per base"

    @property
    def title(self) -> str:
        bases = sum(len(interval) for interval in self.splits.test)
        return f"{self.data.fasta}: {bases:,} test bases in {len(self.splits.test)} regions"

    def tie(self, row: Row, rival: Row) -> float:
        return 5e-4

    def notes(self, rows: Sequence[Row]) -> dict[str, str]:
        mean = float(np.mean([row.value for row in rows]))
        return {
            "perplexity": f"{perplexity(mean):.3f}",
            "parameters": f"{rows[0].numbers['parameters']:,}",
        }

    @staticmethod
    def _row(
        model: str, kind: Any, bits: float, parameters: int, bases: int, seed: int | None = None
    ) -> Row:
        numbers = {"perplexity": perplexity(bits), "parameters": parameters, "bases": bases}
        return Row(model, kind, bits, seed, numbers=numbers)

    def baseline(self, name: str) -> list[Row]:
        genome = self.data.genome
        parts = [
            [genome.fetch(one.chrom, one.start, one.end) for one in part] for part in self.splits
        ]
        rows = BASELINES[name](*parts)
        return [
            self._row(
                row["model"], "baseline", row["bits_per_base"], 3 * row["contexts"], row["n_bases"]
            )
            for row in rows
        ]

    def checkpoint(self, path: Path, name: str, seed: int | None) -> list[Row]:
        self._check_split(path)
        task = load_task(path, CausalLanguageModel)
        assert isinstance(task, CausalLanguageModel)
        model, genome = task.model.eval(), self.data.genome
        scored = stream_log_likelihood(model, genome, intervals=self.splits.test)
        values = np.concatenate([part.log_likelihood for part in scored]).astype(np.float64)
        bits = -float(np.nanmean(values)) / math.log(2)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        return [self._row(name, "model", bits, parameters, int(np.isfinite(values).sum()), seed)]

    def _check_split(self, path: Path) -> None:
        """Checks that the test bases were no training bases of a checkpoint.

        Raises:
            DataError: if it was trained on this genome with another split.
        """
        trained = load_data(path, GenomeData)
        if Path(trained.fasta).name != Path(self.data.fasta).name:
            return  # another genome
        for key in _SPLIT:
            if trained.hparams[key] != self.data.hparams[key]:
                raise DataError(
                    f"was trained with data.{key} {trained.hparams[key]!r}, the comparison has "
                    f"{self.data.hparams[key]!r}: it may have been trained on test bases",
                    path=path,
                )

    def values(self, config: Path, seed: int) -> Values:
        own = {key: self.data.hparams[key] for key in _SPLIT}
        return {"data": {"fasta": self.data.fasta, **own, "seed": seed}}
