"""The mLSTM on the CPU as an operator of torch: results, gradients and vmap."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from longseq.core.kernels.custom_op import define
from longseq.core.ops import cpu_calls
from longseq.core.ops.chunk_walk import row_blocks
from longseq.core.ops.chunking import chunk_length
from longseq.core.ops.mlstm import chunked, cpu, reference
from longseq.core.ops.mlstm.arguments import Arguments, MLSTMState, prepared
from longseq.core.ops.mlstm.cpu import MARK, Inputs, Kept, Options
from longseq.core.ops.precision import autocast_off


class _Memory(NamedTuple):
    c: Tensor
    n: Tensor
    m: Tensor


class _Saving(NamedTuple):
    marked: bool


class _Incoming(NamedTuple):
    dh: Tensor
    dc: Tensor
    dn: Tensor
    dm: Tensor


def _outputs(x: Inputs, memory: _Memory, options: Options, saving: _Saving) -> list[Tensor]:
    """Returns room for h, the last memory, nᵀq, and the marks C (B, marks, H, K, V), n and m
    alike."""
    batch, length, heads, d_value = x.v.shape
    every = MARK * chunk_length(options.chunk_size, length)
    count = -(-length // every) if saving.marked else 0
    d_key = x.k.shape[3]
    marks = [
        x.v.new_empty((batch, count, heads, *size)) for size in ((d_key, d_value), (d_key,), ())
    ]
    return [*[t.new_empty(t.shape) for t in (x.v, *memory, x.i)], *marks]


def _gradients(into: _Incoming, x: Inputs, kept: Kept, options: Options) -> list[Tensor]:
    """Returns room for the gradients of the inputs and of the memory."""
    return [t.new_empty(t.shape) for t in (*x, *into[1:])]


def _forward_cpu(x: Inputs, memory: _Memory, options: Options, saving: _Saving) -> list[Tensor]:
    h, *last, seen, mark_c, mark_n, mark_m = outputs = _outputs(x, memory, options, saving)
    cpu_calls.fresh(h)
    marks = (mark_c, mark_n, mark_m)
    for rows in row_blocks(x.v.shape[0], memory.c.shape[1:].numel()):
        c, n, m = (t[rows].flatten(0, 1).clone() for t in memory)
        kept = [t[rows] for t in marks] if saving.marked else []
        cpu.forward(x.at(rows), options, (c, n, m), kept, h[rows], seen[rows])
        for to, part in zip(last, (c, n, m)):
            to[rows] = part.view_as(to[rows])
    return outputs


def _backward_cpu(into: _Incoming, x: Inputs, kept: Kept, options: Options) -> list[Tensor]:
    # Dense, whatever the layout of the arguments is.
    outputs = [torch.empty(t.shape, dtype=t.dtype) for t in (*x, *into[1:])]
    cpu_calls.fresh(*outputs[:3])
    for rows in row_blocks(x.v.shape[0], into.dc.shape[1:].numel()):
        dh, *dlast = (t[rows] for t in into)
        of_rows = Kept(*[t[rows] for t in kept])
        cpu.backward(dh, dlast, x.at(rows), of_rows, options, [t[rows] for t in outputs])
    return outputs


def _setup(ctx: Any, output: Any, x: Inputs, memory: _Memory, options: Options, _: _Saving) -> None:
    ctx.save_for_backward(*x, *memory, output[0], *output[4:])
    ctx.options = options


def _backward(ctx: Any, grads: Any, *more: Any) -> tuple[Any, ...]:
    grads = grads if isinstance(grads, (list, tuple)) else (grads, *more)
    q, k, v, i, g, *rest = ctx.saved_tensors
    memory, kept = rest[:3], rest[3:]
    dh, *dlast = [torch.zeros_like(x) if d is None else d for d, x in zip(grads, (v, *memory))]
    if torch.is_grad_enabled():

        def again(*values: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            q, k, v, i, g, c, n, m = values
            return chunked.composed(q, k, v, i, g, c, n, m, *ctx.options)

        _, pull, *_ = torch.func.vjp(again, q, k, v, i, g, *memory)
        found = pull((dh, *dlast))
    else:
        found = backward(dh, *dlast, q, k, v, i, g, *kept, *ctx.options)
    return (*found, None, None, None)


def _composed(x: Inputs, memory: _Memory, options: Options, saving: _Saving) -> list[Tensor]:
    return [*chunked.composed(*x, *memory, *options), *[x.v.new_empty((0,)) for _ in range(4)]]


backward = define(
    "longseq::mlstm_backward",
    (_Incoming, Inputs, Kept, Options),
    None,
    _gradients,
    cpu=_backward_cpu,
    rows=(*_Incoming._fields, *Inputs._fields, *Kept._fields),
)
forward = define(
    "longseq::mlstm",
    (Inputs, _Memory, Options, _Saving),
    None,
    _outputs,
    cpu=_forward_cpu,
    rows=(*Inputs._fields, *_Memory._fields),
    setup=_setup,
    backward=_backward,
    composed=_composed,
)


def walk(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    g: Tensor,
    c: Tensor,
    n: Tensor,
    m: Tensor,
    chunk_size: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``chunked.composed`` where no intermediate is larger than a chunk's, on the CPU; same
    arguments."""
    marked = torch.is_grad_enabled()
    h, last_c, last_n, last_m, *_ = forward(q, k, v, i, g, c, n, m, chunk_size, eps, marked)
    return h, last_c, last_n, last_m


def run(call: Arguments) -> tuple[Tensor, MLSTMState]:
    """Runs a checked call on the CPU; a single position is a step."""
    if call.v.shape[1] == 1:
        return reference.step(call)
    with autocast_off(call.v):
        q, k, values, i, log_f, state = prepared(call)
        h, *last = walk(q, k, values, i, log_f, *state, call.chunk_size, call.eps)
        return h.to(call.v.dtype), (last[0], last[1], last[2])
