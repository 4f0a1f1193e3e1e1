"""Hyena's operator: a long convolution between two gates, all inputs through short convolutions first."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from longseq.core.errors import ArgumentError
from longseq.core.ops import _native
from longseq.core.ops._long_conv import field_size
from longseq.core.ops.backends import cpu_reason, native
from longseq.core.ops.causal_conv1d import MAX_WIDTH, causal_conv1d, causal_conv1d_reference
from longseq.core.ops.fft_conv import fft_conv, fft_conv_reference, work_dtype


def gated_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    kernel: Tensor,
    skip: Tensor | None = None,
    shift: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Computes ``y = s(x₀) ⊙ (kernel * u + skip·u)``, ``u = s(x₁) ⊙ s(x₂)``, with causal convolutions.

    On a CPU it is one compiled pass over x each way: short convolutions and products happen where the long
    convolution's transform reads and writes, nothing but x and the weights is kept for the backward, and the
    gradient of x is written once, in one piece. Elsewhere it is the four operators one after another.

    Args:
        x: [x₀, x₁, x₂], (B, L, 3D), nothing before position 0.
        weight: taps of the short convolutions s, (3D, W), the newest last.
        bias: of the short convolutions (3D,).
        kernel: taps of the long convolution (D, taps).
        skip: weight (D,) of a direct connection.
        shift: (3D,), added to x at its L positions before all else, as the bias of a linear map is.

    Returns:
        y and u, (B, L, D) in x's dtype. The products between are kept in float32, or in float64 if x or the
        kernel is.

    Raises:
        ArgumentError: for shapes that do not fit.
    """
    _check(x, weight, bias, kernel, skip, shift)
    if x.shape[1] > 1 and cpu_reason(x, weight, bias, kernel, skip, shift) is None:
        dtype = work_dtype(x, kernel)
        kernel, skip = kernel.to(dtype), None if skip is None else skip.to(dtype)
        y, u = _call(x, weight, bias, kernel, skip, shift)
        return y, u
    x = x if shift is None else x + shift.to(x.dtype)
    first, factor, value = causal_conv1d(x, weight, bias)[0].chunk(3, -1)
    u = factor * value
    return first * fft_conv(u, kernel, skip), u


def gated_conv_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    kernel: Tensor,
    skip: Tensor | None = None,
    shift: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The four operators as direct sums, O(L²); same arguments and results."""
    _check(x, weight, bias, kernel, skip, shift)
    x = x if shift is None else x + shift.to(x.dtype)
    first, factor, value = causal_conv1d_reference(x, weight, bias).chunk(3, -1)
    u = factor * value
    return first * fft_conv_reference(u, kernel, skip), u


def _check(
    x: Tensor, weight: Tensor, bias: Tensor | None, kernel: Tensor, skip: Tensor | None, shift: Tensor | None
) -> None:
    if x.ndim != 3 or x.shape[1] < 1 or x.shape[2] % 3:
        raise ArgumentError(f"gated_conv: x must be (B, L, 3D) with L of at least 1, got {tuple(x.shape)}")
    width, inner = x.shape[2] // 3, x.shape[2]
    if weight.ndim != 2 or weight.shape[0] != inner or not 1 <= weight.shape[1] <= MAX_WIDTH:
        raise ArgumentError(
            f"gated_conv: weight must be ({inner}, W), W from 1 to {MAX_WIDTH}, got {tuple(weight.shape)}"
        )
    for name, vector in (("bias", bias), ("shift", shift)):
        if vector is not None and vector.shape != (inner,):
            raise ArgumentError(f"gated_conv: {name} must be ({inner},), got {tuple(vector.shape)}")
    if kernel.ndim != 2 or kernel.shape[0] != width or kernel.shape[1] < 1:
        raise ArgumentError(f"gated_conv: kernel must be ({width}, taps), got {tuple(kernel.shape)}")
    if skip is not None and skip.shape != (width,):
        raise ArgumentError(f"gated_conv: skip must be ({width},), got {tuple(skip.shape)}")


def _arguments(
    x: Tensor, weight: Tensor, bias: Tensor | None, kernel: Tensor, skip: Tensor | None, shift: Tensor | None
) -> tuple[list[Any], list[Any]]:
    """Returns the kernels' common arguments and the tensors that must outlive the call."""
    x = _native.dense(x)
    weight, bias, skip, shift = (_native.vector(t, kernel.dtype) for t in (weight, bias, skip, shift))  # type: ignore[assignment]
    batch, length, inner = x.shape
    arguments = [
        (batch, length, inner // 3, weight.shape[1], field_size(2 * length)), _native.code(kernel.dtype),
        _native.threads(x.numel()), _native.rows(x),
        (weight.data_ptr(), _native.pointer(bias), _native.pointer(shift)),
        (kernel.data_ptr(), kernel.shape[1], kernel.stride(0), kernel.stride(1)), _native.pointer(skip),
    ]  # fmt: skip
    return arguments, [x, weight, bias, kernel, skip, shift]


@torch.library.custom_op("longseq::gated_conv", mutates_args=(), device_types="cpu")
def _conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, kernel: Tensor, skip: Tensor | None, shift: Tensor | None
) -> tuple[Tensor, Tensor]:
    y, u = _conv_fake(x, weight, bias, kernel, skip, shift)
    _native.fresh(y, u)
    arguments, alive = _arguments(x, weight, bias, kernel[:, : x.shape[1]], skip, shift)
    native().gated_conv_forward(*arguments, _native.rows(y), _native.rows(u))
    del alive
    return y, u


@_conv.register_fake
def _conv_fake(
    x: Tensor, weight: Tensor, bias: Tensor | None, kernel: Tensor, skip: Tensor | None, shift: Tensor | None
) -> tuple[Tensor, Tensor]:
    shape = (*x.shape[:2], x.shape[2] // 3)
    return x.new_empty(shape), x.new_empty(shape)


@torch.library.custom_op("longseq::gated_conv_backward", mutates_args=(), device_types="cpu")
def _conv_backward(
    dy: Tensor, du: Tensor | None, x: Tensor, weight: Tensor, bias: Tensor | None, kernel: Tensor,
    skip: Tensor | None, shift: Tensor | None,
) -> list[Tensor]:  # fmt: skip
    dx, dweight, dbias, dkernel, dshift = _conv_backward_fake(dy, du, x, weight, bias, kernel, skip, shift)
    length = x.shape[1]
    seen = dkernel[:, :length]  # laid out as the kernel is
    dkernel[:, length:] = 0
    taps = kernel[:, :length]
    if taps.stride() != seen.stride():
        taps = torch.empty_like(dkernel)[:, :length].copy_(taps)
    arguments, alive = _arguments(x, weight, bias, taps, skip, shift)
    _native.fresh(dx)
    dy, du = _native.dense(dy), None if du is None else _native.dense(du)
    native().gated_conv_backward(
        *arguments, _native.rows(dy), _native.rows(du), _native.rows(dx),
        (dweight.data_ptr(), dbias.data_ptr(), dshift.data_ptr()), dkernel.data_ptr(),
    )  # fmt: skip
    del alive
    given = (weight, bias, shift)
    dweight, dbias, dshift = (
        grad if t is None else grad.to(t.dtype) for grad, t in zip((dweight, dbias, dshift), given)
    )
    return [dx, dweight, dbias, dkernel, dshift]


@_conv_backward.register_fake
def _conv_backward_fake(
    dy: Tensor, du: Tensor | None, x: Tensor, weight: Tensor, bias: Tensor | None, kernel: Tensor,
    skip: Tensor | None, shift: Tensor | None,
) -> list[Tensor]:  # fmt: skip
    taps, dbias, dshift = (kernel.new_empty(s) for s in (weight.shape, weight.shape[:1], weight.shape[:1]))
    return [x.new_empty(x.shape), taps, dbias, torch.empty_like(kernel), dshift]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, dy: Tensor | None, du: Tensor | None) -> tuple[Tensor | None, ...]:
    x, weight, bias, kernel, skip, shift = ctx.saved_tensors
    if dy is None:
        dy = x.new_zeros(*x.shape[:2], x.shape[2] // 3)
    if torch.is_grad_enabled():
        return _differentiable_gradients(dy, du, x, weight, bias, kernel, skip, shift)
    dx, dweight, dbias, dkernel, dshift = _call_backward(dy, du, x, weight, bias, kernel, skip, shift)
    # The kernel's gradient at lag 0 is that of the direct connection; a view would keep all of it alive.
    dskip = None if skip is None else dkernel[:, 0].clone()
    absent = bias is None, shift is None
    return dx, dweight, None if absent[0] else dbias, dkernel, dskip, None if absent[1] else dshift


def _differentiable_gradients(
    dy: Tensor, du: Tensor | None, x: Tensor, *weights: Tensor | None
) -> tuple[Tensor | None, ...]:
    """Returns the gradients in operations that have derivatives themselves."""
    given = [t for t in weights if t is not None]

    def run(x: Tensor, *there: Tensor) -> tuple[Tensor, Tensor]:
        rest = iter(there)
        weight, bias, kernel, skip, shift = (None if t is None else next(rest) for t in weights)
        assert weight is not None
        assert kernel is not None
        x = x if shift is None else x + shift.to(x.dtype)
        first, factor, value = causal_conv1d_reference(x, weight, bias).chunk(3, -1)
        u = factor * value
        return first * fft_conv(u, kernel, skip), u

    grads = iter(torch.func.vjp(run, x, *given)[1]((dy, torch.zeros_like(dy) if du is None else du)))
    return (next(grads), *[None if t is None else next(grads) for t in weights])


_conv.register_autograd(_backward, setup_context=_setup)


def _conv_vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
    return _native.vmap_fold(_call, (0,), info, in_dims, args), (0, 0)


def _conv_backward_vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
    return _native.vmap_loop(_call_backward, info, in_dims, args), (0,) * 5


_call_backward = _native.transformable(_conv_backward, _conv_backward_vmap)
_call = _native.transformable(_conv, _conv_vmap, _setup, _backward)
