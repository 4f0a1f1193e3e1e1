"""Means over classes are of those that the images have, as scikit-learn takes them."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, balanced_accuracy_score

from longseq.vision.metrics import MeanRecall
from longseq.vision.multi_label import ByLabel


def test_a_class_that_no_image_has_does_not_count() -> None:
    # Predicted once, it had a recall of 0.
    generator = np.random.default_rng(0)
    truth, found = generator.integers(0, 4, 90), generator.integers(0, 6, 90)
    metric = MeanRecall(6)
    for part in (slice(0, 40), slice(40, 90)):
        metric.update(torch.from_numpy(found[part]), torch.from_numpy(truth[part]))
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        wanted = balanced_accuracy_score(truth, found)
    assert float(metric.compute()) == pytest.approx(wanted, abs=1e-6)
    metric.reset()
    with pytest.warns(UserWarning, match="before the"):
        assert float(metric.compute()) == 0


def test_a_label_that_no_image_has_has_no_average_precision() -> None:
    generator = np.random.default_rng(1)
    chances = generator.random((80, 4))
    truth = (generator.random((80, 4)) < [0.5, 0.2, 0.1, 0]).astype(int)
    metric = ByLabel(4, average="macro")
    metric.update(torch.from_numpy(chances), torch.from_numpy(truth))
    wanted = np.mean([average_precision_score(truth[:, i], chances[:, i]) for i in range(3)])
    assert float(metric.compute()) == pytest.approx(wanted, abs=1e-6)
    assert np.isnan(metric.scores()[3][0])
