"""The arguments of one step of a Mamba layer as records."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn


class MambaLayer(NamedTuple):
    """A layer's maps and parameters.

    Attributes:
        in_proj: the input map, to 2 D.
        taps: of the convolution (D, 1, d_conv).
        conv_bias: (D,) or None.
        x_proj: the map to Δ, B and C, rank + 2 N.
        dt_proj: that to the step sizes.
        A_log: log(-A) (D, N).
        D: skip (D,).
        out_proj: the output map.
    """

    in_proj: nn.Module
    taps: Tensor
    conv_bias: Tensor | None
    x_proj: nn.Module
    dt_proj: nn.Module
    A_log: Tensor
    D: Tensor
    out_proj: nn.Module


class Arguments(NamedTuple):
    """A call of ``longseq.core.ops.mamba_step``, which says what the arguments are."""

    x: Tensor
    conv: Tensor
    state: Tensor
    layer: MambaLayer
