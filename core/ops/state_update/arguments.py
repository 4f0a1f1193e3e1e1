"""The arguments of one step of a diagonal state-space layer as a record."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor


class Arguments(NamedTuple):
    """A call of ``longseq.core.ops.state_update``, which says what the arguments are."""

    state: Tensor
    x: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None = None
    z: Tensor | None = None
    dt_bias: Tensor | None = None
    dt_softplus: bool = False
    dt_limit: tuple[float, float] = (0.0, math.inf)
    log_decay: bool = False

    def limited(self) -> bool:
        """Returns whether the step size has bounds."""
        return tuple(self.dt_limit) != (0.0, math.inf)
