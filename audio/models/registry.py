"""Audio models by name: ``create_model``, ``list_models``, and published SpecTTTra weights read strictly."""

from __future__ import annotations

import fnmatch
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import Tensor, nn

from longseq.audio.models.detector import MambaDetector, Segment
from longseq.audio.models.spectttra import SpecTTTra
from longseq.core.checkpoints.layouts import read_state_dict
from longseq.core.checkpoints.safe import check_state_dict
from longseq.core.errors import ConfigError, did_you_mean


class SongModel(Protocol):
    """What every audio model offers, besides being an ``nn.Module``."""

    @property
    def sample_rate(self) -> int:
        """Of the audio that it takes, Hz."""

    def __call__(self, audio: Tensor, equaliser: Tensor | None = None) -> Tensor:
        """Maps audio (B, N) to log-odds (B,) that it is synthetic."""

    def segments(self, chunks: Iterable[np.ndarray]) -> Iterator[Segment]:
        """Yields the scored segments of a recording that comes in chunks."""


@dataclass(frozen=True)
class Preset:
    """A named model.

    Args:
        cls: the class.
        kwargs: its hyper-parameters where they differ from the defaults.
        help: one line.
    """

    cls: Callable[..., nn.Module]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    help: str = ""


_PRESETS = {"mamba": Preset(MambaDetector, {}, "mel frames of whole songs, streamed with a carried state")}
for _letter, _f_clip, _t_clip in (("alpha", 1, 3), ("beta", 3, 5), ("gamma", 5, 7)):
    for _seconds, _frames in ((5, 128), (120, 3744)):
        _PRESETS[f"spectttra_{_letter}_{_seconds}s"] = Preset(
            SpecTTTra,
            {"seconds": float(_seconds), "frames": _frames, "f_clip": _f_clip, "t_clip": _t_clip},
            f"SpecTTTra-{_letter} on {_seconds} s, published layout",
        )


def list_models(pattern: str = "*") -> list[str]:
    """Returns the names of all models that match a shell pattern, sorted.

    Args:
        pattern: for example ``"spectttra*"``.
    """
    return sorted(fnmatch.filter(_PRESETS, pattern))


def describe_model(name: str) -> str:
    """Returns one line about a model.

    Args:
        name: one of ``list_models()``.
    """
    return _preset(name).help


def _preset(name: str) -> Preset:
    if name not in _PRESETS:
        raise ConfigError(f"no model named {name!r}; {did_you_mean(name, _PRESETS)}")
    return _PRESETS[name]


def create_model(name: str, *, checkpoint: str | Path | None = None, **kwargs: Any) -> Any:
    """Makes an audio model by name; a ``SongModel``.

    Args:
        name: one of ``list_models()``.
        checkpoint: weights: published ``pytorch_model.bin`` (or its folder), safetensors, or a state dict.
        **kwargs: the model's hyper-parameters.

    Raises:
        ConfigError: for an unknown name or hyper-parameter, with the nearest valid one.
        DataError: if the checkpoint is unusable or of another model.
    """
    preset = _preset(name)
    accepted = [key for key in inspect.signature(preset.cls).parameters if key != "self"]
    for key in kwargs:
        if key not in accepted:
            raise ConfigError(f"model {name!r} has no hyper-parameter {key!r}; {did_you_mean(key, accepted)}")
    model = preset.cls(**{**preset.kwargs, **kwargs})
    if checkpoint is not None:
        load_published(model, checkpoint)
    return model


def load_published(model: nn.Module, path: str | Path) -> None:
    """Loads published weights into a model; every key and shape must fit.

    Args:
        model: from ``create_model``.
        path: ``pytorch_model.bin``, the folder that holds it, or safetensors.

    Raises:
        DataError: naming the missing and unexpected keys, if the file is of another model or unusable.
    """
    file = Path(path)
    if file.is_dir():
        file = file / "pytorch_model.bin"
    state = read_state_dict(file)
    check_state_dict(model, state, file)
    model.load_state_dict(state, strict=True)
