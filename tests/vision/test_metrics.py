"""Accuracy and calibration against their definitions written out."""

import pytest
import torch

from longseq.core.errors import ConfigError
from longseq.vision.metrics import CalibrationError, TopK


def test_top_k_counts_over_batches() -> None:
    torch.manual_seed(0)
    logits, target = torch.randn(50, 7), torch.randint(0, 7, (50,))
    for k in (1, 3, 9):
        metric = TopK(k)
        for part in (slice(0, 13), slice(13, 50)):
            metric.update(logits[part], target[part])
        order = logits.argsort(1, descending=True)[:, :k]
        expected = sum(int(t) in row.tolist() for t, row in zip(target, order)) / 50
        assert metric.compute().item() == pytest.approx(expected)
    with pytest.raises(ConfigError):
        TopK(0)


def test_calibration_error_is_zero_for_honest_and_large_for_sure_guesses() -> None:
    logits = torch.log(torch.tensor([[0.75, 0.25]])).repeat(100, 1)
    honest, sure = CalibrationError(), CalibrationError()
    target = torch.tensor([0] * 75 + [1] * 25)
    honest.update(logits[:40], target[:40])
    honest.update(logits[40:], target[40:])
    sure.update(20 * torch.nn.functional.one_hot(torch.zeros(100, dtype=torch.int64), 2).float(), target)
    assert honest.compute().item() == pytest.approx(0, abs=1e-6)
    assert sure.compute().item() == pytest.approx(0.25, abs=1e-6)
