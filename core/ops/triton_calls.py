"""Which calls the Triton kernels take, and why not the others."""

from __future__ import annotations

import importlib.util
import os

import torch
from torch import Tensor

from longseq.core.kernels import nvrtc

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Once, at import: torch.compile does not trace it.
_INSTALLED = importlib.util.find_spec("triton") is not None and not nvrtc.simulated("no-triton")
_OLDEST = (8, 0)


def triton_reason(*tensors: Tensor | None) -> str | None:
    """Returns why the Triton kernels cannot take these tensors, or None if they can.

    Args:
        *tensors: the call's arguments; None stands for an absent one.
    """
    if not _INSTALLED:
        return (
            "triton is not installed; it comes with torch's CUDA builds for Linux, "
            "or: pip install triton"
        )
    there = [tensor for tensor in tensors if tensor is not None]
    for tensor in there:
        if tensor.dtype not in _DTYPES:
            return f"it computes in float32, and an argument is {tensor.dtype}"
    for tensor in there:
        if not tensor.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
            return (
                f"it runs on CUDA tensors, these are on {tensor.device} (for a check, "
                f"TRITON_INTERPRET=1 set "
                "before the start runs it there, slowly)"
            )
    if there[0].is_cuda and not torch.compiler.is_compiling():
        if not torch.cuda.is_available():
            return "torch finds no CUDA device"
        capability = torch.cuda.get_device_capability(there[0].device)
        if capability < _OLDEST:
            return (
                f"it needs compute capability {_OLDEST[0]}.{_OLDEST[1]} or newer, "
                f"this GPU has {capability[0]}.{capability[1]}"
            )
    return None


def describe() -> tuple[bool, str]:
    """Returns whether Triton kernels can run here, and a note, as shown by ``longseq doctor``."""
    if _INSTALLED and not torch.cuda.is_available():
        return False, "torch finds no CUDA device"
    reason = triton_reason(torch.empty(0, device="cuda" if _INSTALLED else "cpu"))
    return (
        reason is None,
        reason or "SSD, linear attention, GLA, delta rule and mLSTM; compiled at first use",
    )
