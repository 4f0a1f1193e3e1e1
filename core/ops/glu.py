"""The gated linear unit together with the bias of the linear map before it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from longseq.core.errors import ArgumentError
from longseq.core.ops import _native
from longseq.core.ops.backends import cpu_reason, native

_ROWS = 128  # that share one partial sum of the bias's gradient, as in the compiled kernel


def biased_glu(x: Tensor, bias: Tensor | None = None) -> Tensor:
    """Returns ``(a + α) ⊙ σ(g + γ)`` for x = [a, g] and the bias [α, γ].

    Float32 and float64 on a CPU run in one compiled pass each way, which the bias and its gradient are part
    of; anything else through ``torch.nn.functional.glu``.

    Args:
        x: (..., 2W).
        bias: (2W,).

    Returns:
        (..., W).

    Raises:
        ArgumentError: for shapes that do not fit.
    """
    if x.ndim < 1 or x.shape[-1] % 2:
        raise ArgumentError(f"biased_glu: x must be (..., 2W), got {tuple(x.shape)}")
    if bias is not None and bias.shape != x.shape[-1:]:
        raise ArgumentError(f"biased_glu: bias must be ({x.shape[-1]},), got {tuple(bias.shape)}")
    same = bias is None or bias.dtype == x.dtype
    if x.dtype in (torch.float32, torch.float64) and same and x.numel() and cpu_reason(x, bias) is None:
        y: Tensor = _call(x.reshape(-1, x.shape[-1]), bias)
        return y.view(*x.shape[:-1], -1)
    return biased_glu_reference(x, bias)


def biased_glu_reference(x: Tensor, bias: Tensor | None = None) -> Tensor:
    """The same in operations of torch."""
    return F.glu(x if bias is None else x + bias, -1)


@torch.library.custom_op("longseq::biased_glu", mutates_args=(), device_types="cpu")
def _glu(x: Tensor, bias: Tensor | None) -> Tensor:
    y = _glu_fake(x, bias)
    x, bias = x.contiguous(), None if bias is None else bias.contiguous()
    native().glu_forward(
        x.shape[0], y.shape[1], _native.code(x.dtype), _native.threads(x.numel()),
        x.data_ptr(), _native.pointer(bias), y.data_ptr(),
    )  # fmt: skip
    return y


@_glu.register_fake
def _glu_fake(x: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[1] // 2)


@torch.library.custom_op("longseq::biased_glu_backward", mutates_args=(), device_types="cpu")
def _glu_backward(dy: Tensor, x: Tensor, bias: Tensor | None) -> list[Tensor]:
    dx, dbias = _glu_backward_fake(dy, x, bias)
    dy, x, bias = dy.contiguous(), x.contiguous(), None if bias is None else bias.contiguous()
    sums = x.new_empty(-(-x.shape[0] // _ROWS), x.shape[1])
    _native.fresh(dx)
    native().glu_backward(
        x.shape[0], dy.shape[1], _native.code(x.dtype), _native.threads(x.numel()),
        x.data_ptr(), _native.pointer(bias), dy.data_ptr(), dx.data_ptr(), sums.data_ptr(),
    )  # fmt: skip
    return [dx, torch.sum(sums, 0, out=dbias)]


@_glu_backward.register_fake
def _glu_backward_fake(dy: Tensor, x: Tensor, bias: Tensor | None) -> list[Tensor]:
    return [x.new_empty(x.shape), x.new_empty(x.shape[1])]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, bias = ctx.saved_tensors
    if torch.is_grad_enabled():  # in operations that have derivatives themselves
        a, gate = (x if bias is None else x + bias).chunk(2, -1)
        s = torch.sigmoid(gate)
        dx = torch.cat([dy * s, dy * a * s * (1 - s)], -1)
        dbias = dx.sum(0)
    else:
        dx, dbias = _call_backward(dy, x, bias)
    return dx, None if bias is None else dbias


_glu.register_autograd(_backward, setup_context=_setup)


def _glu_vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
    return _native.vmap_fold(_call, (0,), info, in_dims, args), 0


def _glu_backward_vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
    return _native.vmap_loop(_call_backward, info, in_dims, args), (0, 0)


_call_backward = _native.transformable(_glu_backward, _glu_backward_vmap)
_call = _native.transformable(_glu, _glu_vmap, _setup, _backward)
