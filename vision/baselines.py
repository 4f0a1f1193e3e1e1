"""The plain baseline of image classification: logistic regression on the pixels."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from longseq.core.errors import ConfigError, DataError
from longseq.vision.data.parts import Part
from longseq.vision.data.pixels import unit

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1)
_MAX_SIDE = (
    32  # a linear map gains nothing from finer pixels, and 224² · 3 columns would not fit in memory
)


def pixels(
    part: Part, size: int, limit: int | None = None, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the images of a part as rows of pixels in [0, 1], float32 (N, C·S·S), and their
    labels (N,).

    Args:
        part: the images.
        size: side in pixels that the model sees; at most 32 are used here.
        limit: at most so many images, drawn at random; None for all.
        seed: of the draw.
    """
    side, chosen = min(size, _MAX_SIDE), np.arange(len(part))
    if limit is not None and limit < len(part):
        chosen = np.sort(np.random.default_rng(seed).permutation(len(part))[:limit])
    rows, kept = [], []
    for index in chosen.tolist():
        try:
            rows.append(_resized(part.image(index), side).flatten())
            kept.append(index)
        except DataError as error:
            part.note(index, error)
    if not rows:
        raise ConfigError("the baseline needs images, and none can be read")
    return torch.stack(rows).numpy(), part.targets(kept)


def _resized(image: Tensor, side: int) -> Tensor:
    """Returns an image's centre square as float32 (C, side, side)."""
    height, width = image.shape[1:]
    square = min(height, width)
    top, left = (height - square) // 2, (width - square) // 2
    image = unit(image[:, top : top + square, left : left + square])
    if square == side:
        return image
    return F.interpolate(
        image[None], (side, side), mode="bilinear", antialias=True, align_corners=False
    )[0]


class PixelRegression:
    """Multinomial logistic regression on centred pixels; its strength is chosen on validation data.

    Args:
        strengths: inverse regularisation strengths C to choose from.
        max_iter: iterations of L-BFGS for the final fit.
        search_rows: training rows that the search for C uses.
    """

    def __init__(
        self, strengths: Sequence[float] = STRENGTHS, max_iter: int = 200, search_rows: int = 5000
    ) -> None:
        if not strengths:
            raise ConfigError("there is no strength to choose from")
        self.strengths, self.max_iter, self.search_rows = tuple(strengths), max_iter, search_rows
        self.strength = float("nan")

    def fit(
        self, x: np.ndarray, y: np.ndarray, x_valid: np.ndarray, y_valid: np.ndarray
    ) -> PixelRegression:
        """Chooses C on the validation rows, then fits all training rows.

        Args:
            x: training rows (N, P).
            y: their classes (N,).
            x_valid: validation rows (M, P).
            y_valid: their classes (M,).
        """
        self._mean = x.mean(0, dtype=np.float64).astype(np.float32)
        self._scale = float((x - self._mean).std()) or 1.0
        if len(x_valid) and len(self.strengths) > 1:
            chosen = np.random.default_rng(0).permutation(len(x))[: self.search_rows]
            # C weighs the sum over rows: the same penalty a row needs a larger C on fewer rows.
            ratio = len(x) / len(chosen)
            scores = {}
            for strength in self.strengths:
                model = self._fit(x[chosen], y[chosen], strength * ratio, 60)
                scores[strength] = float((model.predict(self._scaled(x_valid)) == y_valid).mean())
            self.strength = max(scores, key=lambda strength: scores[strength])
        else:
            self.strength = self.strengths[len(self.strengths) // 2]
        self._model = self._fit(x, y, self.strength, self.max_iter)
        return self

    def _scaled(self, x: np.ndarray) -> np.ndarray:
        return (x - self._mean) / self._scale

    def _fit(self, x: np.ndarray, y: np.ndarray, strength: float, iterations: int):  # type: ignore[no-untyped-def]
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression

        with warnings.catch_warnings():
            # Stopping early is a choice here: what counts is the accuracy, which is flat by then.
            warnings.simplefilter("ignore", ConvergenceWarning)
            return LogisticRegression(C=strength, max_iter=iterations, tol=1e-4).fit(
                self._scaled(x), y
            )

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Returns classes (N,) of rows of pixels (N, P)."""
        return self._model.predict(self._scaled(x))

    def probabilities(self, x: np.ndarray) -> np.ndarray:
        """Returns the classes' probabilities (N, K), in ascending order of the classes."""
        return self._model.predict_proba(self._scaled(x))
