"""The arguments of the causal convolution as a record, and what they must be."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from longseq.core.errors import ArgumentError
from longseq.core.ops.arguments import check_device, check_kind, check_resets, check_shape, present

NAME = "causal_conv1d"
MAX_WIDTH = 32
"""Widest kernel: a longer one is a long convolution, see ``longseq.core.ops.fft_conv``."""


class Arguments(NamedTuple):
    """A call of ``longseq.core.ops.causal_conv1d``, which says what the arguments are."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    initial_state: Tensor | None
    resets: Tensor | None
    silu: bool


def silu(activation: str | None) -> bool:
    """Returns whether an activation is "silu"; None is none.

    Raises:
        ArgumentError: for another one.
    """
    if activation not in (None, "silu"):
        raise ArgumentError(f"{NAME}: activation must be 'silu' or None, got {activation!r}")
    return activation == "silu"


def checked(call: Arguments) -> Arguments:
    """Checks all arguments; returns them with resets as bool.

    Raises:
        ArgumentError: naming the argument that does not fit.
    """
    x, weight, bias, initial_state, resets, _ = call
    optional = present(bias=bias, initial_state=initial_state)
    check_kind(NAME, True, x=x, weight=weight, **optional)
    if x.dim() != 3 or x.shape[1] == 0:
        raise ArgumentError(
            f"{NAME}: x must be (batch, length ≥ 1, channels), got {tuple(x.shape)}"
        )
    batch, length, channels = x.shape
    check_shape(NAME, "x", x, x.shape, "(batch, length, channels)")
    if weight.dim() != 2 or not 1 <= weight.shape[1] <= MAX_WIDTH:
        raise ArgumentError(
            f"{NAME}: weight must be (channels, 1 to {MAX_WIDTH} taps), got {tuple(weight.shape)}"
        )
    width = weight.shape[1]
    check_shape(NAME, "weight", weight, (channels, width), "(channels, taps)")
    if bias is not None:
        check_shape(NAME, "bias", bias, (channels,), "(channels,)")
    if initial_state is not None:
        check_shape(
            NAME,
            "initial_state",
            initial_state,
            (batch, width - 1, channels),
            "(batch, taps - 1, channels)",
        )
    resets = check_resets(NAME, resets, batch, length)
    named = {"weight": weight, "bias": bias, "initial_state": initial_state, "resets": resets}
    check_device(NAME, x, named)
    return call if resets is None else call._replace(resets=resets)
