"""Vision: image classification with state-space models, beside logistic regression on the
pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from longseq.core.exports import lazy

if TYPE_CHECKING:
    from longseq.vision.data.images import FORMATS
    from longseq.vision.data.module import ImageData
    from longseq.vision.models.registry import create_model, list_models
    from longseq.vision.task import ImageClassifier

# Packages of the `vision` extra that the domain needs; the command line checks them before it
# starts.
REQUIRES = ("torchvision", "PIL", "pandas", "pyarrow", "sklearn")

_EXPORTS = {
    "FORMATS": "longseq.vision.data.images",
    "ImageClassifier": "longseq.vision.task",
    "ImageData": "longseq.vision.data.module",
    "create_model": "longseq.vision.models.registry",
    "list_models": "longseq.vision.models.registry",
}
__all__ = ["FORMATS", "REQUIRES", "ImageClassifier", "ImageData", "create_model", "list_models"]
__getattr__ = lazy(__name__, _EXPORTS)
