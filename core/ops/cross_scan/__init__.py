r"""Selective scans of one sequence along several paths, and their sum: the cross-scan of VMamba
(arXiv 2401.10166, section 4.2) and other sets of paths along rows and columns.

    y = Σ_k selective_scan(u, W_k dt_k, A_k, B_k, C_k, D_k) along way k,   low_k = [dt_k, B_k, C_k]

``longseq.core.ops.selective_scan`` has the equations of each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from longseq.core.ops.backends import Backend, Dispatch
from longseq.core.ops.cross_scan import composed, cpu
from longseq.core.ops.cross_scan.arguments import NAME, Arguments, Way, checked

__all__ = ["Way", "cross_scan"]


def _example(new: Callable[..., Tensor]) -> Arguments:
    ways = (Way(False, 0), Way(True, 8))
    return Arguments(
        new(1, 64, 32),
        new(1, 64, 2, 4),
        new(2, 32, 2),
        new(2, 32),
        new(2, 32, 1),
        new(2, 32),
        ways,
    )


# The scans themselves say where theirs are slow.
_DISPATCH = Dispatch(NAME, {"cpu": cpu.reason}, _example, "composed", announced=False)


def cross_scan(
    u: Tensor,
    low: Tensor,
    weight: Tensor,
    bias: Tensor,
    A: Tensor,
    D: Tensor,
    ways: Sequence[Way],
    *,
    backend: Backend = "auto",
) -> Tensor:
    """Returns the sum of the scans along every way.

    Float32 and float64 on a CPU run in one call of the kernels each way, which reads the one
    sequence as it lies; anything else as so many calls of ``selective_scan``.

    Args:
        u: input (B, L, D).
        low: of every position and way the R values that become step sizes, B and C, (B, L, ways,
            R + 2N).
        weight: maps the R values to step sizes, before bias and softplus (ways, D, R).
        bias: added to them (ways, D).
        A: decays (ways, D, N), real and usually negative.
        D: skips (ways, D).
        ways: the paths; a ``height`` must divide L.
        backend: see ``longseq.core.ops.backends``; "reference" is that of every scan.

    Returns:
        (B, L, D).

    Raises:
        ArgumentError: naming the argument that does not fit.
        BackendError: if the backend asked for cannot serve the call.
    """
    call = checked(Arguments(u, low, weight, bias, A, D, tuple(Way(*way) for way in ways)))
    chosen = _DISPATCH.choose(backend, call)
    if chosen == "cpu":
        return cpu.run(call)
    return composed.run(call, "reference" if chosen == "reference" else "auto")
