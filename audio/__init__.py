"""Audio: real or synthetic song, from whole files, beside logistic regression on spectral statistics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from longseq.audio.models.registry import create_model, list_models

# Packages of the `audio` extra that the domain needs; the command line checks them before it starts.
REQUIRES = ("soundfile", "soxr", "sklearn")

__all__ = ["REQUIRES", "create_model", "list_models"]


def __getattr__(name: str) -> Any:
    # Imported on first use, so that `longseq --help` does not wait for torch.
    if name in ("create_model", "list_models"):
        from longseq.audio.models import registry

        return getattr(registry, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
