"""The exact GELU together with the bias of the linear map before it."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from longseq.core.errors import ArgumentError
from longseq.core.ops.arguments import check_device, check_kind
from longseq.core.ops.backends import Backend, Dispatch
from longseq.core.ops.gelu import cpu, torch_op
from longseq.core.ops.gelu.arguments import Arguments
from longseq.core.ops.gelu.reference import biased_gelu_reference

__all__ = ["biased_gelu", "biased_gelu_reference"]


def _example(new: Callable[..., Tensor]) -> Arguments:
    return Arguments(new(1, 64, 64), new(64))


# torch's own operations are the definition, and the form for lower precisions and other devices.
_DISPATCH = Dispatch("biased_gelu", {"cpu": cpu.reason}, _example, "composed", announced=False)


def biased_gelu(x: Tensor, bias: Tensor, *, backend: Backend = "auto") -> Tensor:
    """Returns ``t Φ(t)`` of t = x + bias, with Φ the normal distribution: GELU without its
    approximation by tanh (arXiv 1606.08415).

    Float32 and float64 on a CPU run in one compiled pass each way, which the bias and its gradient
    are part of; anything else through ``torch.nn.functional.gelu``.

    Args:
        x: (..., W).
        bias: (W,).
        backend: see ``longseq.core.ops.backends``.

    Returns:
        (..., W).

    Raises:
        ArgumentError: for shapes that do not fit.
        BackendError: if the backend asked for cannot serve the call.
    """
    check_kind("biased_gelu", True, x=x, bias=bias)
    if x.ndim < 1 or bias.shape != x.shape[-1:]:
        raise ArgumentError(
            f"biased_gelu: x must be (..., W) and bias (W,), got {tuple(x.shape)} and "
            f"{tuple(bias.shape)}"
        )
    check_device("biased_gelu", x, {"bias": bias})
    call = Arguments(x, bias)
    if _DISPATCH.choose(backend, call) != "cpu":
        return biased_gelu_reference(x, bias)
    y: Tensor = torch_op.forward(x.reshape(-1, x.shape[-1]), bias)
    return y.view(x.shape)
