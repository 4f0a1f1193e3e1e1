"""The arguments of the gated convolution as a record, and what they must be."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from longseq.core.errors import ArgumentError
from longseq.core.ops.arguments import check_kind, present
from longseq.core.ops.causal_conv1d import MAX_WIDTH

NAME = "gated_conv"


class Arguments(NamedTuple):
    """A call of ``longseq.core.ops.gated_conv``, which says what the arguments are."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    kernel: Tensor
    skip: Tensor | None = None
    shift: Tensor | None = None


def check(call: Arguments) -> None:
    """Checks shapes.

    Raises:
        ArgumentError: naming the argument that does not fit.
    """
    x, weight, bias, kernel, skip, shift = call
    optional = present(bias=bias, skip=skip, shift=shift)
    check_kind(NAME, True, x=x, weight=weight, kernel=kernel, **optional)
    if x.ndim != 3 or x.shape[1] < 1 or x.shape[2] % 3:
        raise ArgumentError(
            f"{NAME}: x must be (B, L, 3D) with L of at least 1, got {tuple(x.shape)}"
        )
    width, inner = x.shape[2] // 3, x.shape[2]
    if weight.ndim != 2 or weight.shape[0] != inner or not 1 <= weight.shape[1] <= MAX_WIDTH:
        raise ArgumentError(
            f"{NAME}: weight must be ({inner}, W), W from 1 to {MAX_WIDTH}, got "
            f"{tuple(weight.shape)}"
        )
    for name, vector in (("bias", bias), ("shift", shift)):
        if vector is not None and vector.shape != (inner,):
            raise ArgumentError(f"{NAME}: {name} must be ({inner},), got {tuple(vector.shape)}")
    if kernel.ndim != 2 or kernel.shape[0] != width or kernel.shape[1] < 1:
        raise ArgumentError(f"{NAME}: kernel must be ({width}, taps), got {tuple(kernel.shape)}")
    if skip is not None and skip.shape != (width,):
        raise ArgumentError(f"{NAME}: skip must be ({width},), got {tuple(skip.shape)}")
