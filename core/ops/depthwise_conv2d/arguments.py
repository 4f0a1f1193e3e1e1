"""The arguments of the depthwise convolution of maps as a record."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from longseq.core.errors import ArgumentError
from longseq.core.ops.arguments import check_device, check_kind, check_shape, present

NAME = "depthwise_conv2d"


class Arguments(NamedTuple):
    """A call of ``longseq.core.ops.depthwise_conv2d``, which says what the arguments are."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    silu: bool


def check(call: Arguments) -> None:
    """Checks kinds, shapes and devices.

    Raises:
        ArgumentError: naming the argument that does not fit.
    """
    x, weight, bias, _ = call
    check_kind(NAME, True, x=x, weight=weight, **present(bias=bias))
    if x.ndim != 4 or min(x.shape[1:]) < 1:
        raise ArgumentError(
            f"{NAME}: x must be (batch, height ≥ 1, width ≥ 1, channels ≥ 1), got {tuple(x.shape)}"
        )
    channels = x.shape[3]
    if (
        weight.ndim != 4
        or weight.shape[:2] != (channels, 1)
        or not all(side % 2 for side in weight.shape[2:])
    ):
        raise ArgumentError(
            f"{NAME}: weight must be ({channels}, 1, height, width) with odd sides, got "
            f"{tuple(weight.shape)}"
        )
    if bias is not None:
        check_shape(NAME, "bias", bias, (channels,), "(channels,)")
    check_device(NAME, x, {"weight": weight, "bias": bias})
