"""Detectors and separators from files: Lightning checkpoints, the packaged ones, and how one is
packaged."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longseq.audio.witnesses.detector import WitnessDetector
from longseq.core.arrays import read_arrays, read_parameters
from longseq.core.command_line import CommandParser
from longseq.core.errors import ConfigError, DataError

if TYPE_CHECKING:  # torch and Lightning cost a scan 0.8 GB that it does not need
    import torch

    from longseq.audio.separation.task import VoiceSeparator
    from longseq.audio.task import SongDetector

PACKAGED = Path(__file__).parent / "checkpoints" / "witnesses.safetensors"
# A Mamba that was trained as docs/audio.md says: the demo's and the notebook's example.
EXAMPLE = PACKAGED.with_name("mamba_resynthesis.safetensors")
_WITNESSES = "longseq.audio.witnesses.detector.WitnessDetector"
_SEPARATOR = "longseq.audio.separation.task.VoiceSeparator"
PACKAGED_SEPARATOR = PACKAGED.with_name("separator.safetensors")


def load_detector(path: str | Path | None = None) -> Any:
    """Returns a detector in evaluation mode.

    Args:
        path: ``.ckpt`` of ``fit``, ``.safetensors`` of ``export``, or published SONICS weights
            (``pytorch_model.bin`` or the folder that holds it); None for the packaged one.

    Raises:
        DataError: if the file is unusable or of another model.
    """
    file = PACKAGED if path is None else Path(path)
    if file.is_dir() or file.suffix == ".bin":
        return load_sonics(file)
    if file.suffix != ".safetensors":
        from longseq.audio.task import SongDetector
        from longseq.core.training.loading import load_task

        task = load_task(file, SongDetector)
        assert isinstance(task, SongDetector)
        return task
    if read_parameters(file).get("_class_path") == _WITNESSES:
        return WitnessDetector.load(*read_arrays(file), file)
    from longseq.core.checkpoints.safe import read_weights

    state, hyper = read_weights(file)
    kind, extra = hyper.pop("_class_path", None), hyper.pop("extra", None)
    if kind != "longseq.audio.task.SongDetector" or not isinstance(extra, dict):
        raise DataError(
            "holds no detector of longseq",
            path=file,
            hint="give a checkpoint of `longseq audio fit` or the output of `longseq audio export`",
        )
    from longseq.audio.task import SongDetector

    return _filled(SongDetector, hyper, extra, state, file)


def load_separator(path: str | Path | None = None) -> VoiceSeparator:
    """Returns a separator in evaluation mode.

    Args:
        path: ``.ckpt`` of ``fit`` or ``.safetensors`` of ``export``; None for the packaged one.

    Raises:
        DataError: if the file is unusable or of another model.
    """
    from longseq.audio.separation.task import VoiceSeparator
    from longseq.core.checkpoints.safe import read_weights

    file = PACKAGED_SEPARATOR if path is None else Path(path)
    if file.suffix != ".safetensors":
        from longseq.core.training.loading import load_task

        task = load_task(file, VoiceSeparator)
        assert isinstance(task, VoiceSeparator)
        return task
    state, hyper = read_weights(file)
    kind, extra = hyper.pop("_class_path", None), hyper.pop("extra", None)
    if kind != _SEPARATOR or not isinstance(extra, dict):
        raise DataError(
            "holds no separator of longseq",
            path=file,
            hint="give a checkpoint of `longseq audio fit --config separation` or the output of "
            "`longseq audio export`",
        )
    return _filled(VoiceSeparator, hyper, extra, state, file)


def _filled(
    cls: type[Any], hyper: dict[str, Any], extra: dict[str, Any], state: dict[str, Any], file: Path
) -> Any:
    """Returns a task of a class in evaluation mode, of what ``export`` wrote."""
    from longseq.core.checkpoints.contents import check_sizes
    from longseq.core.checkpoints.safe import check_state_dict

    check_sizes(hyper, state, file)
    try:
        task = cls(**hyper)
        task.facts = dict(extra)
    except (TypeError, KeyError, ConfigError) as error:
        raise DataError(f"its hyper-parameters do not fit: {error}", path=file) from error
    check_state_dict(task.model, state, file)
    task.model.load_state_dict(state, strict=True)
    return task.eval()


def load_sonics(path: str | Path) -> SongDetector:
    """Returns a detector of published SONICS weights; which model it is, their shapes say.

    It is not calibrated, so that its verdict is always "uncertain".

    Args:
        path: ``pytorch_model.bin``, or the folder that holds it.

    Raises:
        DataError: if the weights are unusable, or no model fits them in every key and shape.
    """
    from longseq.audio.models.registry import MODELS, load_published
    from longseq.audio.task import SongDetector
    from longseq.core.checkpoints.layouts import read_state_dict

    file = Path(path) / "pytorch_model.bin" if Path(path).is_dir() else Path(path)
    state = read_state_dict(file)
    tokens = "encoder.st_tokenizer.{}_tokenizer.conv1d.weight"
    temporal, spectral = (state.get(tokens.format(part)) for part in ("temporal", "spectral"))
    if temporal is None or spectral is None or temporal.ndim != 3 or spectral.ndim != 3:
        raise DataError("holds no SpecTTTra: the tokenisers' weights are missing", path=file)
    clips = {"t_clip": temporal.shape[2], "f_clip": spectral.shape[2], "frames": spectral.shape[1]}
    for name in MODELS.names("spectttra*"):
        if clips.items() <= dict(MODELS[name].kwargs).items():
            break
    else:
        raise DataError(f"no published SpecTTTra has {clips}", path=file)
    blocks = {key.split(".")[3] for key in state if key.startswith("encoder.transformer.blocks.")}
    width = temporal.shape[0]
    task = SongDetector(
        model=name,
        model_kwargs={"d_model": width, "n_layers": len(blocks), "n_heads": max(1, width // 64)},
    )
    load_published(task.model, file)
    task.methods = ["the generators of SONICS, Suno and Udio"]
    return task.eval()


def export(
    task: SongDetector | VoiceSeparator, path: str | Path, dtype: torch.dtype | None = None
) -> None:
    """Writes a task's model as safetensors, with its hyper-parameters, and what the task found
    about its data: a detector's calibration, methods and songs.

    Args:
        task: the detector or separator.
        path: ending in .safetensors.
        dtype: that the weights are stored in, the model's own if None; loading makes them float32.

    Raises:
        ConfigError: for another ending.
    """
    from longseq.core.checkpoints.safe import save_weights

    if Path(path).suffix != ".safetensors":
        raise ConfigError(f"--out must end in .safetensors, got {path}")
    hyper: dict[str, Any] = {**dict(task.hparams), "extra": task.facts}
    if "checkpoint" in hyper:
        hyper["checkpoint"] = None
    hyper.pop("_instantiator", None)
    model = task.model if dtype is None else copy.deepcopy(task.model).to(dtype)
    save_weights(path, model, hyper)


def run(argv: Sequence[str]) -> int:
    """Runs ``longseq audio export``."""
    parser = CommandParser(
        prog="longseq audio export",
        description="Writes a checkpoint's detector or separator alone, as safetensors.",
    )
    parser.add_argument("--ckpt_path", required=True, help="checkpoint of `longseq audio fit`")
    parser.add_argument("--out", required=True, help=".safetensors file to write")
    parser.add_argument(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        default="float32",
        help="of the stored weights (float32); the others halve the file",
    )
    parser.add_argument(
        "--mean",
        nargs="+",
        metavar="PATH",
        default=[],
        help="further separators: what is written is the mean of all, as one separator",
    )
    args = parser.parse_args(argv)
    import torch

    from longseq.audio.separation.task import VoiceSeparator, mean_of
    from longseq.audio.task import SongDetector
    from longseq.core.training.loading import load_task

    file = Path(args.ckpt_path)
    task: Any
    if args.mean:
        task = mean_of([load_separator(path) for path in (file, *args.mean)])
    elif file.suffix == ".safetensors" and read_parameters(file).get("_class_path") == _SEPARATOR:
        task = load_separator(file)
    elif file.suffix in (".safetensors", ".bin") or file.is_dir():
        task = load_detector(file)
    else:
        task = load_task(file, "audio")
    if not isinstance(task, SongDetector | VoiceSeparator):
        raise DataError(
            f"is of {type(task).__name__}, not of a detector or separator",
            path=file,
            hint="give a checkpoint of `longseq audio fit` with one of their configurations",
        )
    export(task, args.out, getattr(torch, args.dtype))
    print(f"{args.out}: {Path(args.out).stat().st_size / 1e6:.2f} MB")
    return 0
