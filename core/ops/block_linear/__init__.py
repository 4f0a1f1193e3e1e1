"""Block-diagonal linear maps y_m = W_m x with small blocks, several of one input in one pass over
it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from longseq.core.ops.backends import Backend, Dispatch
from longseq.core.ops.block_linear import composed, cpu, torch_op
from longseq.core.ops.block_linear.cpu import Arguments
from longseq.core.ops.block_linear.reference import block_linear_reference

__all__ = ["block_linear", "block_linear_reference"]


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
        BackendError: if the backend asked for cannot serve the call.
    """
    chosen = _DISPATCH.choose(backend, Arguments(x, weights))
    if chosen == "reference":
        return block_linear_reference(x, *weights)
    if chosen == "composed":
        return [composed.one(x, weight) for weight in weights]
    outputs = torch_op.forward(x.reshape(-1, x.shape[-1]), torch.stack(weights))
    return [y.view(x.shape) for y in outputs]
