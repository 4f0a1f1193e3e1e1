"""Hyena's operator: a long convolution between two gates, all inputs through short convolutions
first."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from longseq.core.ops.backends import Backend, Dispatch
from longseq.core.ops.gated_conv import composed, cpu, torch_op
from longseq.core.ops.gated_conv.arguments import NAME, Arguments, check
from longseq.core.ops.gated_conv.reference import gated_conv_reference

__all__ = ["gated_conv", "gated_conv_reference"]


def _example(new: Callable[..., Tensor]) -> Arguments:
    return Arguments(new(1, 64, 96), new(96, 3), new(96), new(32, 64))


# For other devices the four operators are its proper form, each of which says by what it runs.
_DISPATCH = Dispatch(NAME, {"cpu": cpu.reason}, _example, "composed", announced=False)


def gated_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    kernel: Tensor,
    skip: Tensor | None = None,
    shift: Tensor | None = None,
    *,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """Computes ``y = s(x₀) ⊙ (kernel * u + skip·u)``, ``u = s(x₁) ⊙ s(x₂)``, with causal
    convolutions.

    On a CPU it is one compiled pass over x each way: short convolutions and products happen where
    the long convolution's transform reads and writes, nothing but x and the weights is kept for the
    backward, and the gradient of x is written once, in one piece. Elsewhere it is the four
    operators one after another.

    Args:
        x: [x₀, x₁, x₂], (B, L, 3D), nothing before position 0.
        weight: taps of the short convolutions s, (3D, W), the newest last.
        bias: of the short convolutions (3D,).
        kernel: taps of the long convolution (D, taps).
        skip: weight (D,) of a direct connection.
        shift: (3D,), added to x at its L positions before all else, as the bias of a linear map is.
        backend: see ``longseq.core.ops.backends``; "reference" is the direct sums.

    Returns:
        y and u, (B, L, D) in x's dtype. The products between are kept in float32, or in float64 if
        x or the kernel is.

    Raises:
        ArgumentError: for shapes that do not fit.
        BackendError: if the backend asked for cannot serve the call.
    """
    call = Arguments(x, weight, bias, kernel, skip, shift)
    check(call)
    chosen = _DISPATCH.choose(backend, call)
    if chosen == "reference":
        return gated_conv_reference(*call)
    return torch_op.run(call) if chosen == "cpu" else composed.run(call)
