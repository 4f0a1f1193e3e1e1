"""Root mean square norm, alone or of the residual stream after an addition, in one pass over the
rows."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from longseq.core.ops.backends import Backend, Dispatch
from longseq.core.ops.rms_norm import cpu, reference, torch_op
from longseq.core.ops.rms_norm.arguments import Arguments, check

__all__ = ["add_rms_norm", "rms_norm"]


def _example(new: Callable[..., Tensor]) -> Arguments:
    return Arguments(new(1, 64, 128), None, new(128), 1e-5)


_DISPATCH = Dispatch("rms_norm", {"cpu": cpu.reason}, _example, "composed", announced=False)
_RUN = {"cpu": torch_op.run, "composed": reference.composed, "reference": reference.run}


def _run(name: str, call: Arguments, backend: Backend) -> tuple[Tensor, Tensor]:
    check(name, call)
    return _RUN[_DISPATCH.choose(backend, call)](call)


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-5, *, backend: Backend = "auto") -> Tensor:
    """Returns x / √(mean(x²) + eps) · w, computed in float32 at least (Zhang and Sennrich 2019,
    arXiv 1910.07467).

    On a CPU, in float32 and float64, values whose squares would overflow are scaled first.

    Args:
        x: values (..., width).
        weight: w (width,).
        eps: added to the mean square.
        backend: see ``longseq.core.ops.backends``.

    Returns:
        (..., width) in the weight's dtype.

    Raises:
        ArgumentError: naming the argument that does not fit.
    """
    return _run("rms_norm", Arguments(x, None, weight, eps), backend)[0]


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float = 1e-5, *, backend: Backend = "auto"
) -> tuple[Tensor, Tensor]:
    """Returns ``rms_norm(x + residual)`` and x + residual: what lies between two layers whose norm
    comes first.

    Args:
        x: what a layer adds (..., width).
        residual: the residual stream (..., width).
        weight: (width,).
        eps: added to the mean square.
        backend: see ``longseq.core.ops.backends``.

    Returns:
        The normalised sum in the weight's dtype, and the sum in the wider dtype of the two, both
        (..., width).

    Raises:
        ArgumentError: naming the argument that does not fit.
    """
    return _run("add_rms_norm", Arguments(x, residual, weight, eps), backend)
