r"""Linear scan h_t = a_t h_{t-1} + b_t over time: the recurrence of S5, the LRU and minGRU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from longseq.core.errors import ArgumentError
from longseq.core.ops import _cuda, _cuda_walks, _native
from longseq.core.ops.backends import Backend, choose, cpu_reason, native

_NAME = "linear_scan"


def linear_scan(
    a: Tensor, b: Tensor, initial_state: Tensor | None = None, *, backend: Backend = "auto"
) -> tuple[Tensor, Tensor]:
    """Runs h_t = a_t h_{t-1} + b_t for every channel.

    Args:
        a: decays, broadcastable to b; a decay of exactly zero resets the channel.
        b: inputs (B, L, …), real or complex; float32, float64, bfloat16, float16, complex64 or complex128.
        initial_state: (B, …); zero if None.
        backend: see ``longseq.core.ops.backends``.

    Returns:
        All states (B, L, …) and the last one (B, …): float32 or float64 or their complex counterparts.

    Raises:
        ArgumentError: naming the argument that does not fit.
    """
    _native.check_kind(_NAME, False, a=a, b=b, **_native.present(initial_state=initial_state))
    if b.dim() < 2 or b.shape[1] == 0:
        raise ArgumentError(f"{_NAME}: b must be (batch, length ≥ 1, channels…), got {tuple(b.shape)}")
    _native.check(_NAME, "b", b, b.shape, "(batch, length, channels…)")
    try:
        a_full = a.expand(b.shape)
    except RuntimeError:
        raise ArgumentError(
            f"{_NAME}: a must broadcast to the shape of b {tuple(b.shape)}, got {tuple(a.shape)}"
        ) from None
    _native.check(_NAME, "a", a_full, b.shape, "(batch, length, channels…)")
    shape = (b.shape[0], *b.shape[2:])
    if initial_state is not None:
        _native.check(_NAME, "initial_state", initial_state, shape, "(batch, channels…)")
    _native.check_device(_NAME, b, {"a": a, "initial_state": initial_state})
    dtype = _native.compute_dtype(a, b, initial_state)
    if any(t is not None and t.is_complex() for t in (a, b, initial_state)):
        # The kernel takes all complex or all real.
        dtype = torch.promote_types(dtype, torch.complex64)
        a_full, b = a_full.to(dtype), b.to(dtype)
    elif dtype != _native.compute_dtype(a, b):
        b = b.to(dtype)  # only the initial state is float64
    reasons = {"cpu": cpu_reason(a, b, initial_state), "cuda": _cuda.cuda_reason(a, b, initial_state)}
    if choose(_NAME, backend, reasons) == "reference":
        h = linear_scan_reference(a_full, b, initial_state)
    else:
        flat = initial_state
        if flat is not None:
            flat = flat.to(dtype).flatten(1) if flat.dim() > 1 else flat.to(dtype).unsqueeze(1)
        h = _call(_flatten(a_full), _flatten(b), flat).view(b.shape)
    return h, h[:, -1].clone()


def linear_scan_reference(a: Tensor, b: Tensor, initial_state: Tensor | None = None) -> Tensor:
    """The recurrence written out. Arguments as in ``linear_scan`` with a of b's shape; returns all states."""
    dtype = _native.compute_dtype(a, b, initial_state)
    if any(t is not None and t.is_complex() for t in (a, b, initial_state)):
        dtype = torch.promote_types(dtype, torch.complex64)
    h = torch.zeros_like(b[:, 0], dtype=dtype) if initial_state is None else initial_state.to(dtype)
    states = []
    for a_t, b_t in zip(a.to(dtype).unbind(1), b.to(dtype).unbind(1)):
        h = a_t * h + b_t
        states.append(h)
    return torch.stack(states, 1)


def _flatten(tensor: Tensor) -> Tensor:
    """Returns (B, L, …) as (B, L, D), keeping a broadcast batch or time dimension unmaterialised."""
    return tensor.unsqueeze(2) if tensor.dim() == 2 else tensor.flatten(2)


def _sizes(b: Tensor) -> tuple[int, int, int]:
    return b.shape[0], b.shape[1], b.shape[2]


@torch.library.custom_op("longseq::linear_scan", mutates_args=(), device_types="cpu")
def _scan(a: Tensor, b: Tensor, initial_state: Tensor | None) -> Tensor:
    h = _scan_fake(a, b, initial_state)
    dtype = _native.compute_dtype(a, b)
    a, b, initial = _native.dense(a), _native.dense(b), _native.vector(initial_state, dtype)
    _native.fresh(h)
    if h.numel():
        native().linear_scan_forward(
            _sizes(h), h.is_complex(), _native.code(dtype), _native.threads(4 * h.numel()), _native.rows(a),
            _native.rows(b), _native.pointer(initial), _native.rows(h),
        )  # fmt: skip
    return h


@_scan.register_kernel("cuda")
def _scan_cuda(a: Tensor, b: Tensor, initial_state: Tensor | None) -> Tensor:
    h = _scan_fake(a, b, initial_state)
    if h.numel():
        _cuda_walks.linear_forward(h, a, b, initial_state)
    return h


@_scan.register_fake
def _scan_fake(a: Tensor, b: Tensor, initial_state: Tensor | None) -> Tensor:
    dtype = _native.compute_dtype(a, b)
    return b.new_empty(
        b.shape, dtype=torch.promote_types(dtype, torch.complex64) if b.is_complex() else dtype
    )


@torch.library.custom_op("longseq::linear_scan_backward", mutates_args=(), device_types="cpu")
def _scan_backward(
    dh: Tensor, a: Tensor, b: Tensor, initial_state: Tensor | None, h: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    da, db, dinitial = _scan_backward_fake(dh, a, b, initial_state, h)
    dtype = _native.compute_dtype(a, b)
    a, dh, initial = _native.dense(a), _native.dense(dh), _native.vector(initial_state, dtype)
    _native.fresh(da, db)
    if h.numel():
        native().linear_scan_backward(
            _sizes(h), h.is_complex(), _native.code(dtype), _native.threads(4 * h.numel()), _native.rows(a),
            _native.pointer(initial), _native.rows(h), _native.rows(dh), _native.rows(da), _native.rows(db),
            dinitial.data_ptr(),
        )  # fmt: skip
    return da, db, dinitial


@_scan_backward.register_kernel("cuda")
def _scan_backward_cuda(
    dh: Tensor, a: Tensor, b: Tensor, initial_state: Tensor | None, h: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    da, db, dinitial = _scan_backward_fake(dh, a, b, initial_state, h)
    if h.numel():
        _cuda_walks.linear_backward(da, db, dinitial, dh, a, initial_state, h)
    return da, db, dinitial


@_scan_backward.register_fake
def _scan_backward_fake(
    dh: Tensor, a: Tensor, b: Tensor, initial_state: Tensor | None, h: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return a.new_empty(a.shape), b.new_empty(b.shape), h.new_empty((h.shape[0], h.shape[2]))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs, output)


def _backward(ctx: Any, dh: Tensor) -> tuple[Any, ...]:
    grads = _call_backward(dh.to(ctx.saved_tensors[3].dtype), *ctx.saved_tensors)
    return tuple(g if needed else None for g, needed in zip(grads, ctx.needs_input_grad))


_scan.register_autograd(_backward, setup_context=_setup)
_native.register_autocast(_scan, lower=(), keep=("a", "b", "initial_state"))


def _scan_vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
    return _native.vmap_fold(_call, (0, 1, 2), info, in_dims, args), 0


def _scan_backward_vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
    return _native.vmap_fold(_call_backward, (0, 1, 2, 3, 4), info, in_dims, args), (0, 0, 0)


_call_backward = _native.transformable(_scan_backward, _scan_backward_vmap)
_call = _native.transformable(_scan, _scan_vmap, _setup, _backward)
