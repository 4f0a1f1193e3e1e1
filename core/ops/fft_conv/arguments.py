"""The arguments of the long convolution as a record, and what they must be."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from longseq.core.errors import ArgumentError
from longseq.core.ops.arguments import check_kind, present

NAME = "fft_conv"


class Arguments(NamedTuple):
    """A call of ``longseq.core.ops.fft_conv``, which says what the arguments are."""

    u: Tensor
    k: Tensor
    skip: Tensor | None = None
    history: Tensor | None = None
    segment_ids: Tensor | None = None


def work_dtype(*tensors: Tensor) -> torch.dtype:
    """Returns the dtype in which a convolution is computed: float64 if any tensor is, else
    float32."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def check(call: Arguments) -> None:
    """Checks shapes.

    Raises:
        ArgumentError: naming the argument that does not fit.
    """
    u, k, skip, history, ids = call
    check_kind(NAME, True, u=u, k=k, **present(skip=skip, history=history))
    if u.ndim != 3 or u.shape[1] < 1:
        raise ArgumentError(
            f"{NAME}: u must be (B, L, D) with L of at least 1, got {tuple(u.shape)}"
        )
    batch, length, width = u.shape
    if k.ndim != 2 or k.shape[0] != width or k.shape[1] < 1:
        raise ArgumentError(f"{NAME}: k must be ({width}, taps), got {tuple(k.shape)}")
    if skip is not None and skip.shape != (width,):
        raise ArgumentError(f"{NAME}: skip must be ({width},), got {tuple(skip.shape)}")
    if history is not None and (
        history.ndim != 3 or (history.shape[0], history.shape[2]) != (batch, width)
    ):
        raise ArgumentError(
            f"{NAME}: history must be ({batch}, H, {width}), got {tuple(history.shape)}"
        )
    if ids is not None and ids.shape != (batch, length):
        raise ArgumentError(
            f"{NAME}: segment_ids must be ({batch}, {length}), got {tuple(ids.shape)}"
        )
