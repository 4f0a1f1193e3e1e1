"""What backends "mamba_ssm" have in common: the package's functions, and which tensors they take.

The package is a peer, taken only where it is asked for by name.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

SCAN = ("mamba_ssm.ops.selective_scan_interface", "selective_scan_fn")
SSD = ("mamba_ssm.ops.triton.ssd_combined", "mamba_chunk_scan_combined")
_INSTALL = 'pip install "longseq[mamba-ssm]", on a machine with a CUDA compiler'
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@cache
def _load(module: str, function: str) -> tuple[Callable[..., Any] | None, str]:
    """Returns a function of the package, and why it is not there."""
    try:
        loaded = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == "mamba_ssm":
            return None, f"mamba-ssm is not installed: {_INSTALL}"
        return None, f"mamba-ssm does not load, it needs {error.name}: pip install {error.name}"
    except (ImportError, OSError) as error:  # an extension that was built for another torch
        return (
            None,
            f"mamba-ssm does not load ({error}): reinstall it for torch {torch.__version__}",
        )
    # Its recent versions leave the compiled scan out unless told otherwise, and say so at the first
    # call.
    if getattr(loaded, "selective_scan_cuda", loaded) is None:
        return (
            None,
            "this mamba-ssm was built without its scan (MAMBA_KEEP_CUDA_BUILD=TRUE keeps it)",
        )
    return getattr(loaded, function), ""


def describe() -> tuple[bool, str]:
    """Returns whether the package's functions can be called here, and a note for ``longseq
    doctor``."""
    functions = (_load(*SCAN), _load(*SSD))
    absent = dict.fromkeys(why for function, why in functions if function is None)
    if all(function is None for function, _ in functions):
        return False, "; ".join(absent)
    if not torch.cuda.is_available():
        return False, "mamba-ssm is installed, but torch finds no CUDA device"
    names = [
        name for name, (there, _) in zip(("selective_scan", "ssd"), functions) if there is not None
    ]
    note = f"{' and '.join(names)} by the mamba-ssm package, where asked for by name"
    return True, "; ".join([note, *absent])


def _on_gpu(tensor: Tensor) -> bool:
    return tensor.is_cuda


def unfit(rows: tuple[Tensor | None, ...], others: tuple[Tensor | None, ...]) -> str | None:
    """Returns why the package cannot take these tensors: activations ``rows``, parameters and
    states."""
    there = [tensor for tensor in (*rows, *others) if tensor is not None]
    for tensor in there:
        if tensor.is_complex():
            return "complex arguments are not handed to it"
        if tensor.dtype not in _DTYPES:
            return f"it computes in float32, and an argument is {tensor.dtype}"
        if not _on_gpu(tensor):
            return f"it runs on CUDA tensors, these are on {tensor.device}"
    return None


def missing(function: tuple[str, str]) -> str | None:
    """Returns why a function of the package is not there, or None if it is."""
    loaded, why = _load(*function)
    return why if loaded is None else None


def load(function: tuple[str, str]) -> Callable[..., Any]:
    """Returns a function of the package that is not ``missing``."""
    loaded, _ = _load(*function)
    assert loaded is not None
    return loaded
