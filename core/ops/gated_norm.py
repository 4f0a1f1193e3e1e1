"""Norms of groups of channels with a swish gate, in one pass over the rows; only inputs are kept."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu

from longseq.core.ops import _native
from longseq.core.ops.backends import cpu_reason, native

_VALUES = 1 << 12  # up to so many values torch's own operations are as quick, and keep little


def gated_rms_norm(
    y: Tensor, z: Tensor, weight: Tensor, groups: int = 1, norm_first: bool = True, eps: float = 1e-5
) -> Tensor:
    """Returns RMSNorm(y) · w · silu(z), or RMSNorm(y · silu(z)) · w, computed in float32 at least.

    Args:
        y: values (..., width).
        z: gate (..., width).
        weight: w (width,).
        groups: the mean square is taken over each of so many equal runs of channels.
        norm_first: whether the gate multiplies the normalised value or what is normalised.
        eps: added to the mean square.

    Returns:
        (..., width) in z's dtype.
    """
    return _dispatch(y, z, weight, None, None, groups, False, norm_first, eps)


def gated_layer_norm(
    y: Tensor, z: Tensor, weight: Tensor, u: Tensor, skip: Tensor, groups: int = 1, eps: float = 1e-5
) -> Tensor:
    """Returns (LayerNorm(y) · w + s · u) · silu(z), computed in float32 at least.

    Args:
        y: values (..., width).
        z: gate (..., width).
        weight: w (width,).
        u: what passes by the norm (..., width).
        skip: s (width,).
        groups: mean and variance are taken over each of so many equal runs of channels.
        eps: added to the variance.

    Returns:
        (..., width) in z's dtype.
    """
    return _dispatch(y, z, weight, u, skip, groups, True, True, eps)


def _dispatch(
    y: Tensor, z: Tensor, weight: Tensor, u: Tensor | None, skip: Tensor | None,
    groups: int, centred: bool, norm_first: bool, eps: float,
) -> Tensor:  # fmt: skip
    """Takes the kernel where all is of its type."""
    dtype = torch.promote_types(y.dtype, torch.float32)
    given = [x for x in (y, z, weight, u, skip) if x is not None]
    if y.numel() > _VALUES and all(x.dtype == dtype for x in given) and cpu_reason(*given) is None:
        width = y.shape[-1]
        y_rows, z_rows, u_rows = (None if x is None else x.reshape(-1, width) for x in (y, z, u))
        return _call(y_rows, z_rows, weight, u_rows, skip, groups, centred, norm_first, eps).view(y.shape)
    return _definition(y, z, weight, u, skip, groups, centred, norm_first, eps)


def composed(y: Tensor, z: Tensor, weight: Tensor, groups: int, norm_first: bool, eps: float) -> Tensor:
    """The definition of ``gated_rms_norm``; same arguments and result."""
    return _definition(y, z, weight, None, None, groups, False, norm_first, eps)


def _definition(
    y: Tensor, z: Tensor, weight: Tensor, u: Tensor | None, skip: Tensor | None,
    groups: int, centred: bool, norm_first: bool, eps: float,
) -> Tensor:  # fmt: skip
    """Returns both norms in torch's operations; ``centred``: whether the mean is taken off."""
    dtype = torch.promote_types(y.dtype, torch.float32)
    gate = silu(z.to(dtype))
    value = y.to(dtype) if norm_first else y.to(dtype) * gate
    grouped = value.unflatten(-1, (groups, -1))
    if centred:
        grouped = grouped - grouped.mean(-1, keepdim=True)
    grouped = grouped * torch.rsqrt(grouped.square().mean(-1, keepdim=True) + eps)
    out = grouped.flatten(-2) * weight.to(dtype)
    if u is not None and skip is not None:
        out = out + skip.to(dtype) * u.to(dtype)
    return (out * gate if norm_first else out).to(z.dtype)


def _rows(x: Tensor | None) -> _native.Arg:
    """Returns how the kernels take rows (R, width)."""
    return (0, 0, 0, 0) if x is None else (x.data_ptr(), _native.code(x.dtype), 0, x.stride(0))


def _arguments(
    y: Tensor, z: Tensor, weight: Tensor, u: Tensor | None, skip: Tensor | None,
    groups: int, centred: bool, norm_first: bool, eps: float,
) -> tuple[list[Any], list[Any]]:  # fmt: skip
    """Returns the kernels' common arguments and the tensors that must outlive the call."""
    y, z, u = (  # type: ignore[assignment]
        x if x is None or x.stride(1) == 1 else x.contiguous() for x in (y, z, u)
    )
    weight, skip = (_native.vector(x, y.dtype) for x in (weight, skip))  # type: ignore[assignment]
    arguments = [
        (*y.shape, groups), (centred, norm_first), eps, _native.code(y.dtype), _native.threads(y.numel()),
        _rows(y), _rows(z), _rows(u), weight.data_ptr(), _native.pointer(skip),
    ]  # fmt: skip
    return arguments, [y, z, weight, u, skip]


@torch.library.custom_op("longseq::gated_norm", mutates_args=(), device_types="cpu")
def _norm(
    y: Tensor, z: Tensor, weight: Tensor, u: Tensor | None, skip: Tensor | None,
    groups: int, centred: bool, norm_first: bool, eps: float,
) -> Tensor:  # fmt: skip
    out = torch.empty(y.shape, dtype=y.dtype)
    _native.fresh(out)
    arguments, alive = _arguments(y, z, weight, u, skip, groups, centred, norm_first, eps)
    native().gated_norm_forward(*arguments, _rows(out))
    del alive
    return out


@_norm.register_fake
def _norm_fake(
    y: Tensor, z: Tensor, weight: Tensor, u: Tensor | None, skip: Tensor | None,
    groups: int, centred: bool, norm_first: bool, eps: float,
) -> Tensor:  # fmt: skip
    return y.new_empty(y.shape)


@torch.library.custom_op("longseq::gated_norm_backward", mutates_args=(), device_types="cpu")
def _norm_backward(
    dout: Tensor, y: Tensor, z: Tensor, weight: Tensor, u: Tensor | None, skip: Tensor | None,
    groups: int, centred: bool, norm_first: bool, eps: float,
) -> list[Tensor]:  # fmt: skip
    dy, dz, dweight, du, dskip = outputs = _norm_backward_fake(
        dout, y, z, weight, u, skip, groups, centred, norm_first, eps
    )
    _native.fresh(dy, dz, du)
    arguments, alive = _arguments(y, z, weight, u, skip, groups, centred, norm_first, eps)
    dout = dout if dout.stride(1) == 1 else dout.contiguous()
    blocks = -(-y.shape[0] // native().NORM_ROWS)
    parts = [None if x is None else y.new_empty((blocks, y.shape[1])) for x in (weight, skip)]
    native().gated_norm_backward(
        *arguments, _rows(dout), _rows(dy), _rows(dz), _rows(None if u is None else du),
        *[_native.pointer(part) for part in parts],
    )  # fmt: skip
    del alive
    for to, part in zip((dweight, dskip), parts):
        if part is not None:
            torch.sum(part, 0, out=to)
    return outputs


@_norm_backward.register_fake
def _norm_backward_fake(
    dout: Tensor, y: Tensor, z: Tensor, weight: Tensor, u: Tensor | None, skip: Tensor | None,
    groups: int, centred: bool, norm_first: bool, eps: float,
) -> list[Tensor]:  # fmt: skip
    return [y.new_empty((0,) if x is None else x.shape) for x in (y, z, weight, u, skip)]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:5])
    ctx.options = inputs[5:]


def _backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    if torch.is_grad_enabled():
        there = [x for x in saved if x is not None]

        def again(*values: Tensor) -> Tensor:
            y, z, weight, *more = values
            return _definition(y, z, weight, *(more or (None, None)), *ctx.options)

        _, pull, *_ = torch.func.vjp(again, *there)
        found = pull(dout)
    else:
        found = _call_backward(dout, *saved, *ctx.options)
    grads = [found[k] if k < len(found) and x is not None else None for k, x in enumerate(saved)]
    return (*grads, None, None, None, None)


_norm.register_autograd(_backward, setup_context=_setup)


def _norm_vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
    return _native.vmap_fold(_call, (0, 1, 3), info, in_dims, args), 0


def _norm_backward_vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
    return _native.vmap_loop(_call_backward, info, in_dims, args), (0,) * 5


_call_backward = _native.transformable(_norm_backward, _norm_backward_vmap)
_call = _native.transformable(_norm, _norm_vmap, _setup, _backward)
