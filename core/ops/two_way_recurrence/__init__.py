r"""Gated linear recurrences over a sequence in both directions, of one projection.

    h_t = σ(f_t) h_{t-1} + (1 - σ(f_t)) v_t
    h'_t = σ(g_t) h'_{t+1} + (1 - σ(g_t)) v_t
    y = h + h'

The gates are those of minGRU (Feng et al. 2024, arXiv 2410.01201) and HGRN (Qin et al. 2023, arXiv
2311.04823): they depend on the input alone.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from longseq.core.errors import ArgumentError
from longseq.core.ops.arguments import check_kind
from longseq.core.ops.backends import Backend, Dispatch
from longseq.core.ops.two_way_recurrence import cpu, torch_op
from longseq.core.ops.two_way_recurrence.arguments import NAME, Arguments
from longseq.core.ops.two_way_recurrence.composed import composed
from longseq.core.ops.two_way_recurrence.reference import two_way_recurrence_reference

__all__ = ["two_way_recurrence", "two_way_recurrence_reference"]


def _example(new: Callable[..., Tensor]) -> Arguments:
    return Arguments(new(1, 64, 96))


# The composed form runs by the linear scan, which has kernels of its own.
_DISPATCH = Dispatch(NAME, {"cpu": cpu.reason}, _example, "composed", announced=False)


def two_way_recurrence(mixed: Tensor, *, backend: Backend = "auto") -> Tensor:
    """Runs a gated recurrence from either end of a sequence and adds their states.

    On a CPU one pass each way reads the projection as it lies, in its own precision; nothing is
    kept for the gradients but the projection. Elsewhere two linear scans do it.

    Args:
        mixed: (B, L, 3 D): values v, gates f from the start and gates g from the end, D channels
            each; float32, float64, bfloat16 or float16.
        backend: see ``longseq.core.ops.backends``.

    Returns:
        (B, L, D), of the dtype of ``mixed``; computed in float32, of float64 in float64.

    Raises:
        ArgumentError: for a shape that does not fit.
        BackendError: if the backend asked for cannot serve the call.
    """
    check_kind(NAME, True, mixed=mixed)
    if mixed.dim() != 3 or mixed.shape[1] == 0 or mixed.shape[2] == 0 or mixed.shape[2] % 3:
        raise ArgumentError(
            f"{NAME}: mixed must be (batch, length ≥ 1, 3 · channels), got {tuple(mixed.shape)}"
        )
    chosen = _DISPATCH.choose(backend, Arguments(mixed))
    if chosen == "reference":
        return two_way_recurrence_reference(mixed)
    return torch_op.forward(mixed) if chosen == "cpu" else composed(mixed)
