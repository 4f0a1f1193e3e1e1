"""Which backend serves an operator's call, and why another does not: the one place that decides it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import cache
from types import ModuleType
from typing import Literal

import torch

from longseq.core.errors import BackendError, ConfigError, did_you_mean

Backend = Literal["auto", "reference", "cpu", "cuda", "triton", "mamba_ssm"]
BACKENDS: tuple[str, ...] = ("auto", "reference", "cpu", "cuda", "triton", "mamba_ssm")


def _load_native() -> tuple[ModuleType | None, str]:
    try:
        from longseq.core import _cpu
    except ImportError as error:
        return None, f"the compiled extension longseq.core._cpu does not load: {error}; reinstall longseq"
    return _cpu, ""


# Once, at import: a cached function would make torch.compile warn.
_NATIVE, _NATIVE_ERROR = _load_native()


def native() -> ModuleType:
    """Returns the compiled CPU kernels.

    Raises:
        BackendError: if they do not load, with the reason.
    """
    if _NATIVE is None:
        raise BackendError(_NATIVE_ERROR)
    return _NATIVE


def cpu_reason(*tensors: torch.Tensor | None) -> str | None:
    """Returns why the CPU kernels cannot take these tensors, or None if they can.

    Args:
        *tensors: the call's arguments; None stands for an absent one.
    """
    if _NATIVE is None:
        return _NATIVE_ERROR
    for tensor in tensors:
        if tensor is not None and tensor.device.type not in ("cpu", "meta"):
            return f"it runs on CPU tensors, these are on {tensor.device}"
    return None


@cache
def _announce(operator: str, reason: str) -> None:
    warnings.warn(f"longseq.{operator} runs its slow reference: {reason}", UserWarning, stacklevel=4)


def by_cpu(operator: str, backend: str, *tensors: torch.Tensor | None) -> bool:
    """Returns whether the CPU kernels serve a chunked operator's call, for which no GPU kernel was chosen.

    Args:
        operator: name for messages.
        backend: what the caller asked for, already found to be possible.
        *tensors: the call's arguments; None stands for an absent one.
    """
    if backend == "reference":
        return False
    reason = cpu_reason(*tensors)
    if _NATIVE is None and not torch.compiler.is_compiling():
        _announce(operator, _NATIVE_ERROR)
    return reason is None


def choose(operator: str, backend: str, reasons: Mapping[str, str | None]) -> str:
    """Returns the backend that serves a call.

    Args:
        operator: the operator's name, for messages.
        backend: what the caller asked for.
        reasons: for every fast backend of the operator, in order of preference, None if it can serve the
            call, else why not.

    Raises:
        ConfigError: for an unknown backend.
        BackendError: if the backend asked for by name cannot serve the call.
    """
    if backend not in BACKENDS:
        raise ConfigError(f"{operator}: no backend named {backend!r}; {did_you_mean(backend, BACKENDS)}")
    if backend == "reference":
        return backend
    if backend != "auto":
        reason = reasons.get(backend, "the operator has no such backend")
        if backend in reasons and reason is None:
            return backend
        raise BackendError(f"{operator}: backend {backend!r} cannot be used: {reason}")
    for name, reason in reasons.items():
        if reason is None:
            return name
    if not torch.compiler.is_compiling():
        _announce(operator, "; ".join(f"{name}: {reason}" for name, reason in reasons.items()))
    return "reference"


def describe() -> list[tuple[str, bool, str]]:
    """Returns (backend, available, note) for every backend, as shown by ``longseq doctor``."""
    module, reason = _load_native()
    if module is not None:
        reason = (
            f"{module.isa()} of {', '.join(module.available_isas())}; threads from {module.thread_runtime()}"
        )
    from longseq.core.kernels import nvrtc
    from longseq.core.ops import _mamba_ssm, _triton

    rows = [("reference", True, "pure torch, any device, slow"), ("cpu", _NATIVE is not None, reason)]
    rows += [("cuda", *nvrtc.describe()), ("triton", *_triton.describe())]
    return [*rows, ("mamba_ssm", *_mamba_ssm.describe())]
