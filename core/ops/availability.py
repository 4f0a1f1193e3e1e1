"""Which backends this installation has, and which of them would serve an operator: for ``longseq
doctor``."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch._subclasses import FakeTensorMode

from longseq.core.errors import ConfigError, did_you_mean
from longseq.core.kernels import nvrtc
from longseq.core.ops import backends, mamba_ssm_calls, triton_calls


def describe() -> list[tuple[str, bool, str]]:
    """Returns (backend, available, note) for every backend."""
    module, reason = backends._load_native()
    if module is not None:
        isas, threads = ", ".join(module.available_isas()), module.thread_runtime()
        reason = f"{module.isa()} of {isas}; threads from {threads}"
    return [
        ("reference", True, "pure torch, any device, slow"),
        ("cpu", backends._NATIVE is not None, reason),
        ("cuda", *nvrtc.describe()),
        ("triton", *triton_calls.describe()),
        ("mamba_ssm", *mamba_ssm_calls.describe()),
    ]


def operators() -> list[str]:
    """Returns the names of all operators that choose between backends, sorted."""
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        importlib.import_module(f"longseq.core.ops.{module.name}")
    return sorted(backends.REGISTRY)


class Verdict(NamedTuple):
    """What one backend would do with an operator's call.

    Attributes:
        backend: its name, or the fallback's.
        state: "serves" if "auto" takes it, "can" if it serves where it is asked for by name, "not
            used" for a fallback that is not needed, else "no".
        why: why not, or what it is.
    """

    backend: str
    state: str
    why: str


def explain(operator: str, dtype: torch.dtype, device: str) -> list[Verdict]:
    """Returns what every backend would do with a small call of an operator, in order of preference.

    Args:
        operator: its name.
        dtype: of all tensors.
        device: of all tensors; it need not be there.

    Raises:
        ConfigError: for an unknown operator, with the nearest name.
    """
    known = operators()
    if operator not in known:
        raise ConfigError(f"no operator named {operator!r}; {did_you_mean(operator, known)}")
    dispatch = backends.REGISTRY[operator]

    def new(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    call: Any
    if device.startswith("cuda") and not torch.cuda.is_available():
        with FakeTensorMode():  # tensors without memory, on a device that is not there
            call = dispatch.example(new)
    else:
        call = dispatch.example(new)
    found, served = [], False

    def take(name: str, note: str) -> None:
        nonlocal served
        found.append(Verdict(name, "can" if served else "serves", note))
        served = True

    for name, why_not in dispatch.reasons.items():
        reason = why_not(call)
        if reason is not None:
            found.append(Verdict(name, "no", reason))
        elif name in dispatch.by_name:
            found.append(Verdict(name, "can", "only where it is asked for by name"))
        else:
            take(name, 'chosen by "auto"' if not served else "where it is asked for by name")
    if dispatch.fallback != "reference":
        words = backends.FALLBACKS[dispatch.fallback]
        if served:
            found.append(
                Verdict(dispatch.fallback, "not used", f"{words}: where no backend above serves")
            )
        else:
            take(dispatch.fallback, f'{words}: chosen by "auto" where no backend above serves')
    take("reference", "the definition, written out in torch: slow")
    absent = [one for one in backends.BACKENDS[2:] if one not in dispatch.reasons]
    return found + [Verdict(one, "no", "the operator has no such backend") for one in absent]
