"""Two linear maps with the exact GELU between: the position-wise network of most image models."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from longseq.core.errors import ArgumentError
from longseq.core.ops.arguments import check_device, check_kind
from longseq.core.ops.backends import Backend, Dispatch
from longseq.core.ops.gelu_mlp import cpu
from longseq.core.ops.gelu_mlp.arguments import NAME, Arguments
from longseq.core.ops.gelu_mlp.composed import composed, gelu_mlp_reference

__all__ = ["gelu_mlp", "gelu_mlp_reference"]


def _example(new: Callable[..., Tensor]) -> Arguments:
    return Arguments(new(1, 64, 32), new(64, 32), new(64), new(32, 64), new(32))


# The operations that it is made of are quick by themselves.
_DISPATCH = Dispatch(NAME, {"cpu": cpu.reason}, _example, "composed", announced=False)


def gelu_mlp(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    *,
    backend: Backend = "auto",
) -> Tensor:
    """Returns ``gelu(x weight1ᵀ + bias1) weight2ᵀ + bias2``, with GELU's own normal distribution
    (arXiv 1606.08415).

    Of the hidden values, float32 and float64 on a CPU keep only those before the GELU for the
    gradients: the others are made again in the pass that has to read the former anyway. Anything
    else runs as two calls of ``linear`` with torch's GELU between.

    Args:
        x: (..., K).
        weight1: (H, K).
        bias1: (H,).
        weight2: (N, H).
        bias2: (N,).
        backend: see ``longseq.core.ops.backends``.

    Returns:
        (..., N).

    Raises:
        ArgumentError: for shapes that do not fit.
        BackendError: if the backend asked for cannot serve the call.
    """
    call = Arguments(x, weight1, bias1, weight2, bias2)
    check_kind(NAME, True, **call._asdict())
    hidden = weight1.shape[:1]
    fits = x.dim() >= 1 and weight1.shape == (*hidden, x.shape[-1]) and bias1.shape == hidden
    if not fits or weight2.shape != (*bias2.shape, *hidden):
        raise ArgumentError(
            f"{NAME}: x must be (..., K), weight1 (H, K), bias1 (H,), weight2 (N, H) and bias2 "
            f"(N,), got {', '.join(str(tuple(one.shape)) for one in call)}"
        )
    check_device(NAME, x, {name: one for name, one in call._asdict().items() if name != "x"})
    chosen = _DISPATCH.choose(backend, call)
    if chosen == "cpu":
        return cpu.run(call)
    return gelu_mlp_reference(*call) if chosen == "reference" else composed(*call)
