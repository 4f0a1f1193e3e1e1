"""What a network that finds manipulations must beat: unlike noise, and JPEG ghosts."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from longseq.core.results import Score
from longseq.vision.data.pixels import unit
from longseq.vision.data.segmentation import SegmentationData
from longseq.vision.manipulation.forging import compressed

_QUALITIES = (55, 60, 65, 70, 75, 80, 85, 90, 95)
Map = Callable[[np.ndarray], np.ndarray]


def noise_map(picture: np.ndarray, window: int = 9) -> np.ndarray:
    """Returns how far the local variance of the noise is from the picture's median, in octaves,
    float64 (H, W).

    Args:
        picture: bytes (H, W, 3).
        window: side of the neighbourhood in pixels.
    """
    from scipy import ndimage

    taps = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]]) / 4
    grey = picture.astype(np.float64).mean(2)
    noise = ndimage.convolve(grey, taps, mode="mirror")
    variance = ndimage.uniform_filter(noise**2, window, mode="mirror")
    levels = np.log2(variance + 0.05)
    return abs(levels - np.median(levels))


def ghost_map(picture: np.ndarray, window: int = 9) -> np.ndarray:
    """Returns how far the quality at which compression changes a place least is from the picture's
    median, float64 (H, W): a JPEG ghost (Farid 2009).

    Args:
        picture: bytes (H, W, 3).
        window: side of the neighbourhood in pixels.
    """
    from scipy import ndimage

    changes = []
    for quality in _QUALITIES:
        change = (compressed(picture, quality).astype(np.float64) - picture) ** 2
        changes.append(ndimage.uniform_filter(change.mean(2), window, mode="mirror"))
    stack = np.stack(changes)
    low, high = stack.min(0), stack.max(0)
    share = (stack - low) / np.maximum(high - low, 1e-9)
    # The mean quality, weighted towards where the change is least.
    weight = np.exp(-8 * share)
    quality = np.tensordot(np.asarray(_QUALITIES, float), weight, 1) / weight.sum(0)
    return abs(quality - np.median(quality))


def best_threshold(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> float:
    """Returns the threshold on maps with the greatest F1 over all pixels together.

    Args:
        pairs: a map and the true mask of every image.
    """
    known = list(pairs)
    values = np.concatenate([one.ravel() for one, _ in known])
    truth = np.concatenate([mask.ravel() for _, mask in known])
    found, best = -np.inf, -1.0
    for threshold in [-np.inf, *np.quantile(values, np.linspace(0.3, 0.995, 60))]:
        score = f1(values > threshold, truth)
        if score > best:
            found, best = float(threshold), score
    return found


def f1(found: np.ndarray, truth: np.ndarray) -> float:
    """Returns the harmonic mean of precision and recall; 1 where both are empty."""
    total = int(found.sum()) + int(truth.sum())
    return 2 * int((found & truth).sum()) / total if total else 1.0


def _images(data: SegmentationData, part: str) -> list[tuple[np.ndarray, np.ndarray]]:
    pairs = data.pairs[part]
    found = []
    for i in range(len(pairs)):
        image, classes = pairs.pair(i)
        picture = (255 * unit(image)).round().clamp(0, 255).permute(1, 2, 0).numpy()
        found.append((picture.astype(np.uint8), classes.numpy() == 1))
    return found


def manipulation_baselines(data: SegmentationData) -> list[Score]:
    """Returns the F1 of replaced pixels on the test images, of everything marked, of unlike noise
    and of JPEG ghosts; thresholds are chosen on the validation images.

    Args:
        data: images of three channels with masks of two classes.
    """
    valid, test = _images(data, "valid"), _images(data, "test")
    scores = [Score("everything", _total(test, lambda one: np.ones(one.shape[:2]), 0.5))]
    maps: dict[str, Map] = {"local variance of the noise": noise_map, "JPEG ghosts": ghost_map}
    for name, make in maps.items():
        threshold = best_threshold((make(picture), mask) for picture, mask in valid)
        scores.append(Score(name, _total(test, make, threshold)))
    return scores


def _total(images: list[tuple[np.ndarray, np.ndarray]], make: Map, threshold: float) -> float:
    found = np.concatenate([(make(picture) > threshold).ravel() for picture, _ in images])
    return f1(found, np.concatenate([mask.ravel() for _, mask in images]))
