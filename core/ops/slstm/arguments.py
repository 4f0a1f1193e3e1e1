"""The arguments of the sLSTM's recurrence as a record, and the state that it carries."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

NAME = "slstm"


class Arguments(NamedTuple):
    """A call of the kernels.

    Attributes:
        gates: (B, L, 4, H, P).
        recurrent: (H, 4P, P).
        first: h, c, n and m before position 0, (4, B, H, P).
        resets: bool (B, L).
    """

    gates: Tensor
    recurrent: Tensor
    first: Tensor
    resets: Tensor | None


class Kept(NamedTuple):
    """What the backward pass is given of the forward one.

    Attributes:
        recurrent: (H, 4P, P).
        first: (4, B, H, P).
        resets: bool (B, L).
        hs: h (B, L, H, P).
        saved: private to the kernel that saved it.
        marks: private to the CPU kernel; empty for the others.
    """

    recurrent: Tensor
    first: Tensor
    resets: Tensor | None
    hs: Tensor
    saved: Tensor
    marks: Tensor


class SLSTMState(NamedTuple):
    """What the recurrence carries: four tensors (B, H, P) of at least float32."""

    h: Tensor
    c: Tensor
    n: Tensor
    m: Tensor

    @staticmethod
    def fresh(
        batch: int, heads: int, width: int, device: torch.device | str | None, dtype: torch.dtype
    ) -> SLSTMState:
        """Returns the state at the start of a sequence.

        Args:
            batch: number of rows B.
            heads: number of heads H.
            width: width of a head P.
            device: where.
            dtype: float32 or float64.
        """
        h, c, n = torch.zeros(3, batch, heads, width, device=device, dtype=dtype).unbind(0)
        return SLSTMState(h.clone(), c.clone(), n.clone(), torch.full_like(h, -torch.inf))
