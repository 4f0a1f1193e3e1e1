"""Calibration: probabilities that are right as often as they say, by one temperature, and the
picture that shows it (Guo et al. 2017, arXiv 1706.04599)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from longseq.core.errors import ConfigError
from longseq.core.figures import new_figure, save_png

BINS = 15
_LOWEST, _HIGHEST = 0.05, 20.0
_TINY = 1e-300


def tempered(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Returns softmax(z / T) of the logits z that ``probabilities`` are the softmax of.

    Args:
        probabilities: (..., K), float64; their logarithms are the logits but for a constant.
        temperature: T; 1 changes nothing, more makes them less sure.

    Raises:
        ConfigError: unless T is a positive number.
    """
    if not 0 < temperature < float("inf"):
        raise ConfigError(f"the temperature must be a positive number, got {temperature}")
    logits = np.log(probabilities.clip(min=_TINY)) / temperature
    raised = np.exp(logits - logits.max(-1, keepdims=True))
    return raised / raised.sum(-1, keepdims=True)


def cross_entropy(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Returns the mean of -log p(label) in nats.

    Args:
        probabilities: (N, K).
        labels: classes (N,).
    """
    own = probabilities[np.arange(len(labels)), labels]
    return float(-np.log(own.clip(min=_TINY)).mean())


def fit_temperature(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Returns the temperature of least cross-entropy, between 0.05 and 20.

    The cross-entropy is convex in 1 / T; its slope there, Σ (E[z] - z_label), is bisected.

    Args:
        probabilities: (N, K) of images that neither trained nor test, at least one.
        labels: their classes (N,).
    """
    logits = np.log(probabilities.clip(min=_TINY))
    own = logits[np.arange(len(labels)), labels].mean()
    low, high = 1 / _HIGHEST, 1 / _LOWEST
    for _ in range(60):
        middle = (low * high) ** 0.5
        expected = (tempered(probabilities, 1 / middle) * logits).sum(1).mean()
        low, high = (low, middle) if expected > own else (middle, high)
    return 1 / (low * high) ** 0.5


def reliability(
    probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns mean confidence, accuracy and number of images in bins of equal width, each (bins,).

    Args:
        probabilities: (N, K); the confidence is the greatest of a row.
        labels: classes (N,).
        bins: between 0 and 1; those without images have 0 everywhere.
    """
    sure, right = probabilities.max(1), probabilities.argmax(1) == labels
    place = np.minimum((sure * bins).astype(int), bins - 1)
    count = np.bincount(place, minlength=bins)
    divisor = count.clip(min=1)
    means = (np.bincount(place, one, minlength=bins) / divisor for one in (sure, right))
    confidence, accuracy = means
    return confidence, accuracy, count


def calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Returns Σ n_b / N |accuracy_b - confidence_b| over 15 bins, the expected calibration error.

    Args:
        probabilities: (N, K).
        labels: classes (N,).
    """
    confidence, accuracy, count = reliability(probabilities, labels)
    return float((count * np.abs(accuracy - confidence)).sum() / count.sum())


def draw_reliability(shown: Mapping[str, np.ndarray], labels: np.ndarray, path: str | Path) -> None:
    """Draws accuracy against confidence, and how many images are how sure, as PNG.

    Args:
        shown: probabilities (N, K) by name; the error stands beside the name.
        labels: classes (N,).
        path: the file.
    """
    figure = new_figure(4.8, 5.8)
    top, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    top.plot((0, 1), (0, 1), color="0.7", linewidth=1)
    for name, probabilities in shown.items():
        confidence, accuracy, count = reliability(probabilities, labels)
        there = count > 0
        label = f"{name}, error {calibration_error(probabilities, labels):.3f}"
        top.plot(confidence[there], accuracy[there], marker="o", label=label)
        below.stairs(count, np.linspace(0, 1, BINS + 1), label=name)
    top.set(ylabel="accuracy", title="How often the sure are right", xlim=(0, 1), ylim=(0, 1))
    below.set(xlabel="probability of the predicted class", ylabel="images")
    top.legend(loc="upper left", fontsize=8)
    save_png(figure, path)
