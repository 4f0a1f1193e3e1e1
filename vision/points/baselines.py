"""What a classifier of point clouds must beat: the most frequent class, and a random forest on the
distribution of distances between points."""

from __future__ import annotations

from typing import Any

import numpy as np

from longseq.core.results import Score
from longseq.vision.points.data import PointClouds

_PAIRS, _BINS, _REACH = 4096, 64, 3.0


def distance_histogram(points: np.ndarray, seed: int = 0) -> np.ndarray:
    """Returns the D2 distribution (Osada et al. 2002): shares of distances between pairs of points,
    in multiples of their mean; no turn and no scale changes it.

    Args:
        points: (N, 3).
        seed: of the pairs.
    """
    random = np.random.default_rng(seed)
    # Pairs of different points, in the order of their coordinates: that of the file is no matter.
    points = points[np.lexsort(points.T)]
    first = random.integers(len(points), size=_PAIRS)
    second = (first + random.integers(1, max(len(points), 2), size=_PAIRS)) % len(points)
    distances = np.linalg.norm(points[first] - points[second], axis=1)
    scaled = distances / max(distances.mean(), 1e-12)
    return np.histogram(scaled.clip(0, _REACH), _BINS, (0, _REACH))[0] / _PAIRS


def _table(clouds: Any) -> tuple[np.ndarray, np.ndarray]:
    items = [clouds[i] for i in range(len(clouds))]
    features = np.stack([distance_histogram(points) for points, _ in items])
    return features, np.array([label for _, label in items])


def cloud_baselines(data: PointClouds, trees: int = 300) -> list[Score]:
    """Returns test accuracies of the most frequent class and of a random forest on D2.

    Args:
        data: whose training clouds the forest is fitted on, as they are.
        trees: of the forest.
    """
    from sklearn.ensemble import RandomForestClassifier

    known, labels = _table(data.parts["train"])
    forest = RandomForestClassifier(trees, min_samples_leaf=2, random_state=data.seed)
    forest.fit(known, labels)
    features, truth = _table(data.parts["test"])
    most = np.bincount(labels).argmax()
    return [
        Score("most frequent class", float((truth == most).mean())),
        Score("random forest on distances (D2)", float((forest.predict(features) == truth).mean())),
    ]
