"""In what precision and range operators compute: the dtype of their arithmetic, what autocast does
to arguments, and values whose squares would overflow."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from longseq.core.ops.arguments import readable


def compute_dtype(*tensors: Tensor | None) -> torch.dtype:
    """Returns float64 if any argument is float64 (or complex128), else float32."""
    wide = (torch.float64, torch.complex128)
    return (
        torch.float64 if any(t is not None and t.dtype in wide for t in tensors) else torch.float32
    )


def autocast_off(tensor: Tensor) -> AbstractContextManager[object]:
    """Returns a context in which autocast leaves operations on the tensor's device alone.

    Args:
        tensor: on any device, the meta device included, which has no autocast.
    """
    device = tensor.device.type
    return nullcontext() if device == "meta" else torch.autocast(device, enabled=False)


def autocast_dtype(tensor: Tensor) -> torch.dtype | None:
    """Returns the dtype of autocast on the tensor's device; None where it is off, as on the meta
    device."""
    device = tensor.device.type
    if device == "meta" or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)


def lowered(*activations: Tensor) -> tuple[Tensor, ...]:
    """Returns activations in autocast's dtype where it is on, as the compiled operators' autocast
    rule does.

    Gates, decays, skips and states are not activations: they stay as they are, and are at least
    float32 in the kernels.

    Args:
        *activations: on one device; float64 ones are returned as they are.
    """
    dtype = autocast_dtype(activations[0])
    if dtype is None:
        return activations
    return tuple(x if x.dtype == torch.float64 else x.to(dtype) for x in activations)


def bounded(x: Tensor, dim: int | tuple[int, ...] = -1) -> Tensor:
    """Returns x with what would overflow in a norm made smaller: a row whose greatest magnitude is
    above 2^32 (2^256 in float64) is multiplied by one factor that brings it to 2^16 (2^128).

    A norm divides by the row's own size, so that the factor drops out of it, and the eps in it is
    far below the rounding of such a row. Other rows come back bit by bit. Without this, squares
    above 1e38 are infinite in float32 and a row's norm is zero in silence; gradients, which take
    the root's third power, are wrong above 1e13 already.

    Args:
        x: (..., N), float32, float64 or bfloat16; float16 has no such values.
        dim: of the rows.
    """
    largest = 2.0**256 if x.dtype == torch.float64 else 2.0**32
    if x.device.type == "cpu" and readable(x):
        if x.numel() == 0:
            return x
        low, high = x.detach().aminmax()
        if -largest <= float(low) and float(high) <= largest:
            return x
    greatest = x.detach().abs().amax(dim, keepdim=True)
    # Of a row with an infinity, the factor 0 makes NaN: its norm is then NaN, not zero.
    return x * torch.where(greatest > largest, largest**0.5 / greatest, 1.0)
