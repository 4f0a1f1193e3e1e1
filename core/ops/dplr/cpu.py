"""The diagonal-plus-rank-one recurrence by the CPU kernel that keeps a chunk in the caches."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from longseq.core.kernels.custom_op import define, gradients_of
from longseq.core.ops import cpu_calls
from longseq.core.ops.backends import cpu_reason, native
from longseq.core.ops.chunking import chunk_length
from longseq.core.ops.dplr import chunked, reference
from longseq.core.ops.dplr.arguments import Arguments
from longseq.core.ops.precision import autocast_off, compute_dtype

_CHUNK = 16  # positions in a chunk of the kernel, whatever is asked for


class _Inputs(NamedTuple):
    """The arguments of ``longseq.core.ops.dplr``, with its scale given."""

    q: Tensor
    k: Tensor
    v: Tensor
    a: Tensor
    b: Tensor
    log_decay: Tensor
    state: Tensor | None
    resets: Tensor | None
    scale: float
    chunk_size: int

    @property
    def dtype(self) -> torch.dtype:
        """What is computed in."""
        return compute_dtype(*self[:7])


class _Saving(NamedTuple):
    marked: bool


class _Incoming(NamedTuple):
    dy: Tensor | None
    dlast: Tensor | None


class _Saved(NamedTuple):
    marks: Tensor


def reason(call: Arguments) -> str | None:
    """Returns why the CPU kernels cannot serve a call, or None if they can."""
    return cpu_reason(*call[:6], call.initial_state, call.resets)


def run(call: Arguments) -> tuple[Tensor, Tensor]:
    """Runs a checked call; a single position is a step."""
    if call.v.shape[1] == 1:
        return reference.run(call)
    chunk_length(call.chunk_size, call.v.shape[1])  # refuses what the other forms refuse
    scale = call.q.shape[3] ** -0.5 if call.scale is None else call.scale
    state, resets = call.initial_state, call.resets
    x = _Inputs(*call[:6], state, resets, scale, call.chunk_size)
    with autocast_off(call.v):
        y, last, _ = _forward(*x, torch.is_grad_enabled())
    return y, last


def _composed(x: _Inputs) -> tuple[Tensor, Tensor]:
    """The operator in torch's own operations."""
    return chunked.run(Arguments(*x[:6], x.scale, x.state, x.resets, x.chunk_size))


def _state_shape(x: _Inputs) -> tuple[int, int, int, int]:
    batch, _, heads, d_value = x.v.shape
    return batch, heads, x.q.shape[3], d_value


def _outputs(x: _Inputs, saving: _Saving) -> list[Tensor]:
    """Returns room for the output, the last state and the marks."""
    batch, heads, d_key, d_value = _state_shape(x)
    chunks = -(-x.v.shape[1] // _CHUNK)
    count = -(-chunks // native().DPLR_MARK) if saving.marked else 0
    marks = x.v.new_empty((batch, heads, count, d_key, d_value), dtype=x.dtype)
    last = x.v.new_empty((batch, heads, d_key, d_value), dtype=x.dtype)
    return [x.v.new_empty(x.v.shape), last, marks]


def _gradients(into: _Incoming, x: _Inputs, saved: _Saved) -> list[Tensor]:
    """Returns room for the gradients of q, k, v, a, b, the log-decays and the state."""
    rows = [t.new_empty(t.shape) for t in x[:6]]
    return [*rows, x.v.new_empty(_state_shape(x), dtype=x.dtype)]


def _arguments(x: _Inputs, marks: Tensor | None) -> tuple[list[Any], list[Any]]:
    """Returns what both kernels take first, and the tensors that must live until they return."""
    batch, length, heads, d_value = x.v.shape
    d_key = x.q.shape[3]
    tensors = [cpu_calls.dense(t) for t in x[:6]]
    resets = None if x.resets is None else x.resets.contiguous()
    threads = cpu_calls.threads(batch * length * heads * d_key * d_value)
    rows = [cpu_calls.rows(t) for t in tensors]
    pointers = [cpu_calls.pointer(resets), cpu_calls.pointer(marks)]
    sizes = (batch, length, heads, d_key, d_value)
    code = cpu_calls.code(x.dtype)
    return [sizes, x.scale, code, threads, rows, *pointers], [tensors, resets]


def _forward_cpu(x: _Inputs, saving: _Saving) -> list[Tensor]:
    y, last, marks = outputs = _outputs(x, saving)
    cpu_calls.fresh(y, marks)
    state = None if x.state is None else x.state.to(x.dtype).contiguous()
    arguments, alive = _arguments(x, marks if saving.marked else None)
    native().dplr_forward(
        *arguments, cpu_calls.pointer(state), cpu_calls.rows(y), cpu_calls.pointer(last)
    )
    del alive
    return outputs


def _backward_cpu(into: _Incoming, x: _Inputs, saved: _Saved) -> list[Tensor]:
    outputs = _gradients(into, x, saved)
    cpu_calls.fresh(*outputs)
    dy = cpu_calls.dense(torch.zeros_like(x.v) if into.dy is None else into.dy)
    dlast = None if into.dlast is None else into.dlast.to(x.dtype).contiguous()
    arguments, alive = _arguments(x, saved.marks)
    native().dplr_backward(
        *arguments,
        cpu_calls.rows(dy),
        cpu_calls.pointer(dlast),
        [cpu_calls.rows(t) for t in outputs[:6]],
        cpu_calls.pointer(outputs[6]),
    )
    del alive
    return outputs


def _setup(ctx: Any, output: Any, x: _Inputs, saving: _Saving) -> None:
    ctx.save_for_backward(*x[:8], output[2])
    ctx.scale, ctx.chunk_size = x.scale, x.chunk_size


def _pull(ctx: Any, grads: Any, *more: Any) -> tuple[Any, ...]:
    dy, dlast = (grads[0], grads[1]) if isinstance(grads, (list, tuple)) else (grads, more[0])
    *tensors, marks = ctx.saved_tensors
    x = _Inputs._make([*tensors, ctx.scale, ctx.chunk_size])
    given = x[:7]
    if torch.is_grad_enabled():

        def again(*values: Tensor | None) -> tuple[Tensor, ...]:
            return _composed(_Inputs._make([*values, *x[7:]]))

        found = gradients_of(again, given, [dy, dlast])
    else:
        found = _backward(dy, dlast, *x, marks)
    rows = [
        None if one is None or new is None else new.to(one.dtype) for one, new in zip(given, found)
    ]
    return *rows, None, None, None, None


def _in_operations(x: _Inputs, saving: _Saving) -> list[Tensor]:
    return [*_composed(x), x.v.new_empty((0,))]


_ROWS = ("q", "k", "v", "a", "b", "log_decay", "state", "resets")
_backward = define(
    "longseq::dplr_walk_backward",
    (_Incoming, _Inputs, _Saved),
    None,
    _gradients,
    cpu=_backward_cpu,
    rows=("dy", "dlast", *_ROWS, "marks"),
)
_forward = define(
    "longseq::dplr_walk",
    (_Inputs, _Saving),
    None,
    _outputs,
    cpu=_forward_cpu,
    rows=_ROWS,
    setup=_setup,
    backward=_pull,
    composed=_in_operations,
)
