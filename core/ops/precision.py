"""In what precision operators compute: the dtype of their arithmetic, and what autocast does to
arguments."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


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
