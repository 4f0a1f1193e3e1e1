"""Norms of groups of channels with a swish gate, in one pass over the rows; only inputs are
kept."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from longseq.core.ops.backends import Backend, Dispatch
from longseq.core.ops.gated_norm import cpu, reference, torch_op
from longseq.core.ops.gated_norm.arguments import Arguments, check

__all__ = ["gated_layer_norm", "gated_rms_norm"]


def _example(new: Callable[..., Tensor]) -> Arguments:
    rows = new(1, 64, 128)
    return Arguments(rows, rows, new(128), None, None, 1, False, True, 1e-5)


# torch's own operations are the definition, and as quick for what the kernels leave to them.
_DISPATCH = Dispatch("gated_norm", {"cpu": cpu.reason}, _example, "composed", announced=False)


def _run(call: Arguments, backend: Backend) -> Tensor:
    check(call)
    return torch_op.run(call) if _DISPATCH.choose(backend, call) == "cpu" else reference.run(call)


def gated_rms_norm(
    y: Tensor,
    z: Tensor,
    weight: Tensor,
    groups: int = 1,
    norm_first: bool = True,
    eps: float = 1e-5,
    *,
    backend: Backend = "auto",
) -> Tensor:
    """Returns RMSNorm(y) · w · silu(z), or RMSNorm(y · silu(z)) · w, computed in float32 at least.

    Args:
        y: values (..., width).
        z: gate (..., width).
        weight: w (width,).
        groups: the mean square is taken over each of so many equal runs of channels.
        norm_first: whether the gate multiplies the normalised value or what is normalised.
        eps: added to the mean square.
        backend: see ``longseq.core.ops.backends``.

    Returns:
        (..., width) in z's dtype.

    Raises:
        ArgumentError: naming the argument that does not fit.
    """
    return _run(Arguments(y, z, weight, None, None, groups, False, norm_first, eps), backend)


def gated_layer_norm(
    y: Tensor,
    z: Tensor,
    weight: Tensor,
    u: Tensor,
    skip: Tensor,
    groups: int = 1,
    eps: float = 1e-5,
    *,
    backend: Backend = "auto",
) -> Tensor:
    """Returns (LayerNorm(y) · w + s · u) · silu(z), computed in float32 at least.

    Args:
        y: values (..., width).
        z: gate (..., width).
        weight: w (width,).
        u: what passes by the norm (..., width).
        skip: s (width,).
        groups: mean and variance are taken over each of so many equal runs of channels.
        eps: added to the variance.
        backend: see ``longseq.core.ops.backends``.

    Returns:
        (..., width) in z's dtype.

    Raises:
        ArgumentError: naming the argument that does not fit.
    """
    return _run(Arguments(y, z, weight, u, skip, groups, True, True, eps), backend)
