"""Which backend serves an operator's call, and why another does not: the one place that decides
it."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args

import torch

from longseq.core.errors import BackendError, ConfigError, did_you_mean

Backend = Literal["auto", "reference", "cpu", "cuda", "triton", "mamba_ssm"]
BACKENDS: tuple[str, ...] = get_args(Backend)
Fallback = Literal["reference", "chunked", "composed"]
FALLBACKS: dict[str, str] = {
    "reference": "its slow reference",
    "chunked": "its chunked form, in torch's own operations",
    "composed": "torch's own operations",
}
"""What "auto" falls back to, in words."""
_HERE = str(Path(__file__).parent)


def _load_native() -> tuple[ModuleType | None, str]:
    try:
        from longseq.core import _cpu
    except ImportError as error:
        return (
            None,
            f"the compiled extension longseq.core._cpu does not load: {error}; reinstall longseq",
        )
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
def _announce(operator: str, form: str, reason: str) -> None:
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_HERE):
        level, frame = level + 1, frame.f_back
    warnings.warn(f"longseq.{operator} runs {form}: {reason}", UserWarning, stacklevel=level)


class Dispatch:
    """Chooses the backend of an operator's calls, and is entered in ``REGISTRY`` under the
    operator's name.

    Args:
        name: the operator's.
        reasons: per fast backend, in order of preference, a function of the call (a record of its
            arguments) that returns None if the backend can serve it, else why not.
        example: makes a call's record for ``longseq doctor --why``, from a function of a shape that
            makes a tensor.
        fallback: what "auto" falls back to. "reference" is asked for by name, too, and always means
            the definition: a recurrence step by step, a sum written out.
        by_name: backends that serve only where they are asked for by name.
        announced: whether falling back is worth a warning even if the CPU kernels are there; not
            for operators whose form for other devices is torch's own operations.
    """

    def __init__(
        self,
        name: str,
        reasons: Mapping[str, Callable[[Any], str | None]],
        example: Callable[[Callable[..., torch.Tensor]], Any],
        fallback: Fallback = "reference",
        by_name: tuple[str, ...] = (),
        announced: bool = True,
    ) -> None:
        self.name, self.reasons, self.example = name, dict(reasons), example
        self.fallback, self.by_name, self.announced = fallback, by_name, announced
        self._auto = {one: why_not for one, why_not in reasons.items() if one not in by_name}
        REGISTRY[name] = self

    def choose(self, backend: str, call: Any) -> str:
        """Returns the backend that serves a call, "reference", or the fallback.

        Args:
            backend: what the caller asked for.
            call: the record of the call's arguments.

        Raises:
            ConfigError: for an unknown backend.
            BackendError: if the backend asked for by name cannot serve the call.
        """
        if backend != "auto":
            own = ("auto", "reference", *self.reasons)
            if backend not in BACKENDS:
                near = did_you_mean(backend, own)
                raise ConfigError(f"{self.name}: no backend named {backend!r}; {near}")
            if backend == "reference":
                return backend
            if backend not in self.reasons:
                reason: str | None = f"the operator has no such backend, but {', '.join(own)}"
            else:
                reason = self.reasons[backend](call)
            if reason is None:
                return backend
            raise BackendError(f"{self.name}: backend {backend!r} cannot be used: {reason}")
        for name, why_not in self._auto.items():
            if why_not(call) is None:
                return name
        told = self._auto and (self.announced or _NATIVE is None)
        if told and not torch.compiler.is_compiling():
            refused = "; ".join(f"{name}: {why_not(call)}" for name, why_not in self._auto.items())
            _announce(self.name, FALLBACKS[self.fallback], refused)
        return self.fallback


REGISTRY: dict[str, Dispatch] = {}
"""The dispatch of every operator whose module has been imported, by name."""


def check_backend(backend: str) -> Backend:
    """Returns ``backend`` if there is one of that name; whether it can serve shows at the first
    call.

    Raises:
        ConfigError: otherwise.
    """
    for known in get_args(Backend):
        if backend == known:
            return known
    raise ConfigError(f"no backend named {backend!r}; {did_you_mean(backend, BACKENDS)}")


def convolution_backend(backend: Backend) -> Backend:
    """Returns the backend of a short convolution beside a mixer's main operator.

    Triton and mamba-ssm serve main operators only: where one of them is asked for, the convolution
    runs by whatever is fastest.
    """
    return "auto" if backend in ("triton", "mamba_ssm") else backend
