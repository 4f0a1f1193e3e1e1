"""Linear maps whose bias is added by the operator behind them, in the pass that it makes anyway."""

from __future__ import annotations

from torch import Tensor, nn

from longseq.core.ops.glu import biased_glu
from longseq.core.ops.linear_maps import split_bias, split_bias_of_gelu


def mix_gelu(mixing: nn.Module, dropout: nn.Dropout, x: Tensor) -> Tensor:
    """Returns ``mixing(dropout(gelu(x)))``; a ``LinearGLU`` keeps x alone for the backward, not
    gelu(x) too.

    Args:
        mixing: the map after the activation.
        dropout: between the two.
        x: (..., width).
    """
    if isinstance(mixing, LinearGLU) and not (dropout.training and dropout.p):
        return biased_glu(*split_bias_of_gelu(mixing[0], x))
    mixed: Tensor = mixing(dropout(nn.functional.gelu(x)))
    return mixed


class LinearGLU(nn.Sequential):
    """A linear map to twice the width, then a gated linear unit, which adds the map's bias.

    Args:
        width: of the input.
        d_model: of the output.
    """

    def __init__(self, width: int, d_model: int) -> None:
        super().__init__(nn.Linear(width, 2 * d_model), nn.GLU(-1))

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) to (..., d_model)."""
        return biased_glu(*split_bias(self[0], x))
