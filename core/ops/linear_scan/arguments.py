"""The arguments of the linear scan's kernels as a record."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Arguments(NamedTuple):
    """A call of the kernels: a and b (B, L, D), the initial state (B, D); all real or all
    complex."""

    a: Tensor
    b: Tensor
    initial_state: Tensor | None
