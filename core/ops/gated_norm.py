"""Root-mean-square norm with a swish gate, by blocks of rows that stay in the caches; keeps only inputs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu

from longseq.core.ops import _native

_VALUES = 1 << 16  # values of a block: five such blocks fit the second cache of a core


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
    dtype = torch.promote_types(y.dtype, torch.float32)
    if y.device.type == "cpu" and y.dtype == z.dtype == weight.dtype == dtype and y.numel() > _VALUES:
        width = y.shape[-1]
        return _call(y.reshape(-1, width), z.reshape(-1, width), weight, groups, norm_first, eps).view(
            y.shape
        )
    return composed(y, z, weight, groups, norm_first, eps)


def composed(y: Tensor, z: Tensor, weight: Tensor, groups: int, norm_first: bool, eps: float) -> Tensor:
    """The definition of ``gated_rms_norm``; same arguments and result."""
    dtype = torch.promote_types(y.dtype, torch.float32)
    gate = silu(z.to(dtype))
    value = y.to(dtype) if norm_first else y.to(dtype) * gate
    grouped = value.unflatten(-1, (groups, -1))
    grouped = grouped * torch.rsqrt(grouped.square().mean(-1, keepdim=True) + eps)
    out = grouped.flatten(-2) * weight.to(dtype)
    return (out * gate if norm_first else out).to(z.dtype)


def _blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Blocks of rows of tensors (rows, width)."""
    rows = max(1, _VALUES // tensors[0].shape[1])
    return zip(*[x.split(rows) for x in tensors])


def _scale(value: Tensor, eps: float) -> Tensor:
    """Returns 1/√(mean square + eps) of values (rows, groups, width / groups), (rows, groups, 1)."""
    norm = torch.linalg.vector_norm(value, dim=-1, keepdim=True)
    return norm.square_().div_(value.shape[-1]).add_(eps).rsqrt_()


@torch.library.custom_op("longseq::gated_rms_norm", mutates_args=(), device_types="cpu")
def _norm(y: Tensor, z: Tensor, weight: Tensor, groups: int, norm_first: bool, eps: float) -> Tensor:
    out = torch.empty(y.shape, dtype=y.dtype)
    for y_rows, z_rows, rows in _blocks(y, z, out):
        gate = silu(z_rows)
        value = y_rows if norm_first else torch.mul(y_rows, gate, out=rows)
        grouped = value.unflatten(-1, (groups, -1))
        torch.mul(grouped, _scale(grouped, eps), out=rows.unflatten(-1, (groups, -1)))
        rows.mul_(weight)
        if norm_first:
            rows.mul_(gate)
    return out


@_norm.register_fake
def _norm_fake(y: Tensor, z: Tensor, weight: Tensor, groups: int, norm_first: bool, eps: float) -> Tensor:
    return y.new_empty(y.shape)


@torch.library.custom_op("longseq::gated_rms_norm_backward", mutates_args=(), device_types="cpu")
def _norm_backward(
    dout: Tensor, y: Tensor, z: Tensor, weight: Tensor, groups: int, norm_first: bool, eps: float
) -> list[Tensor]:
    dy, dz = torch.empty(y.shape, dtype=y.dtype), torch.empty(y.shape, dtype=y.dtype)
    dweight = torch.zeros(weight.shape, dtype=weight.dtype)
    for d_rows, y_rows, z_rows, dy_rows, dz_rows in _blocks(dout, y, z, dy, dz):
        gate = silu(z_rows)
        value = y_rows if norm_first else y_rows * gate
        grouped = value.unflatten(-1, (groups, -1))
        scale = _scale(grouped, eps)
        unit = (grouped * scale).flatten(-2)  # what is multiplied by the weight
        slope = d_rows * gate if norm_first else d_rows  # the gradient of unit · weight
        product = slope * unit
        dweight += product.sum(0)
        # The gradient of the value: (slope · w - unit · mean(slope · w · unit)) · scale.
        mean = product.mul_(weight).unflatten(-1, (groups, -1)).mean(-1, keepdim=True).neg_()
        inner = torch.mul(slope, weight).unflatten(-1, (groups, -1))
        inner.addcmul_(unit.unflatten(-1, (groups, -1)), mean).mul_(scale)
        dvalue = inner.flatten(-2)
        if norm_first:
            dy_rows.copy_(dvalue)
            dgate = unit.mul_(weight).mul_(d_rows)
        else:
            torch.mul(dvalue, gate, out=dy_rows)
            dgate = dvalue.mul_(y_rows)
        dz_rows.copy_(torch.ops.aten.silu_backward(dgate, z_rows))
    return [dy, dz, dweight]


@_norm_backward.register_fake
def _norm_backward_fake(
    dout: Tensor, y: Tensor, z: Tensor, weight: Tensor, groups: int, norm_first: bool, eps: float
) -> list[Tensor]:
    return [x.new_empty(x.shape) for x in (y, z, weight)]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.options = inputs[3:]


def _backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
    y, z, weight = ctx.saved_tensors
    if torch.is_grad_enabled():

        def again(y: Tensor, z: Tensor, weight: Tensor) -> Tensor:
            return composed(y, z, weight, *ctx.options)

        _, pull, *_ = torch.func.vjp(again, y, z, weight)
        found = pull(dout)
    else:
        found = _call_backward(dout, y, z, weight, *ctx.options)
    return (*found, None, None, None)


_norm.register_autograd(_backward, setup_context=_setup)


def _norm_vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
    return _native.vmap_fold(_call, (0, 1), info, in_dims, args), 0


def _norm_backward_vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
    return _native.vmap_loop(_call_backward, info, in_dims, args), (0,) * 3


_call_backward = _native.transformable(_norm_backward, _norm_backward_vmap)
_call = _native.transformable(_norm, _norm_vmap, _setup, _backward)
