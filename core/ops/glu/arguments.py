"""The arguments of the gated linear unit as a record."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Arguments(NamedTuple):
    """A call of ``longseq.core.ops.glu.biased_glu``, which says what the arguments are."""

    x: Tensor
    bias: Tensor | None
