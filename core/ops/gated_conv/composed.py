"""The gated convolution as four operators, one after another."""

from __future__ import annotations

from torch import Tensor

from longseq.core.ops.causal_conv1d import causal_conv1d
from longseq.core.ops.fft_conv import fft_conv
from longseq.core.ops.gated_conv.arguments import Arguments


def run(call: Arguments) -> tuple[Tensor, Tensor]:
    """Runs a checked call."""
    x, weight, bias, kernel, skip, shift = call
    x = x if shift is None else x + shift.to(x.dtype)
    first, factor, value = causal_conv1d(x, weight, bias)[0].chunk(3, -1)
    u = factor * value
    return first * fft_conv(u, kernel, skip), u
