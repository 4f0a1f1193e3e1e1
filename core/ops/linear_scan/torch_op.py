"""The linear scan as an operator of torch: results, gradients, and the rules of autocast and
vmap."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from longseq.core.kernels.custom_op import define, gradients_of
from longseq.core.ops.linear_scan import cpu, cuda
from longseq.core.ops.linear_scan.arguments import Arguments
from longseq.core.ops.linear_scan.reference import linear_scan_reference
from longseq.core.ops.precision import compute_dtype


class _Incoming(NamedTuple):
    dh: Tensor


class _Saved(NamedTuple):
    h: Tensor


def _states(call: Arguments) -> Tensor:
    dtype = compute_dtype(call.a, call.b)
    kind = torch.promote_types(dtype, torch.complex64) if call.b.is_complex() else dtype
    return call.b.new_empty(call.b.shape, dtype=kind)


def _gradients(into: _Incoming, call: Arguments, saved: _Saved) -> tuple[Tensor, Tensor, Tensor]:
    first = saved.h.new_empty((saved.h.shape[0], saved.h.shape[2]))
    return call.a.new_empty(call.a.shape), call.b.new_empty(call.b.shape), first


def _forward_cpu(call: Arguments) -> Tensor:
    h = _states(call)
    if h.numel():
        cpu.forward(h, call, compute_dtype(call.a, call.b))
    return h


def _forward_cuda(call: Arguments) -> Tensor:
    h = _states(call)
    if h.numel():
        cuda.forward(h, *call)
    return h


def _backward_cpu(into: _Incoming, call: Arguments, saved: _Saved) -> tuple[Tensor, Tensor, Tensor]:
    grads = _gradients(into, call, saved)
    if saved.h.numel():
        cpu.backward(grads, into.dh, call, saved.h, compute_dtype(call.a, call.b))
    return grads


def _backward_cuda(
    into: _Incoming, call: Arguments, saved: _Saved
) -> tuple[Tensor, Tensor, Tensor]:
    grads = _gradients(into, call, saved)
    if saved.h.numel():
        cuda.backward(*grads, into.dh, call.a, call.initial_state, saved.h)
    return grads


def _setup(ctx: Any, output: Tensor, call: Arguments) -> None:
    ctx.save_for_backward(*call, output)


def _backward(ctx: Any, dh: Tensor) -> tuple[Any, ...]:
    saved = ctx.saved_tensors  # once: activation checkpointing recomputes at the first look
    grads = backward(dh.to(saved[3].dtype), *saved)
    return tuple(g if needed else None for g, needed in zip(grads, ctx.needs_input_grad))


def _composed(call: Arguments) -> Tensor:
    return linear_scan_reference(*call)


def _composed_backward(
    into: _Incoming, call: Arguments, saved: _Saved
) -> tuple[Tensor, Tensor, Tensor]:
    first = call.initial_state
    if first is None:
        first = saved.h.new_zeros((saved.h.shape[0], saved.h.shape[2]))
    da, db, dfirst = gradients_of(linear_scan_reference, (call.a, call.b, first), into)
    assert da is not None and db is not None and dfirst is not None
    return da, db, dfirst


backward = define(
    "longseq::linear_scan_backward",
    (_Incoming, Arguments, _Saved),
    3,
    _gradients,
    cpu=_backward_cpu,
    cuda=_backward_cuda,
    rows=("dh", "a", "b", "initial_state", "h"),
    composed=_composed_backward,
)
forward = define(
    "longseq::linear_scan",
    (Arguments,),
    1,
    _states,
    cpu=_forward_cpu,
    cuda=_forward_cuda,
    rows=("a", "b", "initial_state"),
    setup=_setup,
    backward=_backward,
    composed=_composed,
    keep=("a", "b", "initial_state"),
)
