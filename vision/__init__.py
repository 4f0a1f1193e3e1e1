"""Vision: image classification with state-space models, beside logistic regression on the pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from longseq.vision.models.registry import create_model, list_models

# Packages of the `vision` extra that the domain needs; the command line checks them before it starts.
REQUIRES = ("torchvision", "PIL", "pandas", "pyarrow", "sklearn")

__all__ = ["REQUIRES", "create_model", "list_models"]


def __getattr__(name: str) -> Any:
    # Imported on first use, so that `longseq --help` does not wait for torch.
    if name in ("create_model", "list_models"):
        from longseq.vision.models import registry

        return getattr(registry, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
