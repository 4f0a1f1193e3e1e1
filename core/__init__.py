"""The core of longseq: operators, mixers, backbone and training machinery shared by every
science."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from longseq.core import lean_imports

if TYPE_CHECKING:
    from longseq.core.backbone import Backbone
    from longseq.core.language_model import LanguageModel
    from longseq.core.mixers import Mixer, create_mixer, list_mixers

__version__ = "0.1.0"
__all__ = [
    "Backbone",
    "LanguageModel",
    "Mixer",
    "__version__",
    "create_mixer",
    "list_mixers",
]

lean_imports.install()


def __getattr__(name: str) -> Any:
    # Imported on first use, so that `longseq --help` does not wait for torch.
    if name == "Backbone":
        from longseq.core.backbone import Backbone

        return Backbone
    if name == "LanguageModel":
        from longseq.core.language_model import LanguageModel

        return LanguageModel
    if name in ("Mixer", "create_mixer", "list_mixers"):
        from longseq.core import mixers

        return getattr(mixers, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
