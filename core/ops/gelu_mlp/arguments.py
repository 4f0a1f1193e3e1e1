"""The arguments of the position-wise network as a record."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

NAME = "gelu_mlp"


class Arguments(NamedTuple):
    """A call of ``longseq.core.ops.gelu_mlp.gelu_mlp``, which says what the arguments are."""

    x: Tensor
    weight1: Tensor
    bias1: Tensor
    weight2: Tensor
    bias2: Tensor
