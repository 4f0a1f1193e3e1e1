"""The arguments of the linear map as a record."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Arguments(NamedTuple):
    """A call of ``longseq.core.ops.linear.linear``, which says what the arguments are."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
