"""Audio models by name: ``create_model``, ``list_models``, and published SpecTTTra weights read
strictly."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import Tensor, nn

from longseq.audio.calibration import Segment
from longseq.audio.models.detector import MambaDetector
from longseq.audio.models.spectttra import SpecTTTra
from longseq.core.checkpoints.layouts import read_state_dict
from longseq.core.checkpoints.safe import check_state_dict
from longseq.core.registry import Preset, Registry


class SongModel(Protocol):
    """What every audio model offers, besides being an ``nn.Module``."""

    @property
    def sample_rate(self) -> int:
        """Of the audio that it takes, Hz."""

    def __call__(self, audio: Tensor, equaliser: Tensor | None = None) -> Tensor:
        """Maps audio (B, N) to log-odds (B,) that it is synthetic."""

    def segments(self, chunks: Iterable[np.ndarray]) -> Iterator[Segment]:
        """Yields the scored segments of a recording that comes in chunks."""


MODELS: Registry[Preset] = Registry("model")
MODELS.add(
    "mamba", Preset(MambaDetector, {}, "mel frames of whole songs, streamed with a carried state")
)
for _letter, _f_clip, _t_clip in (("alpha", 1, 3), ("beta", 3, 5), ("gamma", 5, 7)):
    for _seconds, _frames in ((5, 128), (120, 3744)):
        _kwargs = {
            "seconds": float(_seconds),
            "frames": _frames,
            "f_clip": _f_clip,
            "t_clip": _t_clip,
        }
        _help = f"SpecTTTra-{_letter} on {_seconds} s, published layout"
        MODELS.add(f"spectttra_{_letter}_{_seconds}s", Preset(SpecTTTra, _kwargs, _help))


def list_models(pattern: str = "*") -> list[str]:
    """Returns the names of all models that match a shell pattern, sorted.

    Args:
        pattern: for example ``"spectttra*"``.
    """
    return MODELS.names(pattern)


def create_model(name: str, *, checkpoint: str | Path | None = None, **kwargs: Any) -> Any:
    """Makes an audio model by name; a ``SongModel``.

    Args:
        name: one of ``list_models()``.
        checkpoint: weights: published ``pytorch_model.bin`` (or its folder), safetensors, or a
            state dict.
        **kwargs: the model's hyper-parameters.

    Raises:
        ConfigError: for an unknown name or hyper-parameter, with the nearest valid one.
        DataError: if the checkpoint is unusable or of another model.
    """
    model = MODELS[name].create(name, **kwargs)
    if checkpoint is not None:
        load_published(model, checkpoint)
    return model


def load_published(model: nn.Module, path: str | Path) -> None:
    """Loads published weights into a model; every key and shape must fit.

    Args:
        model: from ``create_model``.
        path: ``pytorch_model.bin``, the folder that holds it, or safetensors.

    Raises:
        DataError: naming the missing and unexpected keys, if the file is of another model or
            unusable.
    """
    file = Path(path)
    if file.is_dir():
        file = file / "pytorch_model.bin"
    state = read_state_dict(file)
    check_state_dict(model, state, file)
    model.load_state_dict(state, strict=True)
