"""Compares operators on a device with float64 references on the CPU: outputs, gradients, repeated
runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Result = dict[str, Any]
Tensors = dict[str, Tensor | None]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
"""Largest error, relative to each tensor's largest value."""
TF32 = 3e-4
"""Where products of float32 matrices may round their operands to TF32."""
RUNS = 3


@dataclass(frozen=True)
class Case:
    """A call to be checked.

    Attributes:
        name: of the operator and what is special about the call.
        fast: the kernel; takes ``tensors`` by name and returns outputs.
        exact: the reference, alike.
        tensors: arguments on the CPU, or a function that makes them; what is floating-point or
            complex is differentiated.
        tolerance: of the error.
        low: names of arguments that are rounded to ``dtype`` first.
        dtype: of those.
        tf32: whether the products of float32 matrices may be TF32.
        repeatable: whether repeated runs must be equal bit for bit.
    """

    name: str
    fast: Callable[..., Any]
    exact: Callable[..., Any]
    tensors: Tensors | Callable[[], Tensors]
    tolerance: float
    low: tuple[str, ...] = ()
    dtype: torch.dtype = torch.float32
    tf32: bool = False
    repeatable: bool = True


def poison(device: torch.device) -> None:
    """Leaves NaN in the allocator's free memory, which the next outputs are made of."""
    blocks = [torch.full((size,), torch.nan, device=device) for size in (1 << 14, 1 << 18, 1 << 22)]
    if device.type == "cuda":
        blocks.append(torch.full((1 << 26,), torch.nan, device=device))
    del blocks


def worst(actual: list[Tensor], exact: list[Tensor]) -> float:
    """Returns the largest error, relative to each tensor's largest value; infinity for what is not
    finite."""
    errors = []
    for a, e in zip(actual, exact, strict=True):
        error = (a.detach().cpu().to(e.dtype) - e).abs().max() / e.abs().max().clamp_min(1e-30)
        errors.append(float(error) if bool(torch.isfinite(error)) else float("inf"))
    return max(errors)


def wide(tensor: Tensor) -> Tensor:
    """Returns a tensor in float64 or complex128."""
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)


def run(
    function: Callable[..., Any], tensors: Tensors, place: Callable[[Tensor], Tensor]
) -> list[Tensor]:
    """Returns outputs, and the gradients of a loss that every output takes part in, linearly.

    Args:
        function: takes the tensors by name.
        tensors: arguments.
        place: puts one where it is to be.
    """
    leaves: dict[str, Any] = {}
    for key, tensor in tensors.items():
        if tensor is None:
            leaves[key] = None
        elif tensor.is_floating_point() or tensor.is_complex():
            leaves[key] = place(tensor).detach().requires_grad_()
        else:
            leaves[key] = tensor.to(place(torch.zeros(1)).device)
    outputs = [t for t in function(**leaves) if t is not None]
    weights = []
    for t in outputs:
        w = torch.linspace(-1, 4, t.numel(), dtype=torch.float64).view(t.shape).cos()
        weights.append((64 * w).round().div(64).to(t.device, t.dtype))  # exact in every dtype
    wanted = [t for t in leaves.values() if t is not None and t.requires_grad]
    gradients = torch.autograd.grad(outputs, wanted, weights)
    return [t.detach() for t in outputs] + list(gradients)


def compare(case: Case, device: torch.device) -> Result:
    """Runs a case three times on the device, free memory full of NaN, and once in float64 on the
    CPU."""
    made = case.tensors() if callable(case.tensors) else case.tensors
    tensors = {
        key: t if t is None or key not in case.low else t.to(case.dtype) for key, t in made.items()
    }
    exact = run(case.exact, tensors, lambda t: wide(t.cpu()))
    allowed = torch.backends.cuda.matmul.fp32_precision
    if case.tf32:
        torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        runs = []
        for _ in range(RUNS):
            poison(device)
            runs.append(run(case.fast, tensors, lambda t: t.to(device)))
    finally:
        torch.backends.cuda.matmul.fp32_precision = allowed
    same = all(torch.equal(a, b) for again in runs[1:] for a, b in zip(runs[0], again, strict=True))
    error = worst(runs[0], exact)
    return {
        "check": case.name,
        "error": error,
        "tolerance": case.tolerance,
        "same": same,
        "ok": (same or not case.repeatable) and error <= case.tolerance,
    }


def line(row: Result) -> str:
    """Returns a check's result in words."""
    verdict, differ = "ok " if row["ok"] else "BAD", "" if row["same"] else "; repeated runs differ"
    return f"  {verdict} {row['error']:.1e} (at most {row['tolerance']:.0e}) {row['check']}{differ}"
