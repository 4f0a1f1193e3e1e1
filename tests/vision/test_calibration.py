"""Temperatures are those that probabilities were spoilt by; errors are torchmetrics' own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from longseq.core.errors import ConfigError
from longseq.vision.calibration import (
    calibration_error,
    cross_entropy,
    draw_reliability,
    fit_temperature,
    reliability,
    tempered,
)


def drawn(count: int, classes: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities, and classes that are drawn from them."""
    random = np.random.default_rng(seed)
    logits = 1.5 * random.normal(size=(count, classes))
    true = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = (random.random((count, 1)) > true.cumsum(1)).sum(1).clip(max=classes - 1)
    return true, labels


@pytest.mark.parametrize("spoilt", [0.4, 1.0, 3.0])
def test_the_temperature_is_found_again(spoilt: float) -> None:
    true, labels = drawn(20_000)
    sharp = tempered(true, 1 / spoilt)
    found = fit_temperature(sharp, labels)
    assert found == pytest.approx(spoilt, rel=0.05)
    best = cross_entropy(tempered(sharp, found), labels)
    for other in (0.97 * found, 1.03 * found):
        assert best < cross_entropy(tempered(sharp, other), labels)
    if spoilt != 1:
        repaired = calibration_error(tempered(sharp, found), labels)
        assert repaired < 0.02 < calibration_error(sharp, labels)


def test_a_temperature_is_a_division_of_the_logits() -> None:
    logits = np.random.default_rng(0).normal(size=(5, 3))
    both = [torch.softmax(torch.from_numpy(logits) / t, 1).numpy() for t in (1.0, 2.5)]
    np.testing.assert_allclose(tempered(both[0], 2.5), both[1], rtol=1e-12)
    sure = tempered(np.array([[1.0, 0.0, 0.0]]), 2.0)  # no number of its own for log 0
    assert np.isfinite(sure).all() and sure.sum() == pytest.approx(1)
    for bad in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="temperature must be a positive number"):
            tempered(both[0], bad)


def test_always_right_and_always_wrong_end_at_the_limits() -> None:
    chances = tempered(np.eye(3)[[0, 1, 2]] * 0.8 + 0.1, 1.0)
    assert fit_temperature(chances, np.array([0, 1, 2])) == pytest.approx(0.05, rel=1e-6)
    assert fit_temperature(chances, np.array([1, 2, 0])) == pytest.approx(20, rel=1e-6)


def test_the_error_is_torchmetrics_own(tmp_path: Path) -> None:
    true, labels = drawn(500, seed=1)
    for spoilt in (1.0, 0.3):
        chances = tempered(true, spoilt)
        peer = multiclass_calibration_error(
            torch.from_numpy(chances), torch.from_numpy(labels), num_classes=4, n_bins=15
        )
        assert calibration_error(chances, labels) == pytest.approx(float(peer), abs=1e-6)
    confidence, accuracy, count = reliability(np.array([[0.3, 0.7], [0.0, 1.0]]), np.array([0, 1]))
    assert count.sum() == 2 and count[10] == count[14] == 1  # certainty lies in the last bin
    assert (confidence[10], accuracy[10], accuracy[14]) == (0.7, 0.0, 1.0)
    draw_reliability({"one": true}, labels, tmp_path / "r.png")
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")
