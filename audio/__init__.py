"""Audio: real or synthetic song, from whole files, beside logistic regression on spectral
statistics."""

from __future__ import annotations

from typing import TYPE_CHECKING

from longseq.core.exports import lazy

if TYPE_CHECKING:
    from longseq.audio.data.decoders import FORMATS
    from longseq.audio.data.module import SongData
    from longseq.audio.export import load_detector
    from longseq.audio.models.registry import create_model, list_models
    from longseq.audio.task import SongDetector

# Packages of the `audio` extra that the domain needs; the command line checks them before it
# starts.
REQUIRES = ("soundfile", "soxr", "sklearn")

_EXPORTS = {
    "FORMATS": "longseq.audio.data.decoders",
    "SongData": "longseq.audio.data.module",
    "SongDetector": "longseq.audio.task",
    "create_model": "longseq.audio.models.registry",
    "list_models": "longseq.audio.models.registry",
    "load_detector": "longseq.audio.export",
}
__all__ = [
    "FORMATS",
    "REQUIRES",
    "SongData",
    "SongDetector",
    "create_model",
    "list_models",
    "load_detector",
]
__getattr__ = lazy(__name__, _EXPORTS)
