"""The position-wise network as the operators that it is made of, and in torch's operations."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from longseq.core.ops.linear import linear


def composed(x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor) -> Tensor:
    """The same by one operator after another."""
    return linear(F.gelu(linear(x, weight1, bias1)), weight2, bias2)


def gelu_mlp_reference(
    x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor
) -> Tensor:
    """The same in operations of torch."""
    return F.linear(F.gelu(F.linear(x, weight1, bias1)), weight2, bias2)
