"""Models from files, the packaged one among them, ready to score; and how one is packaged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from torch import nn

from longseq.core.checkpoints.safe import check_state_dict, read_weights, save_weights
from longseq.core.command_line import CommandParser
from longseq.core.errors import ConfigError, DataError, with_article
from longseq.core.training.hyper import class_path
from longseq.core.training.loading import load_task
from longseq.core.training.task import BaseTask
from longseq.genomics.data.fasta import Genome
from longseq.genomics.masked_scores import MaskedScorer
from longseq.genomics.masked_task import MaskedLanguageModel
from longseq.genomics.models.language_model import DNALanguageModel
from longseq.genomics.models.masked_model import MaskedDNAModel
from longseq.genomics.streaming import DEFAULT_WINDOW
from longseq.genomics.task import CausalLanguageModel
from longseq.genomics.variant_scores import WINDOW, Scorer

PACKAGED = Path(__file__).parent / "checkpoints" / "bacteria.safetensors"
Reader = DNALanguageModel | MaskedDNAModel
CKPT_HELP = "checkpoint of a language model (the packaged model of bacterial DNA)"
_CLASSES = {class_path(cls): cls for cls in (CausalLanguageModel, MaskedLanguageModel)}


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
    task = read_task(file)
    if not isinstance(task, CausalLanguageModel):
        kind = with_article(type(task).__name__)
        raise ConfigError(f"{file}: is {kind}, not a CausalLanguageModel")
    return task.to(device)


def read_task(file: str | Path) -> BaseTask:
    """Returns the language model of a file, causal or masked, in evaluation mode.

    Args:
        file: ``.ckpt`` of ``fit``, or ``.safetensors`` of ``export`` or ``import``.

    Raises:
        DataError: if the file is unusable.
    """
    file = Path(file)
    if file.suffix != ".safetensors":
        return load_task(file, "genomics")
    state, hyper = read_weights(file)
    facts = hyper.pop("extra", None)
    cls = _CLASSES.get(str(hyper.pop("_class_path", None)))
    if cls is None or not isinstance(facts, dict):
        raise DataError(
            "holds no language model of longseq",
            path=file,
            hint="give a checkpoint of `longseq genomics fit`, or what `export` wrote",
        )
    try:
        task = cls(**hyper)
    except (TypeError, ConfigError) as error:
        raise DataError(f"its hyper-parameters do not fit: {error}", path=file) from error
    task.facts = facts
    check_state_dict(task.model, state, file)
    task.model.load_state_dict(state, strict=True)
    return task.eval()


def load_reader(checkpoint: str | Path | None, device: str = "cpu") -> tuple[Reader, int | None]:
    """Returns a causal or masked language model in evaluation mode, and the window it reads at
    once; None where it carries a state.

    Args:
        checkpoint: see ``load_model``.
        device: where.

    Raises:
        DataError: if the file is unusable.
        ConfigError: if it is another kind of model.
    """
    file = model_file(checkpoint)
    task = read_task(file)
    if isinstance(task, CausalLanguageModel):
        return task.to(device).model, task.window
    if isinstance(task, MaskedLanguageModel):
        return task.to(device).model, int(task.facts.get("length") or 0) or None
    raise ConfigError(f"{file}: is {with_article(type(task).__name__)}, not a language model")


def load_scorer(
    fasta: str | Path, checkpoint: str | Path | None, window: int | None, device: str = "cpu"
) -> Scorer | MaskedScorer:
    """Returns a scorer of variants.

    Args:
        fasta: the reference.
        checkpoint: see ``load_reader``.
        window: bases after the reference allele; of a masked model, bases read around it. None for
            256, and for the length of a masked model's training (1024 if that is not known).
        device: where.
    """
    model, reads = load_reader(checkpoint, device)
    if isinstance(model, MaskedDNAModel):
        own = reads or DEFAULT_WINDOW
        return MaskedScorer(model, Genome(fasta), own if window is None else window)
    return Scorer(model, Genome(fasta), WINDOW if window is None else window, reads)


def export(task: BaseTask, path: str | Path) -> None:
    """Writes a language model alone, as safetensors with its hyper-parameters and facts.

    Args:
        task: the model.
        path: ending in .safetensors.

    Raises:
        ConfigError: for another ending.
    """
    if Path(path).suffix != ".safetensors":
        raise ConfigError(f"--out must end in .safetensors, got {path}")
    hyper = {**dict(task.hparams), "_class_path": class_path(type(task)), "extra": task.facts}
    hyper.pop("_instantiator", None)
    save_weights(path, cast(nn.Module, task.model), hyper)


def run(argv: Sequence[str]) -> int:
    """Runs ``longseq genomics export``."""
    parser = CommandParser(
        prog="longseq genomics export",
        description="Writes a checkpoint's language model alone, as safetensors.",
    )
    parser.add_argument("--ckpt_path", help=CKPT_HELP)
    parser.add_argument("--out", required=True, help=".safetensors file to write")
    args = parser.parse_args(argv)
    export(read_task(model_file(args.ckpt_path)), args.out)
    print(f"{args.out}: {Path(args.out).stat().st_size / 1e6:.2f} MB")
    return 0
