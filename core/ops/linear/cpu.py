"""The linear map by the matrix product of oneDNN, which torch carries beside that of its BLAS."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from longseq.core.kernels.custom_op import learnt
from longseq.core.ops import cpu_calls
from longseq.core.ops.backends import native
from longseq.core.ops.linear.arguments import Arguments

LEAST_WORK = 1 << 22
"""Multiplications and additions below which what a call costs is more than what it saves."""
MANY_ROWS = 1024
"""Positions beyond which oneDNN's product over them is no quicker for a map to more values."""
LEAST_SIDE = 16
"""Rows, and values in and out, below which oneDNN's product may be the slower one."""


@cache
def library_reason() -> str | None:
    """Returns why oneDNN's product is not taken on this machine, or None if it is.

    torch's BLAS (MKL) does not use the wide vectors of AMD's processors: there oneDNN takes 0.90 of
    its time, the median of 39 shapes. On Intel's the two are of one make.
    """
    if not native().is_amd():
        return "torch's own product is as quick on this processor"
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return "it was measured on processors with AVX-512 alone"
    if not torch.backends.mkldnn.is_available() or not hasattr(
        torch.ops.mkldnn, "_linear_pointwise"
    ):
        return "this build of torch has no linear map by oneDNN"
    g = torch.Generator("cpu").manual_seed(0)  # whatever dtype and device are the default
    x, weight = (
        torch.randn(n, 32, generator=g, dtype=torch.float32, device="cpu") for n in (16, 24)
    )
    try:  # the operator is torch's own affair: another version may have changed it
        with torch.no_grad():
            found = product(x, weight, None), product(x @ weight.T, weight.T, None)
    except (RuntimeError, TypeError) as error:
        return f"torch's linear map by oneDNN does not run: {error}"
    wanted = x @ weight.T, x @ weight.T @ weight
    if all(torch.allclose(a, b, rtol=1e-4, atol=1e-3) for a, b in zip(found, wanted)):
        return None
    return "torch's linear map by oneDNN gives another product"


def _dense(weight: Tensor) -> bool:
    """Whether a matrix lies in memory row by row or column by column; oneDNN is a thousand times
    slower with another one."""
    return weight.is_contiguous() or weight.mT.is_contiguous()


def reason(call: Arguments) -> str | None:
    """Returns why oneDNN's product does not take a call, or None if it does."""
    if torch.compiler.is_compiling():
        return "a compiler has to see the call"
    x, weight, bias = call
    outs, ins = weight.shape
    rows = x.numel() // max(1, ins)
    if min(rows, ins, outs) < LEAST_SIDE or rows * ins * outs < LEAST_WORK:
        return "the product is too small to gain by it"
    for one in call:
        if one is not None and one.dtype != torch.float32:
            return "it takes float32 alone"
    why = cpu_calls.direct_reason(x, weight, bias, but_autograd=True)
    if why is not None:
        return why
    if not _dense(weight):
        return "it takes weights that lie densely"
    if not torch.backends.mkldnn.enabled or torch.get_float32_matmul_precision() != "highest":
        return "torch is set to another library or precision of products"
    return library_reason()


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Returns ``x weightᵀ + bias``, without a history.

    Args:
        x: (..., K); copied where its vectors are not dense.
        weight: (N, K), which lies row by row or column by column.
        bias: (N,), or None.
    """
    if not (x.is_contiguous() or (x.dim() == 2 and x.stride(1) == 1 and x.stride(0) >= x.shape[1])):
        x = x.contiguous()
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return y


def _turned(x: Tensor) -> Tensor:
    """Returns the transpose of a matrix of float32 as dense memory; torch takes three to five
    times as long for it."""
    x = x.contiguous()
    y = x.new_empty(x.shape[1], x.shape[0])
    code, threads = cpu_calls.code(x.dtype), cpu_calls.threads(x.numel())
    native().turned(*x.shape, code, threads, x.data_ptr(), y.data_ptr())
    return y


def weight_gradient(rows: Tensor, x: Tensor) -> Tensor:
    """Returns the gradient of a weight, ``rowsᵀ x`` (N, K), with a history where autograd asks for
    one.

    oneDNN's product is ahead here too, by a little, but not of many positions for a map to more
    values than it takes.

    Args:
        rows: gradients of the map's values (R, N).
        x: its input, R vectors (..., K).
    """
    flat = x.reshape(-1, x.shape[-1])
    count, outs, ins = *rows.shape, flat.shape[1]
    ahead = (count <= MANY_ROWS or outs <= ins) and not learnt((rows, x))
    if ahead and flat.is_contiguous() and reason(Arguments(rows.T, flat.T, None)) is None:
        return product(_turned(rows), flat.T, None)
    return rows.T @ flat


def run(call: Arguments) -> Tensor:
    """Returns the map's values (..., N)."""
    if learnt(call):
        y: Tensor = _Learnt.apply(*call)
        return y
    return product(*call)


class _Learnt(torch.autograd.Function):
    """The map with its gradients; second derivatives are those of torch's operations."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # What no gradient needs, as with frozen weights, is neither kept nor watched for changes.
        wants_x, wants_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if wants_weight else None, weight if wants_x else None)
        return product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        (dy,) = grads
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        rows = dy.reshape(-1, dy.shape[-1])
        dx = dweight = None
        if wants_x:
            # A transform or mode may be around the backward alone.
            direct = dy.dtype == torch.float32 and not torch.is_grad_enabled()
            if direct and cpu_calls.direct_reason(dy, weight) is None and _dense(weight):
                dx = product(dy, weight.T, None)
            else:
                dx = dy @ weight
        if wants_weight:
            dweight = weight_gradient(rows, x)
        return dx, dweight, rows.sum(0) if wants_bias else None
