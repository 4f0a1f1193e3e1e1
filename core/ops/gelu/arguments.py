"""The arguments of the GELU as a record."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Arguments(NamedTuple):
    """A call of ``longseq.core.ops.gelu.biased_gelu``, which says what the arguments are."""

    x: Tensor
    bias: Tensor
