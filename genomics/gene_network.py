"""A trained ``GeneLabelling`` as what a gene finder tells reading frames by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from longseq.core.errors import ConfigError, with_article
from longseq.core.training.loading import load_task
from longseq.genomics.data.fasta import Genome
from longseq.genomics.data.gene_labels import STATES
from longseq.genomics.data.splits import Interval
from longseq.genomics.embeddings import ordered_vectors
from longseq.genomics.gene_finder import GeneFinder
from longseq.genomics.gene_model import GeneModel, Genes
from longseq.genomics.gene_task import GeneLabelling
from longseq.genomics.masked_scores import blocks
from longseq.genomics.progress import progress_bar
from longseq.genomics.streaming import DEFAULT_WINDOW, reach

# What a base's logarithm of odds counts in a gene's score: each has seen its neighbours, so that
# their sum counts the same evidence many times over, and starts would count for nothing beside it.
WEIGHT = 0.1
_LIMIT = 10.0  # nats of a base


def load_labeller(checkpoint: str | Path, device: str = "cpu") -> GeneLabelling:
    """Returns a trained network in evaluation mode.

    Args:
        checkpoint: of ``fit``.
        device: where.

    Raises:
        DataError: if the file is unusable.
        ConfigError: if it is another kind of model.
    """
    task = load_task(Path(checkpoint), "genomics")
    if not isinstance(task, GeneLabelling):
        kind = with_article(type(task).__name__)
        raise ConfigError(f"{checkpoint}: is {kind}, not a GeneLabelling")
    return task.to(device).eval()


def read_states(
    task: GeneLabelling,
    genome: Genome,
    chunk: int = 2048,
    progress: Callable[[int], object] | None = None,
) -> dict[str, np.ndarray]:
    """Returns ln p of the states of every base of every record, float32 (n, 7).

    A causal encoder reads each record from both ends with a carried state; another one windows of
    its training's length, of which the middle half counts.

    Args:
        task: in evaluation mode.
        genome: the records.
        chunk: bases at once.
        progress: called with the bases read, again and again: two for each base.
    """
    encoder, found = task.model.encoder, {}
    known = int(task.facts.get("length") or DEFAULT_WINDOW)
    width = encoder.backbone.d_model
    for name, size in genome.records.items():
        logs = np.empty((size, STATES), np.float32)
        whole = Interval(name, 0, size)
        if encoder.backbone.causal:
            window = reach(encoder, known)
            for part in ordered_vectors(encoder, genome, [whole], "both", chunk, window, progress):
                values = torch.from_numpy(part.values).to(task.device)
                with torch.inference_mode():
                    logits = task.model.read(values[:, :width], values[:, width:])
                logs[part.start : part.start + len(values)] = _logs(logits)
        else:
            for one in blocks(whole, known):
                ids = torch.from_numpy(genome.fetch(name, one.low, one.high).astype(np.int64))
                lengths = torch.tensor([len(ids)], device=task.device)
                with torch.inference_mode():
                    logits = task.model(ids[None].to(task.device), lengths)[0]
                logs[one.start : one.end] = _logs(logits[one.start - one.low : one.end - one.low])
                if progress is not None:
                    progress(2 * (one.end - one.start))
        found[name] = logs
    return found


def _logs(logits: torch.Tensor) -> np.ndarray:
    return logits.float().log_softmax(-1).cpu().numpy()


class NetworkModel(GeneModel):
    """A gene model whose reading frames are worth what a network says of their bases; starts, their
    binding sites and distances of genes are those of a model that was learnt.

    Args:
        learnt: for starts and distances.
        words: whether the learnt model's own words of six count beside the network.
    """

    def __init__(self, learnt: GeneModel, words: bool = False) -> None:
        super().__init__(learnt.code)
        self.__dict__.update(learnt.__dict__)
        self.words, self.odds = words, np.zeros((2, 3, 0), np.float32)
        self.shares = np.ones(1) if not words else learnt.shares
        self._strand = 0

    def begin(self, logs: np.ndarray) -> None:
        """Takes what is known of the part of a record that is looked at next.

        Args:
            logs: ln p of the states (n, 7).
        """
        odds = WEIGHT * np.clip(logs[:, 1:] - logs[:, :1], -_LIMIT, _LIMIT).T
        self.odds = np.stack([odds[:3], odds[3:, ::-1]])
        self._strand = 0

    def along(self, bases: np.ndarray) -> np.ndarray:
        """See ``GeneModel.along``: for one strand, then for the other."""
        odds = self.odds[self._strand % 2][None]
        self._strand += 1
        return odds if not self.words else odds + super().along(bases)


class NetworkFinder(GeneFinder):
    """Finds genes by a network's states.

    Args:
        finder: a gene finder that has learnt, for starts and distances.
        words: see ``NetworkModel``.
    """

    def __init__(self, finder: GeneFinder, words: bool = False) -> None:
        super().__init__(finder.model.code, finder.closed)
        self.model: NetworkModel = NetworkModel(finder.model, words)
        self._logs = np.zeros((0, STATES), np.float32)

    def find_by(self, ids: np.ndarray, logs: np.ndarray, circular: bool = False) -> Genes:
        """Returns the genes of a sequence, in order.

        Args:
            ids: token ids (n,).
            logs: ln p of its bases' states (n, 7).
            circular: see ``GeneFinder.find``.
        """
        self._logs = logs
        return self.find(ids, circular)

    def prepare(self, start: int, size: int) -> None:
        """See ``GeneFinder.prepare``."""
        at = (start + np.arange(size)) % max(len(self._logs), 1)
        self.model.begin(self._logs[at])


def by_network(
    labeller: GeneLabelling, finder: GeneFinder, genome: Genome, circular: Sequence[str]
) -> dict[str, dict[str, Genes]]:
    """Returns the genes of every record by a network's states, alone and with the gene model.

    Args:
        labeller: in evaluation mode.
        finder: that has learnt.
        genome: the records.
        circular: records that are circles.
    """
    with progress_bar("reading both strands", 2 * sum(genome.records.values())) as progress:
        states = read_states(labeller, genome, progress=progress)
    found: dict[str, dict[str, Genes]] = {}
    for label, words in (("network", False), ("network + gene model", True)):
        own = NetworkFinder(finder, words)
        found[label] = {
            name: own.find_by(genome.fetch(name, 0, size), states[name], name in circular)
            for name, size in genome.records.items()
        }
    return found
