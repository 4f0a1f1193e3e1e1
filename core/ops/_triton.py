"""When the chunked operators are served by their Triton kernels, and why not."""

from __future__ import annotations

import importlib.util
import os
import warnings
from functools import cache

import torch
from torch import Tensor

from longseq.core.kernels import nvrtc
from longseq.core.ops.backends import choose, cpu_reason

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
        return "triton is not installed; it comes with torch's CUDA builds for Linux, or: pip install triton"
    there = [tensor for tensor in tensors if tensor is not None]
    for tensor in there:
        if tensor.dtype not in _DTYPES:
            return f"it computes in float32, and an argument is {tensor.dtype}"
    for tensor in there:
        if not tensor.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
            return (
                f"it runs on CUDA tensors, these are on {tensor.device} (for a check, TRITON_INTERPRET=1 set "
                "before the start runs it there, slowly)"
            )
    if there[0].is_cuda and not torch.compiler.is_compiling():
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
    return reason is None, reason or "SSD, linear attention, GLA, delta rule and mLSTM; compiled at first use"


def lowered(*activations: Tensor) -> tuple[Tensor, ...]:
    """Returns activations in autocast's dtype where it is on, as the compiled operators' autocast rule does.

    Gates, decays, skips and states are not activations: they stay as they are, and are at least float32 in
    the kernels.

    Args:
        *activations: on one device; float64 ones are returned as they are.
    """
    device = activations[0].device.type
    if not torch.is_autocast_enabled(device):
        return activations
    dtype = torch.get_autocast_dtype(device)
    return tuple(x if x.dtype == torch.float64 else x.to(dtype) for x in activations)


@cache
def _announce(operator: str, reason: str) -> None:
    warnings.warn(f"longseq.{operator} runs torch's own operations: {reason}", UserWarning, stacklevel=4)


def by_triton(operator: str, backend: str, *tensors: Tensor | None) -> bool:
    """Returns whether a chunked operator's call goes to its Triton kernels.

    Otherwise ``backends.by_cpu`` says whether the CPU kernels serve it or torch's own operations, chunk by
    chunk, which are its "reference". With "auto", CUDA tensors go to Triton where it can, and the reason is
    said once where not.

    Args:
        operator: name for messages.
        backend: what the caller asked for.
        *tensors: the call's arguments; None stands for an absent one.

    Raises:
        ConfigError: for an unknown backend.
        BackendError: if the backend asked for by name cannot serve the call.
    """
    if backend == "reference":
        return False
    if backend != "auto":
        reasons = {"triton": triton_reason(*tensors), "cpu": cpu_reason(*tensors)}
        return choose(operator, backend, reasons) == "triton"
    if not any(tensor is not None and tensor.is_cuda for tensor in tensors):
        return False
    reason = triton_reason(*tensors)
    if reason is not None and not torch.compiler.is_compiling():
        _announce(operator, reason)
    return reason is None
