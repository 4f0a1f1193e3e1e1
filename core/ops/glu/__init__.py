"""The gated linear unit together with the bias of the linear map before it."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from longseq.core.errors import ArgumentError
from longseq.core.ops.arguments import check_kind, present
from longseq.core.ops.backends import Backend, Dispatch
from longseq.core.ops.glu import cpu, torch_op
from longseq.core.ops.glu.arguments import Arguments
from longseq.core.ops.glu.reference import biased_glu_reference

__all__ = ["biased_glu", "biased_glu_reference"]


def _example(new: Callable[..., Tensor]) -> Arguments:
    return Arguments(new(1, 64, 64), new(64))


# torch's own operations are the definition, and the form for lower precisions and other devices.
_DISPATCH = Dispatch("biased_glu", {"cpu": cpu.reason}, _example, "composed", announced=False)


def biased_glu(x: Tensor, bias: Tensor | None = None, *, backend: Backend = "auto") -> Tensor:
    """Returns ``(a + α) ⊙ σ(g + γ)`` for x = [a, g] and the bias [α, γ].

    Float32 and float64 on a CPU run in one compiled pass each way, which the bias and its gradient
    are part of; anything else through ``torch.nn.functional.glu``.

    Args:
        x: (..., 2W).
        bias: (2W,).
        backend: see ``longseq.core.ops.backends``.

    Returns:
        (..., W).

    Raises:
        ArgumentError: for shapes that do not fit.
        BackendError: if the backend asked for cannot serve the call.
    """
    check_kind("biased_glu", True, x=x, **present(bias=bias))
    if x.ndim < 1 or x.shape[-1] % 2:
        raise ArgumentError(f"biased_glu: x must be (..., 2W), got {tuple(x.shape)}")
    if bias is not None and bias.shape != x.shape[-1:]:
        raise ArgumentError(f"biased_glu: bias must be ({x.shape[-1]},), got {tuple(bias.shape)}")
    if _DISPATCH.choose(backend, Arguments(x, bias)) != "cpu":
        return biased_glu_reference(x, bias)
    y: Tensor = torch_op.forward(x.reshape(-1, x.shape[-1]), bias)
    return y.view(*x.shape[:-1], -1)
