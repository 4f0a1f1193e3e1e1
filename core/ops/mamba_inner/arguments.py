"""The arguments of what a Mamba layer does between its outer maps, as records."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

NAME = "mamba_inner"


class Way(NamedTuple):
    """One direction's maps and parameters.

    Attributes:
        taps: of the convolution (D, 1, d_conv).
        conv_bias: (D,) or None.
        x_proj: the map to Δ, B and C, rank + 2 N, without a bias.
        dt_proj: that to the step sizes, from rank to D.
        A_log: log(-A) (D, N).
        D: skip (D,).
        reverse: from the last position to the first.
    """

    taps: Tensor
    conv_bias: Tensor | None
    x_proj: nn.Module
    dt_proj: nn.Module
    A_log: Tensor
    D: Tensor
    reverse: bool = False


class Arguments(NamedTuple):
    """A call of ``longseq.core.ops.mamba_inner``, which says what the arguments are."""

    xz: Tensor
    ways: tuple[Way, ...]
    scale: float

    def halves(self) -> tuple[Tensor, Tensor]:
        """Returns the input and the gate, each (B, L, D)."""
        x, z = self.xz.chunk(2, dim=-1)
        return x, z
