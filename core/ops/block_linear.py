"""Block-diagonal linear maps y_m = W_m x with small blocks, several of one input in one pass over it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from longseq.core.ops import _native
from longseq.core.ops.backends import cpu_reason, native

MAX_BLOCK = 16
"""Widest block that the kernel is for: beyond it, matrix products are quicker."""


def by_kernel(x: Tensor, *weights: Tensor) -> bool:
    """Returns whether ``block_linear`` takes these: full precision on the CPU, small blocks, no autocast."""
    fits = 0 < len(weights) <= 3 and weights[0].shape[-1] <= MAX_BLOCK
    fits = fits and x.dtype in (torch.float32, torch.float64) and all(w.dtype == x.dtype for w in weights)
    return fits and cpu_reason(x, *weights) is None and not torch.is_autocast_enabled(x.device.type)


def block_linear(x: Tensor, *weights: Tensor) -> list[Tensor]:
    """Applies one or more block-diagonal maps to the same input. Only for tensors that are ``by_kernel``.

    Args:
        x: (..., W).
        *weights: (W/P, P, P) each: blocks [out, in].

    Returns:
        (..., W) for each.
    """
    outputs = _call(x.reshape(-1, x.shape[-1]), torch.stack(weights))
    return [y.view(x.shape) for y in outputs]


def composed(x: Tensor, weight: Tensor) -> Tensor:
    """The definition of one map: (..., W) and (W/P, P, P) to (..., W)."""
    return torch.einsum("...hp,hop->...ho", x.unflatten(-1, weight.shape[:2]), weight).flatten(-2)


def _rows(x: Tensor) -> _native.Arg:
    """Returns how the kernels take rows (R, W)."""
    return x.data_ptr(), _native.code(x.dtype), 0, x.stride(0)


def _dense(x: Tensor) -> Tensor:
    return x if x.stride(1) == 1 else x.contiguous()


def _sizes(x: Tensor, weight: Tensor) -> tuple[Any, ...]:
    """Returns (rows, W, P, maps), the dtype and the threads."""
    sizes = (*x.shape, weight.shape[-1], weight.shape[0])
    return sizes, _native.code(x.dtype), _native.threads(x.numel() * weight.shape[0])


@torch.library.custom_op("longseq::block_linear", mutates_args=(), device_types="cpu")
def _apply(x: Tensor, weight: Tensor) -> list[Tensor]:
    x, weight = _dense(x), weight.contiguous()
    outputs = [torch.empty(x.shape, dtype=x.dtype) for _ in weight]
    _native.fresh(*outputs)
    native().block_linear_forward(
        *_sizes(x, weight), _rows(x), weight.data_ptr(), [_rows(y) for y in outputs]
    )
    return outputs


@_apply.register_fake
def _apply_fake(x: Tensor, weight: Tensor) -> list[Tensor]:
    return [x.new_empty(x.shape) for _ in range(weight.shape[0])]


@torch.library.custom_op("longseq::block_linear_backward", mutates_args=(), device_types="cpu")
def _apply_backward(
    x: Tensor, weight: Tensor, first: Tensor, second: Tensor | None, third: Tensor | None
) -> list[Tensor]:
    x, weight = _dense(x), weight.contiguous()
    grads = [_dense(dy) for dy in (first, second, third) if dy is not None]
    dx = torch.empty(x.shape, dtype=x.dtype)
    _native.fresh(dx)
    parts = x.new_empty((-(-x.shape[0] // native().BLOCK_ROWS), *weight.shape))
    native().block_linear_backward(
        *_sizes(x, weight), _rows(x), weight.data_ptr(), [_rows(dy) for dy in grads], _rows(dx),
        parts.data_ptr(),
    )  # fmt: skip
    return [dx, parts.sum(0)]


@_apply_backward.register_fake
def _apply_backward_fake(
    x: Tensor, weight: Tensor, first: Tensor, second: Tensor | None, third: Tensor | None
) -> list[Tensor]:
    return [x.new_empty(x.shape), weight.new_empty(weight.shape)]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grads: Any, *more: Any) -> tuple[Any, ...]:
    grads = grads if isinstance(grads, (list, tuple)) else (grads, *more)
    x, weight = ctx.saved_tensors
    grads = [torch.zeros_like(x) if dy is None else dy for dy in grads]
    if torch.is_grad_enabled():

        def again(x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
            return tuple(composed(x, w) for w in weight.unbind())

        _, pull, *_ = torch.func.vjp(again, x, weight)
        found = pull(tuple(grads))
    else:
        found = _call_backward(x, weight, *grads, *[None] * (3 - len(grads)))
    return found[0], found[1]


_apply.register_autograd(_backward, setup_context=_setup)


def _apply_vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
    found = _native.vmap_fold(_call, (0,), info, in_dims, args)
    return found, (0,) * len(found)


def _apply_backward_vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
    return _native.vmap_loop(_call_backward, info, in_dims, args), (0,) * 2


_call_backward = _native.transformable(_apply_backward, _apply_backward_vmap)
_call = _native.transformable(_apply, _apply_vmap, _setup, _backward)
