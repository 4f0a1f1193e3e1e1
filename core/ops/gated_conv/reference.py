"""The gated convolution as direct sums."""

from __future__ import annotations

from torch import Tensor

from longseq.core.ops.causal_conv1d import causal_conv1d_reference
from longseq.core.ops.fft_conv import fft_conv_reference
from longseq.core.ops.gated_conv.arguments import Arguments, check


def gated_conv_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    kernel: Tensor,
    skip: Tensor | None = None,
    shift: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The four operators as direct sums, O(L²); same arguments and results."""
    check(Arguments(x, weight, bias, kernel, skip, shift))
    x = x if shift is None else x + shift.to(x.dtype)
    first, factor, value = causal_conv1d_reference(x, weight, bias).chunk(3, -1)
    u = factor * value
    return first * fft_conv_reference(u, kernel, skip), u
