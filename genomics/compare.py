"""``longseq genomics compare``: language models beside Markov models and experts that learn as they
read, on held-out regions of one genome."""

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
from longseq.core.training.loading import load_data
from longseq.genomics.baselines import BASELINES
from longseq.genomics.data.module import TEST_FRACTION, GenomeData
from longseq.genomics.data.regions import Interval
from longseq.genomics.data.samples import SAMPLES
from longseq.genomics.experts import Experts, mixture_bits, network_logs
from longseq.genomics.metrics import perplexity
from longseq.genomics.models.language_model import DNALanguageModel
from longseq.genomics.predict import stream_log_likelihood
from longseq.genomics.scorers import load_model
from longseq.genomics.streaming import stream_log_probs
from longseq.genomics.task import CausalLanguageModel

# What decides which bases are the test's.
_SPLIT = ("bed", "valid_chromosomes", "test_chromosomes", "valid_fraction", "test_fraction")


class GenomeComparison(Comparison):
    """Bits per base of the test regions, each read from its first base to its last.

    Where the experts are among the baselines, every model is also scored as one of them.

    Args:
        data: the genome and its split.
        check: whether the split must leave bases to train on, as is needed but beside a test.
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

    def __init__(self, data: GenomeData, check: bool = True) -> None:
        self.data, self.splits = data, data.splits()
        self._with_experts = False
        if not check:
            return
        data.setup("fit")
        if not self.splits.test:
            raise DataError("the split leaves no bases for the test", path=data.title)

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        names = ", ".join(SAMPLES.names())
        parser.add_argument(
            "--data", required=True, help=f"genome files by commas, or samples: {names}"
        )
        parser.add_argument("--bed", help="BED file with the split (by fraction)")
        parser.add_argument(
            "--valid_fraction", type=float, default=0.05, help="for validation (0.05)"
        )
        parser.add_argument(
            "--test_fraction", type=float, default=TEST_FRACTION, help="for the test (0.1)"
        )

    @classmethod
    def of(cls, args: argparse.Namespace) -> Iterator[GenomeComparison]:
        fractions = {"valid_fraction": args.valid_fraction, "test_fraction": args.test_fraction}
        files = args.data.split(",")
        data = files[0] if len(files) == 1 else files
        yield cls(GenomeData(data, args.bed, **fractions))

    at_test = ("markov",)

    @classmethod
    def of_test(cls, task: Any, data: Any) -> GenomeComparison | None:
        known = isinstance(task, CausalLanguageModel) and isinstance(data, GenomeData)
        return cls(data, check=False) if known else None

    @property
    def _regions(self) -> list[Interval]:
        """What is scored: what ``test`` has read, all of a genome that is new to the model."""
        return self.data.tested or self.splits.test

    def tested(self, task: Any, metrics: Mapping[str, float]) -> Row:
        parameters = sum(parameter.numel() for parameter in task.model.parameters())
        bases = sum(len(interval) for interval in self._regions)
        return self._row(
            str(task.hparams["mixer"]), "model", metrics["bits_per_base"], parameters, bases
        )

    @property
    def metric(self) -> str:
        return "bits per base"

    @property
    def title(self) -> str:
        bases = sum(len(interval) for interval in self._regions)
        return f"{self.data.title}: {bases:,} test bases in {len(self._regions)} regions"

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
        if not set(self._regions) <= set(self.splits.test):
            raise DataError(
                "all of it was tested, so that no base of it is left to learn from",
                path=self.data.title,
                hint="longseq genomics compare scores the checkpoint and baselines on its last "
                "tenth",
            )
        self._with_experts |= name == "experts"
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
        task = load_model(path)
        self._check_split(path, task)
        model, genome = task.model.eval(), self.data.genome
        scored = stream_log_likelihood(
            model, genome, intervals=self.splits.test, window=task.window
        )
        values = np.concatenate([part.log_likelihood for part in scored]).astype(np.float64)
        bits = -float(np.nanmean(values)) / math.log(2)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        bases = int(np.isfinite(values).sum())
        rows = [self._row(name, "model", bits, parameters, bases, seed)]
        if self._with_experts:
            both = self._with_network(model, task.window)
            rows.append(self._row(f"experts + {name}", "model", both, parameters, bases, seed))
        return rows

    def _with_network(self, model: DNALanguageModel, window: int | None) -> float:
        """Returns bits per base of the mixture of all experts and a model."""
        parts = [
            [self.data.genome.fetch(one.chrom, one.start, one.end) for one in part]
            for part in self.splits
        ]
        logs = []
        for one in (*self.splits.valid, *self.splits.test):
            chunks = stream_log_probs(model, self.data.genome, [one], window=window)
            logs.append(np.concatenate([network_logs(chunk.log_probs) for chunk in chunks]))
        train, valid, test = parts
        return mixture_bits(Experts(networks=1), [*train, *valid], test, logs)[0]

    def _check_split(self, path: Path, task: CausalLanguageModel) -> None:
        """Checks that the test bases were no training bases of a checkpoint.

        Raises:
            DataError: if it was trained on this genome with another split.
        """
        if path.suffix == ".safetensors":  # knows its genomes, but not how they were split
            if set(task.facts.get("genomes", ())) & set(self.data.genome.checksums()):
                raise DataError("was trained on this genome, perhaps on test bases", path=path)
            return
        trained = load_data(path, GenomeData)
        before, now = ({Path(one).name for one in data.files} for data in (trained, self.data))
        known = set(task.facts.get("genomes", ())) & set(self.data.genome.checksums())
        if not before & now and not known:
            return  # another genome
        for key in _SPLIT:
            if _said(trained, key) != _said(self.data, key):
                raise DataError(
                    f"was trained with data.{key} {trained.hparams[key]!r}, the comparison has "
                    f"{self.data.hparams[key]!r}: it may have been trained on test bases",
                    path=path,
                )

    def values(self, config: Path, seed: int) -> Values:
        own = {key: self.data.hparams[key] for key in _SPLIT}
        return {"data": {"fasta": self.data.hparams["fasta"], **own, "seed": seed}}


def _said(data: GenomeData, key: str) -> Any:
    """Returns what decides on a split; the default fraction by its value."""
    value = data.hparams[key]
    return TEST_FRACTION if key == "test_fraction" and value is None else value
