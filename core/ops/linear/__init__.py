"""The linear map of a vector at every position, by the quicker of torch's two libraries for matrix
products."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from longseq.core.ops.backends import Backend, Dispatch
from longseq.core.ops.linear import cpu
from longseq.core.ops.linear.arguments import Arguments
from longseq.core.ops.linear.cpu import weight_gradient

__all__ = ["linear", "weight_gradient"]


def _example(new: Callable[..., Tensor]) -> Arguments:
    return Arguments(new(4, 256, 64), new(128, 64), None)


# torch's own map is the definition, and nowhere far behind.
_DISPATCH = Dispatch("linear", {"cpu": cpu.reason}, _example, "composed", announced=False)


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, backend: Backend = "auto"
) -> Tensor:
    """Returns ``x weightᵀ + bias``, which is ``torch.nn.functional.linear``.

    On AMD's processors with AVX-512, products in float32 that are worth a call go to oneDNN, whose
    order of sums differs from that of torch's BLAS; all others to torch's own map, which also says
    what is wrong with arguments that do not fit.

    Args:
        x: (..., K).
        weight: (N, K).
        bias: (N,), or None.
        backend: see ``longseq.core.ops.backends``.

    Returns:
        (..., N).

    Raises:
        BackendError: if the backend asked for cannot serve the call.
    """
    if backend == "auto" and torch.compiler.is_compiling():  # sizes may be symbols: none is asked
        return F.linear(x, weight, bias)
    # Nested tensors have no shape to ask for, sparse ones and those of oneDNN's own no strides.
    strided = all(t.layout is torch.strided and not t.is_nested for t in (x, weight))
    fits = strided and weight.dim() == 2 and x.dim() >= 1 and x.shape[-1] == weight.shape[1]
    if not fits or (bias is not None and bias.shape != weight.shape[:1]):
        return F.linear(x, weight, bias)
    call = Arguments(x, weight, bias)
    if _DISPATCH.choose(backend, call) != "cpu":
        return F.linear(x, weight, bias)
    return cpu.run(call)
