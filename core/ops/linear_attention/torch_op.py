"""Linear attention with a decay per head on the CPU as an operator of torch: results, gradients,
vmap."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from longseq.core.kernels.custom_op import define
from longseq.core.ops import cpu_calls
from longseq.core.ops.chunk_walk import row_blocks
from longseq.core.ops.chunking import chunk_length
from longseq.core.ops.linear_attention import chunked, per_channel, reference
from longseq.core.ops.linear_attention.arguments import Arguments, prepared
from longseq.core.ops.linear_attention.cpu import MARK, Inputs, Walk
from longseq.core.ops.precision import autocast_off


class _First(NamedTuple):
    state: Tensor


class _Saving(NamedTuple):
    marked: bool


class _Incoming(NamedTuple):
    dy: Tensor
    dlast: Tensor


class _Saved(NamedTuple):
    marks: Tensor


def _outputs(x: Inputs, first: _First, saving: _Saving) -> list[Tensor]:
    """Returns room for the output, the last state and the marks."""
    count = -(-x.v.shape[1] // chunk_length(x.chunk_size, x.v.shape[1]))
    batch, _, groups, d_key = x.q.shape
    width = x.v.shape[2] // groups * x.v.shape[3]
    marks = x.v.new_empty((batch, groups, -(-count // MARK) if saving.marked else 0, d_key, width))
    return [x.v.new_empty(x.v.shape), x.v.new_empty(first.state.shape), marks]


def _gradients(into: _Incoming, x: Inputs, saved: _Saved) -> list[Tensor]:
    """Returns room for the gradients of q, k, v, g, the first state, step, and skip, that of every
    row."""
    dstep = x.v.new_empty((0,) if x.step is None else x.step.shape)
    dskip = x.v.new_empty((0,) if x.skip is None else (x.v.shape[0], *x.skip.shape))
    return [*[t.new_empty(t.shape) for t in (x.q, x.k, x.v, x.g, into.dlast)], dstep, dskip]


def _forward_cpu(x: Inputs, first: _First, saving: _Saving) -> list[Tensor]:
    y, last, marks = outputs = _outputs(x, first, saving)
    cpu_calls.fresh(y)
    for rows in row_blocks(x.v.shape[0], first.state.shape[1:].numel()):
        walk = Walk(x.at(rows))
        running = walk.shape.state_in(first.state[rows])
        walk.forward(running, marks[rows].flatten(0, 1) if saving.marked else None, y[rows])
        last[rows] = walk.shape.state_out(running)
    return outputs


def _backward_cpu(into: _Incoming, x: Inputs, saved: _Saved) -> list[Tensor]:
    outputs = _gradients(into, x, saved)
    dq, dk, dv, dg, dfirst, dstep, dskip = outputs
    dskip.zero_()
    cpu_calls.fresh(dq, dk, dv)
    for rows in row_blocks(x.v.shape[0], into.dlast.shape[1:].numel()):
        walk = Walk(x.at(rows))
        dstate = walk.shape.state_in(into.dlast[rows])
        grads = [t[rows] for t in (dq, dk, dv, dg, dstep, dskip)]
        walk.backward(into.dy[rows], dstate, saved.marks[rows].flatten(0, 1), grads)
        dfirst[rows] = walk.shape.state_out(dstate)
    return outputs


def _setup(ctx: Any, output: Any, x: Inputs, first: _First, saving: _Saving) -> None:
    ctx.save_for_backward(*x[:6], first.state, output[2])
    ctx.chunk_size = x.chunk_size


def _backward(ctx: Any, grads: Any, *more: Any) -> tuple[Any, ...]:
    dy, dlast = (grads[0], grads[1]) if isinstance(grads, (list, tuple)) else (grads, more[0])
    *tensors, state, marks = ctx.saved_tensors
    x = Inputs._make([*tensors, ctx.chunk_size])
    dy = torch.zeros_like(x.v) if dy is None else dy
    dlast = torch.zeros_like(state) if dlast is None else dlast
    there = [t is not None for t in (x.step, x.skip)]
    if torch.is_grad_enabled():

        def again(*values: Tensor) -> tuple[Tensor, Tensor]:
            q, k, v, g, state, *others = values
            rest = iter(others)
            step, skip = (next(rest) if given else None for given in there)
            return chunked.per_head(q, k, v, g, state, ctx.chunk_size, step, skip)

        given = [t for t in (*x[:4], state, x.step, x.skip) if t is not None]
        _, pull, *_ = torch.func.vjp(again, *given)
        dq, dk, dv, dg, dfirst, *others = pull((dy, dlast))
        rest = iter(others)
        dstep, dskip = (next(rest) if is_there else None for is_there in there)
    else:
        dq, dk, dv, dg, dfirst, dstep, dskip = backward(dy, dlast, *x, marks)
        dstep, dskip = dstep if there[0] else None, dskip.sum(0) if there[1] else None
    return dq, dk, dv, dg, dstep, dskip, None, dfirst, None


def _composed(x: Inputs, first: _First, saving: _Saving) -> list[Tensor]:
    y, last = chunked.per_head(*x[:4], first.state, x.chunk_size, x.step, x.skip)
    return [y, last, x.v.new_empty((0,))]


backward = define(
    "longseq::decay_attention_backward",
    (_Incoming, Inputs, _Saved),
    None,
    _gradients,
    cpu=_backward_cpu,
    rows=("dy", "dlast", "q", "k", "v", "g", "step", "marks"),
)
forward = define(
    "longseq::decay_attention",
    (Inputs, _First, _Saving),
    None,
    _outputs,
    cpu=_forward_cpu,
    rows=("q", "k", "v", "g", "step", "state"),
    setup=_setup,
    backward=_backward,
    composed=_composed,
)


def decay_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    state: Tensor,
    chunk_size: int,
    step: Tensor | None = None,
    skip: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """``chunked.per_head`` where no intermediate is larger than a chunk's, on the CPU; same
    arguments."""
    y, last, _ = forward(q, k, v, g, step, skip, chunk_size, state, torch.is_grad_enabled())
    return y, last


def run(call: Arguments) -> tuple[Tensor, Tensor]:
    """Runs a checked call on the CPU, by whichever of its ways is the quickest.

    Heads that share a key fold into one wide product, which the walk is for. Everything else goes
    head by head through the kernel that keeps a chunk in the caches.
    """
    if call.v.shape[1] == 1:
        return reference.run(call)
    folds = call.v.shape[2] > call.q.shape[2]
    with autocast_off(call.v):
        if not folds or (call.log_decay is not None and call.log_decay.ndim == 4):
            return per_channel.run(call)
        y, last = decay_attention(*prepared(call), call.chunk_size)
        return y.to(call.v.dtype), last
