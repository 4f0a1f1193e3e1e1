"""The GELU in torch's operations."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def biased_gelu_reference(x: Tensor, bias: Tensor) -> Tensor:
    """The same in operations of torch."""
    return F.gelu(x + bias)
