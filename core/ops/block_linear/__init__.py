"""Block-diagonal linear maps y_m = W_m x with small blocks, several of one input in one pass over
it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from longseq.core.errors import ArgumentError
from longseq.core.ops.arguments import check_device, check_kind, check_shape
from longseq.core.ops.backends import Backend, Dispatch
from longseq.core.ops.block_linear import composed, cpu, torch_op
from longseq.core.ops.block_linear.cpu import MAX_BLOCK, Arguments
from longseq.core.ops.block_linear.reference import block_linear_reference
from longseq.core.ops.precision import autocast_dtype

__all__ = ["MAX_BLOCK", "block_linear", "block_linear_reference"]


def _example(new: Callable[..., Tensor]) -> Arguments:
    return Arguments(new(1, 64, 32), (new(8, 4, 4),))


# Matrix products are the proper form for wide blocks, low precisions and other devices.
_DISPATCH = Dispatch("block_linear", {"cpu": cpu.reason}, _example, "composed", announced=False)


def block_linear(x: Tensor, *weights: Tensor, backend: Backend = "auto") -> list[Tensor]:
    """Applies one or more block-diagonal maps to the same input.

    Args:
        x: (..., W).
        *weights: (W/P, P, P) each, all with one P: blocks [out, in].
        backend: see ``longseq.core.ops.backends``.

    Returns:
        (..., W) for each.

    Raises:
        ArgumentError: naming the argument that does not fit.
        BackendError: if the backend asked for cannot serve the call.
    """
    _check(x, weights)
    chosen = _DISPATCH.choose(backend, Arguments(x, weights))
    if chosen == "reference":
        return block_linear_reference(x, *weights)
    if chosen == "composed":
        return [composed.one(x, weight) for weight in weights]
    outputs = torch_op.forward(x.reshape(-1, x.shape[-1]), torch.stack(weights))
    return [y.view(x.shape) for y in outputs]


def _check(x: Tensor, weights: tuple[Tensor, ...]) -> None:
    """Checks shapes and devices: the kernels read what the first weight's shape says is there.

    Raises:
        ArgumentError: naming the argument that does not fit.
    """
    name = "block_linear"
    named = {f"weight {place}": weight for place, weight in enumerate(weights)}
    check_kind(name, True, x=x, **named)
    if not weights:
        raise ArgumentError(f"{name}: at least one weight must be given")
    size = weights[0].shape[-1] if weights[0].ndim else 0
    if x.ndim < 1 or size < 1 or x.shape[-1] % size:
        raise ArgumentError(
            f"{name}: x must be (..., W) with blocks of P that divide W, got {tuple(x.shape)} and "
            f"weight 0 {tuple(weights[0].shape)}"
        )
    shape = (x.shape[-1] // size, size, size)
    for one, weight in named.items():
        check_shape(name, one, weight, shape, "(width / P, P, P)")
        if weight.dtype != x.dtype and autocast_dtype(x) is None:
            raise ArgumentError(f"{name}: {one} must be {x.dtype} as x, got {weight.dtype}")
    check_device(name, x, dict(named))
