"""Models from files, the packaged one among them, ready to score; and how one is packaged."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from longseq.core.checkpoints.safe import check_state_dict, read_weights, save_weights
from longseq.core.errors import ConfigError, DataError
from longseq.core.training.loading import load_task
from longseq.genomics.data.fasta import Genome
from longseq.genomics.task import CausalLanguageModel
from longseq.genomics.variant_scores import Scorer

PACKAGED = Path(__file__).parent / "checkpoints" / "bacteria.safetensors"
CKPT_HELP = "checkpoint of a language model (the packaged model of bacterial DNA)"
_CLASS = "longseq.genomics.task.CausalLanguageModel"


def model_file(checkpoint: str | Path | None) -> Path:
    """Returns a checkpoint's file: the packaged one's for None."""
    return PACKAGED if checkpoint is None else Path(checkpoint)


def load_model(checkpoint: str | Path | None = None, device: str = "cpu") -> CausalLanguageModel:
    """Returns a causal language model in evaluation mode.

    Args:
        checkpoint: ``.ckpt`` of ``fit``, or ``.safetensors`` of ``export``; None for the packaged
            model.
        device: where.

    Raises:
        DataError: if the file is unusable.
        ConfigError: if it is another kind of model.
    """
    file = model_file(checkpoint)
    if file.suffix != ".safetensors":
        task = load_task(file, "genomics")
        if not isinstance(task, CausalLanguageModel):
            raise ConfigError(f"{file}: is a {type(task).__name__}, not a CausalLanguageModel")
        task.eval()
        return task.to(device)
    state, hyper = read_weights(file)
    facts = hyper.pop("extra", None)
    if hyper.pop("_class_path", None) != _CLASS or not isinstance(facts, dict):
        raise DataError(
            "holds no language model of longseq",
            path=file,
            hint="give a checkpoint of `longseq genomics fit`, or what `export` wrote",
        )
    try:
        task = CausalLanguageModel(**hyper)
    except (TypeError, ConfigError) as error:
        raise DataError(f"its hyper-parameters do not fit: {error}", path=file) from error
    task.facts = facts
    check_state_dict(task.model, state, file)
    task.model.load_state_dict(state, strict=True)
    task.eval()
    return task.to(device)


def load_scorer(
    fasta: str | Path, checkpoint: str | Path | None, window: int, device: str = "cpu"
) -> Scorer:
    """Returns a scorer of variants.

    Args:
        fasta: the reference.
        checkpoint: see ``load_model``.
        window: bases after the reference allele.
        device: where.
    """
    task = load_model(checkpoint, device)
    return Scorer(task.model, Genome(fasta), window, task.window)


def export(task: CausalLanguageModel, path: str | Path) -> None:
    """Writes a language model alone, as safetensors with its hyper-parameters and facts.

    Args:
        task: the model.
        path: ending in .safetensors.

    Raises:
        ConfigError: for another ending.
    """
    if Path(path).suffix != ".safetensors":
        raise ConfigError(f"--out must end in .safetensors, got {path}")
    hyper = {**dict(task.hparams), "_class_path": _CLASS, "extra": task.facts}
    hyper.pop("_instantiator", None)
    save_weights(path, task.model, hyper)


def run(argv: Sequence[str]) -> int:
    """Runs ``longseq genomics export``."""
    parser = argparse.ArgumentParser(
        prog="longseq genomics export",
        description="Writes a checkpoint's language model alone, as safetensors.",
    )
    parser.add_argument("--ckpt_path", required=True, help="checkpoint of `longseq genomics fit`")
    parser.add_argument("--out", required=True, help=".safetensors file to write")
    args = parser.parse_args(argv)
    export(load_model(args.ckpt_path), args.out)
    print(f"{args.out}: {Path(args.out).stat().st_size / 1e6:.2f} MB")
    return 0
