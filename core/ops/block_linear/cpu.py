"""Block-diagonal maps by the compiled CPU kernels: fills results that ``torch_op`` has made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from longseq.core.ops import cpu_calls
from longseq.core.ops.backends import cpu_reason, native
from longseq.core.ops.precision import autocast_dtype

MAX_BLOCK = 16
"""Widest block that the kernel is for: beyond it, matrix products are quicker."""
MAX_MAPS = 3


class Arguments(NamedTuple):
    """A call of ``longseq.core.ops.block_linear``, which says what the arguments are."""

    x: Tensor
    weights: tuple[Tensor, ...]


class Inputs(NamedTuple):
    """A call of the kernels: rows (R, W), and the maps stacked (M, W/P, P, P)."""

    x: Tensor
    weight: Tensor


def reason(call: Arguments) -> str | None:
    """Returns why the kernels do not take a call, or None if they do."""
    x, weights = call
    if not 0 < len(weights) <= MAX_MAPS:
        return f"it takes 1 to {MAX_MAPS} maps, these are {len(weights)}"
    if weights[0].shape[-1] > MAX_BLOCK:
        width = weights[0].shape[-1]
        return f"blocks wider than {MAX_BLOCK} are quicker as matrix products, these have {width}"
    if x.dtype not in (torch.float32, torch.float64) or any(w.dtype != x.dtype for w in weights):
        return "it takes float32 or float64, and weights of the same"
    why = cpu_reason(x, *weights)
    return "autocast is on" if why is None and autocast_dtype(x) is not None else why


def _rows(x: Tensor) -> cpu_calls.Arg:
    """Returns how the kernels take rows (R, W)."""
    return x.data_ptr(), cpu_calls.code(x.dtype), 0, x.stride(0)


def _dense(x: Tensor) -> Tensor:
    return x if x.stride(1) == 1 else x.contiguous()


def _common(x: Tensor, weight: Tensor) -> tuple[Any, ...]:
    """Returns (rows, W, P, maps), the dtype, the threads, x and the weights."""
    sizes = (*x.shape, weight.shape[-1], weight.shape[0])
    threads = cpu_calls.threads(x.numel() * weight.shape[0])
    return sizes, cpu_calls.code(x.dtype), threads, _rows(x), weight.data_ptr()


def forward(outputs: Sequence[Tensor], inputs: Inputs) -> None:
    """Fills an output (R, W) per map."""
    x, weight = _dense(inputs.x), inputs.weight.contiguous()
    native().block_linear_forward(*_common(x, weight), [_rows(y) for y in outputs])


def backward(dx: Tensor, grads: Sequence[Tensor], inputs: Inputs) -> Tensor:
    """Fills the gradient of x; returns that of the weights."""
    x, weight = _dense(inputs.x), inputs.weight.contiguous()
    grads = [_dense(dy) for dy in grads]
    parts = x.new_empty((-(-x.shape[0] // native().BLOCK_ROWS), *weight.shape))
    native().block_linear_backward(
        *_common(x, weight), [_rows(dy) for dy in grads], _rows(dx), parts.data_ptr()
    )
    return parts.sum(0)
