"""Bits per base and perplexity."""

import math

import pytest
import torch

from longseq.core.errors import ConfigError
from longseq.genomics.metrics import BitsPerBase, bits_per_base, perplexity, token_nll


def test_uniform_model_costs_two_bits():
    assert bits_per_base(10 * math.log(4), 10) == pytest.approx(2.0)
    assert perplexity(2.0) == 4.0
    with pytest.raises(ConfigError, match="no base"):
        bits_per_base(0.0, 0)


def test_metric_over_batches_ignores_padding():
    torch.manual_seed(0)
    metric, total, n = BitsPerBase(), 0.0, 0
    for length in (5, 9):
        logits, targets = torch.randn(2, length, 16), torch.randint(7, 11, (2, length))
        targets[0, :3] = -100
        nll = token_nll(logits, targets)
        assert nll.shape == targets.shape and (nll[0, :3] == 0).all()
        metric.update(nll, targets)
        picked = logits.log_softmax(-1).gather(-1, targets.clamp(min=0)[..., None])[..., 0]
        total -= picked[targets != -100].sum().item()
        n += int((targets != -100).sum())
    assert metric.compute().item() == pytest.approx(bits_per_base(total, n), rel=1e-6)


def test_metric_is_exact_over_many_bases():
    metric = BitsPerBase().half()
    targets = torch.full((1, 1000), 7)
    nll = torch.full((1, 1000), math.log(2), dtype=torch.float64)
    metric.nll += 2.0**40 * math.log(2)
    metric.bases += 2**40
    metric.update(nll, targets)
    assert metric.nll.dtype == torch.float64 and metric.bases.item() == 2**40 + 1000
    assert metric.compute().item() == pytest.approx(1.0, abs=1e-12)
    metric.reset()
    with pytest.warns(UserWarning, match="before the"):
        assert metric.compute().isnan()


def test_metric_ignores_nan_at_padding():
    metric = BitsPerBase()
    metric.update(torch.tensor([[float("nan"), math.log(4)]]), torch.tensor([[-100, 8]]))
    assert metric.compute().item() == pytest.approx(2.0, rel=1e-6)
