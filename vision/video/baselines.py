"""What a classifier of clips must beat: the most frequent class, and the path of what changes."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from longseq.core.results import Score
from longseq.vision.video.mattes import background_difference
from longseq.vision.video.moving_shapes import MOTIONS, MovingShapes

_FITTED_ON = 400


def path_features(frames: Tensor) -> np.ndarray:
    """Returns the path of the changing pixels' centre: (B, 2 L), in pixels from its own mean.

    Args:
        frames: (B, L, C, H, W).
    """
    weight = (background_difference(frames)[:, :, 0] - 0.06).clamp(min=0) + 1e-6
    total = weight.sum((2, 3))
    centres = [
        (weight.sum(axis) * torch.arange(weight.shape[axis ^ 1])).sum(2) / total for axis in (2, 3)
    ]
    path = torch.stack(centres, 2)
    return (path - path.mean(1, keepdim=True)).flatten(1).numpy()


def motion_baselines(data: MovingShapes) -> list[Score]:
    """Returns test accuracies of the most frequent class and of logistic regression on the path of
    the pixels that differ from the clip's median.

    Args:
        data: clips; the regression is fitted on training clips.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    clips = data.clips("train", _FITTED_ON)
    known = [clips[i] for i in range(_FITTED_ON)]
    labels = np.array([int(one["label"]) for one in known])
    features = path_features(torch.stack([one["frames"] for one in known]))
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    model.fit(features, labels)
    most = np.bincount(labels, minlength=len(MOTIONS)).argmax()
    hits = np.zeros(2)
    count = 0
    for batch in data.evaluation("test"):
        truth = batch["label"].numpy()
        found = model.predict(path_features(batch["frames"]))
        hits += [(truth == most).sum(), (truth == found).sum()]
        count += len(truth)
    names = ("most frequent class", "logistic regression on the path")
    return [Score(name, float(hit / count)) for name, hit in zip(names, hits)]
