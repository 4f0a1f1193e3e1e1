"""The arguments of the gated norms as a record."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Arguments(NamedTuple):
    """A call of either norm.

    Attributes:
        y: values (..., width).
        z: gate (..., width).
        weight: (width,).
        u: what passes by the norm (..., width), or None.
        skip: its weight (width,), or None.
        groups: of channels.
        centred: whether the mean is taken off.
        norm_first: whether the gate multiplies the normalised value or what is normalised.
        eps: added to the mean square.
    """

    y: Tensor
    z: Tensor
    weight: Tensor
    u: Tensor | None
    skip: Tensor | None
    groups: int
    centred: bool
    norm_first: bool
    eps: float
