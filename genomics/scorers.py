"""A checkpoint with a reference, ready to score."""

from __future__ import annotations

from pathlib import Path

from longseq.core.errors import ConfigError
from longseq.core.training.loading import load_task
from longseq.genomics.data.fasta import Genome
from longseq.genomics.task import CausalLanguageModel
from longseq.genomics.variant_scores import Scorer


def load_model(checkpoint: str | Path, device: str = "cpu") -> CausalLanguageModel:
    """Returns a causal language model in evaluation mode.

    Args:
        checkpoint: its file.
        device: where.

    Raises:
        ConfigError: if it is another kind of model.
    """
    task = load_task(checkpoint, "genomics")
    if not isinstance(task, CausalLanguageModel):
        raise ConfigError(
            f"{checkpoint}: is a {type(task).__name__}, a CausalLanguageModel is needed"
        )
    task.eval()
    return task.to(device)


def load_scorer(
    fasta: str | Path, checkpoint: str | Path, window: int, device: str = "cpu"
) -> Scorer:
    """Returns a scorer of variants.

    Args:
        fasta: the reference.
        checkpoint: of a causal language model.
        window: bases after the reference allele.
        device: where.
    """
    task = load_model(checkpoint, device)
    return Scorer(task.model, Genome(fasta), window, task.window)
