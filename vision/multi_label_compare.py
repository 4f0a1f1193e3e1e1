"""Labels of images beside plain baselines, after ``longseq vision test``."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from longseq.core.compare import Row
from longseq.vision.baselines import STRENGTHS, pixels
from longseq.vision.data.labels import MultiLabelData
from longseq.vision.multi_label import MultiLabelClassifier
from longseq.vision.shown_by_test import ShownByTest

_IMAGES = 10_000
_SIDE = 32


def mean_average_precision(chances: np.ndarray, targets: np.ndarray) -> float:
    """Returns the mean of the labels' average precision, of those that an image has.

    Args:
        chances: (N, K), higher where a label is likelier.
        targets: (N, K) of 0 and 1.
    """
    from torchmetrics.functional.classification import multilabel_average_precision

    there = targets.sum(0) > 0
    scores = multilabel_average_precision(
        torch.from_numpy(chances), torch.from_numpy(targets).long(), targets.shape[1], "none"
    )
    return float(scores.numpy()[there].mean()) if there.any() else float("nan")


class LabelRegression:
    """A logistic regression for every label on the pixels; a label that all training images have,
    or none, has its share.

    Args:
        strength: inverse regularisation strength.
    """

    def __init__(self, strength: float) -> None:
        self.strength = strength

    def fit(self, x: np.ndarray, y: np.ndarray) -> LabelRegression:
        """x: rows of pixels (N, P); y: labels (N, K)."""
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression

        self._mean = x.mean(0)
        self._scale = float((x - self._mean).std()) or 1.0
        self._models: list[Any] = []
        for column in y.T:
            if column.min() == column.max():
                self._models.append(float(column[0]))
                continue
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                model = LogisticRegression(C=self.strength, max_iter=200)
                self._models.append(model.fit((x - self._mean) / self._scale, column))
        return self

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Returns probabilities (N, K) of rows of pixels."""
        rows = (x - self._mean) / self._scale
        columns = [
            np.full(len(x), one) if isinstance(one, float) else one.predict_proba(rows)[:, 1]
            for one in self._models
        ]
        return np.stack(columns, 1)


class MultiLabelComparison(ShownByTest):
    """Mean average precision on the test images beside chance and a regression on the pixels.

    Args:
        data: with test images.
    """

    shows = "labels"
    baselines = {"share": "", "logistic_regression": ""}
    score = "map"
    columns = {"model": "", "kind": "", "map": ".6f", "seed": "d", "verdict": ""}
    lower_is_better = False
    at_test = ("share", "logistic_regression")

    def __init__(self, data: MultiLabelData) -> None:
        self.data = data

    @classmethod
    def of_test(cls, task: Any, data: Any) -> MultiLabelComparison | None:
        if not isinstance(task, MultiLabelClassifier) or not isinstance(data, MultiLabelData):
            return None
        return cls(data) if len(data.parts["test"]) else None

    @property
    def metric(self) -> str:
        return "mean average precision"

    @property
    def title(self) -> str:
        return f"Test set, {len(self.data.parts['test']):,} images, {len(self.data.classes)} labels"

    def tested(self, task: Any, metrics: Mapping[str, float]) -> Row:
        return Row(str(task.hparams["model"]), "model", metrics["map"])

    def baseline(self, name: str) -> list[Row]:
        parts, size = self.data.parts, min(self.data.img_size, _SIDE)
        x_test, y_test = pixels(parts["test"], size)
        if name == "share":
            chances = np.zeros_like(y_test)
            return [Row("chance", "baseline", mean_average_precision(chances, y_test))]
        x, y = pixels(parts["train"], size, _IMAGES)
        strength = STRENGTHS[len(STRENGTHS) // 2]
        if len(parts["valid"]):
            x_valid, y_valid = pixels(parts["valid"], size)
            scores = [
                mean_average_precision(LabelRegression(one).fit(x, y).predict(x_valid), y_valid)
                for one in STRENGTHS
            ]
            strength = (
                STRENGTHS[int(np.nanargmax(scores))] if np.isfinite(scores).any() else strength
            )
        found = LabelRegression(strength).fit(x, y).predict(x_test)
        return [Row("logistic regression", "baseline", mean_average_precision(found, y_test))]
