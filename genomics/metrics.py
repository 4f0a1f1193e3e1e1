"""Metrics of DNA language models: bits per base, and perplexity per base."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric

from longseq.core.errors import ConfigError
from longseq.genomics.data.tokenizer import IGNORE_INDEX


def bits_per_base(nll_nats_sum: float, n: int) -> float:
    """Returns the mean cost of a base in bits; 2 is the cost under a uniform model.

    Args:
        nll_nats_sum: sum of -ln p over the bases.
        n: number of bases.

    Raises:
        ConfigError: if there are no bases.
    """
    if n < 1:
        raise ConfigError("no base was scored, so there is no mean over bases")
    return nll_nats_sum / (n * math.log(2))


def perplexity(bits: float) -> float:
    """Returns 2 to the power of the bits per base: the effective number of choices, 4 if
    uniform."""
    return 2.0**bits


def token_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """Returns -ln p of every target in nats, float32, 0 where the target is -100.

    Args:
        logits: shape (..., L, V).
        targets: shape (..., L).
    """
    flat = F.cross_entropy(
        logits.reshape(-1, logits.shape[-1]).float(),
        targets.reshape(-1),
        reduction="none",
        ignore_index=IGNORE_INDEX,
    )
    return flat.reshape(targets.shape)


class BitsPerBase(Metric):
    """Mean cost of a base in bits over all batches and processes, in float64.

    Targets of -100 (N, padding) do not count.
    """

    full_state_update = False
    higher_is_better = False
    is_differentiable = False
    nll: Tensor
    bases: Tensor

    def __init__(self) -> None:
        super().__init__()
        # float32 loses whole bases after about 10^7 of them; a chromosome has 10^8.
        self.add_state("nll", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("bases", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, nll: Tensor, targets: Tensor) -> None:
        """Adds a batch.

        Args:
            nll: -ln p of every target in nats, for example of :func:`token_nll`, shape (B, L).
            targets: shape (B, L).
        """
        counted = targets != IGNORE_INDEX
        self.nll += nll.detach().to(torch.float64)[counted].sum()
        self.bases += counted.sum()

    def compute(self) -> Tensor:
        """Returns bits per base, float64, shape (); NaN before the first base."""
        # An integer times a Python float would be float32.
        return self.nll / (self.bases.to(torch.float64) * math.log(2))


class CodingF1(Metric):
    """F1 of coding bases: state 0 is no gene, any other is right only where it is the same."""

    full_state_update = False
    higher_is_better = True
    is_differentiable = False
    shared: Tensor
    found: Tensor
    wanted: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("shared", "found", "wanted"):
            self.add_state(name, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Adds a batch of states, int64 (n,) both."""
        self.shared += ((preds == target) & (target > 0)).sum()
        self.found += (preds > 0).sum()
        self.wanted += (target > 0).sum()

    def compute(self) -> Tensor:
        """Returns the F1, float64, shape (); NaN where nothing is coding on either side."""
        return 2 * self.shared.double() / (self.found + self.wanted)
