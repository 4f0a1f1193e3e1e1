"""Vision: classification, segmentation and restoration of images with state-space models, beside
plain baselines."""

from __future__ import annotations

from typing import TYPE_CHECKING

from longseq.core.exports import lazy

if TYPE_CHECKING:
    from longseq.vision.data.images import FORMATS
    from longseq.vision.data.module import ImageData
    from longseq.vision.data.restoration import RestorationData
    from longseq.vision.data.segmentation import SegmentationData
    from longseq.vision.models.registry import create_model, list_models
    from longseq.vision.models.unet import create_segmenter
    from longseq.vision.restoration import Restoration
    from longseq.vision.segmentation import Segmentation
    from longseq.vision.task import ImageClassifier

# Packages of the `vision` extra that the domain needs; the command line checks them before it
# starts.
REQUIRES = ("torchvision", "PIL", "pandas", "pyarrow", "sklearn", "skimage")

_EXPORTS = {
    "FORMATS": "longseq.vision.data.images",
    "ImageClassifier": "longseq.vision.task",
    "ImageData": "longseq.vision.data.module",
    "Restoration": "longseq.vision.restoration",
    "RestorationData": "longseq.vision.data.restoration",
    "Segmentation": "longseq.vision.segmentation",
    "SegmentationData": "longseq.vision.data.segmentation",
    "create_model": "longseq.vision.models.registry",
    "create_segmenter": "longseq.vision.models.unet",
    "list_models": "longseq.vision.models.registry",
}
__all__ = [
    "FORMATS",
    "REQUIRES",
    "ImageClassifier",
    "ImageData",
    "Restoration",
    "RestorationData",
    "Segmentation",
    "SegmentationData",
    "create_model",
    "create_segmenter",
    "list_models",
]
__getattr__ = lazy(__name__, _EXPORTS)
