"""The delta rule and linear attention by the CPU kernel that keeps a chunk in the caches, as
operators of torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from longseq.core.kernels.custom_op import define, gradients_of
from longseq.core.ops import cpu_calls
from longseq.core.ops.backends import native
from longseq.core.ops.chunking import chunk_length
from longseq.core.ops.precision import compute_dtype

_TILE, _LONGEST = 16, 32  # positions of the kernel's blocks, and of its longest chunk


class Inputs(NamedTuple):
    """What is attended to.

    Attributes:
        q: (B, L, G, K).
        k: (B, L, G, K).
        v: (B, L, H, V).
        beta: (B, L, H); None for linear attention.
        g: log-decays (B, L, H) or (B, L, G, K), or None.
        resets: bool (B, L), or None.
        state: (B, H, K, V), or None for zeros.
        scale: of q.
        chunk_size: positions per chunk.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    beta: Tensor | None
    g: Tensor | None
    resets: Tensor | None
    state: Tensor | None
    scale: float
    chunk_size: int

    @property
    def dtype(self) -> torch.dtype:
        """What is computed in."""
        return compute_dtype(self.q, self.k, self.v, self.beta, self.g, self.state)

    @property
    def chunk(self) -> int:
        """Positions in a chunk of the kernel, whole blocks of them."""
        asked = chunk_length(self.chunk_size, self.v.shape[1])
        return min(_LONGEST, -(-asked // _TILE) * _TILE)


class _Saving(NamedTuple):
    marked: bool


class _Incoming(NamedTuple):
    dy: Tensor | None
    dlast: Tensor | None


class _Saved(NamedTuple):
    marks: Tensor


def _outputs(x: Inputs, saving: _Saving) -> list[Tensor]:
    """Returns room for the output, the last state and the marks."""
    batch, length, heads, d_value = x.v.shape
    shape = (batch, heads, x.q.shape[3], d_value)
    chunks, dtype = -(-length // x.chunk), x.dtype
    count = -(-chunks // native().DELTA_MARK) if saving.marked else 0
    marks = x.v.new_empty((*shape[:2], count, *shape[2:]), dtype=dtype)
    return [x.v.new_empty(x.v.shape), x.v.new_empty(shape, dtype=dtype), marks]


def _gradients(into: _Incoming, x: Inputs, saved: _Saved) -> list[Tensor]:
    """Returns room for the gradients of q, k, v, beta, g and the state, empty for absent ones."""
    batch, _, heads, d_value = x.v.shape
    shape = (batch, heads, x.q.shape[3], d_value)
    # One empty tensor for both would be two results in one memory, which torch refuses.
    given = [
        x.v.new_empty((batch, 0)) if t is None else t.new_empty(t.shape) for t in (x.beta, x.g)
    ]
    rows = [t.new_empty(t.shape) for t in (x.q, x.k, x.v)]
    return [*rows, *given, x.v.new_empty(shape, dtype=x.dtype)]


def _arguments(x: Inputs, marks: Tensor | None) -> tuple[list[Any], list[Any]]:
    """Returns what both kernels take first, and the tensors that must live until they return."""
    batch, length, heads, d_value = x.v.shape
    groups, d_key = x.q.shape[2:]
    decay = 0 if x.g is None else 1 if x.g.ndim == 3 else 2
    tensors = [None if t is None else cpu_calls.dense(t) for t in x[:5]]
    resets = None if x.resets is None else x.resets.contiguous()
    sizes = (batch, length, groups, heads, d_key, d_value, x.chunk, decay)
    threads = cpu_calls.threads(batch * length * heads * d_key * d_value)
    rows = [cpu_calls.rows(t) for t in tensors]
    pointers = [cpu_calls.pointer(resets), cpu_calls.pointer(marks)]
    code = cpu_calls.code(x.dtype)
    return [sizes, x.scale, code, threads, rows, *pointers], [tensors, resets]


def _forward_cpu(x: Inputs, saving: _Saving) -> list[Tensor]:
    y, last, marks = outputs = _outputs(x, saving)
    cpu_calls.fresh(y, marks)
    state = None if x.state is None else x.state.to(x.dtype).contiguous()
    arguments, alive = _arguments(x, marks if saving.marked else None)
    native().delta_rule_forward(
        *arguments, cpu_calls.pointer(state), cpu_calls.rows(y), cpu_calls.pointer(last)
    )
    del alive
    return outputs


def _backward_cpu(into: _Incoming, x: Inputs, saved: _Saved) -> list[Tensor]:
    outputs = _gradients(into, x, saved)
    groups, heads = x.q.shape[2], x.v.shape[2]
    dfirst = outputs[5]
    found: list[Tensor | None] = [*outputs[:5]]
    for place, given in ((3, x.beta), (4, x.g)):
        if given is None:
            found[place] = None
    apart = [0, 1, 4] if x.g is not None and x.g.ndim == 4 else [0, 1]
    if heads != groups:  # every head's share is written, and summed over those that share keys
        for place in apart:
            whole = outputs[place]
            shape = (*whole.shape[:2], heads, whole.shape[3])
            found[place] = whole.new_empty(shape, dtype=x.dtype)
    cpu_calls.fresh(*[t for t in found if t is not None])
    dy = torch.zeros_like(x.v) if into.dy is None else into.dy
    dlast = None if into.dlast is None else into.dlast.to(x.dtype).contiguous()
    arguments, alive = _arguments(x, saved.marks)
    dy = cpu_calls.dense(dy)
    native().delta_rule_backward(
        *arguments,
        cpu_calls.rows(dy),
        cpu_calls.pointer(dlast),
        [cpu_calls.rows(t) for t in found],
        cpu_calls.pointer(dfirst),
    )
    del alive
    if heads != groups:
        for place in apart:
            share = found[place]
            assert share is not None
            outputs[place].copy_(share.unflatten(2, (groups, -1)).sum(3))
    return outputs


def _setup(ctx: Any, output: Any, x: Inputs, saving: _Saving) -> None:
    ctx.save_for_backward(*x[:7], output[2])
    ctx.scale, ctx.chunk_size = x.scale, x.chunk_size


Walk = Callable[[Inputs], tuple[Tensor, Tensor]]


def define_walk(name: str, composed: Walk) -> Walk:
    """Registers an operator of torch that runs the CPU kernel.

    Args:
        name: "namespace::operator"; its backward gets "_backward" at the end.
        composed: the same function in torch's own operations: output and last state.

    Returns:
        The function of the inputs, (B, L, H, V) and (B, H, K, V).
    """
    backward = define(
        f"{name}_backward",
        (_Incoming, Inputs, _Saved),
        None,
        _gradients,
        cpu=_backward_cpu,
        rows=("dy", "dlast", "q", "k", "v", "beta", "g", "resets", "state", "marks"),
    )

    def pull(ctx: Any, grads: Any, *more: Any) -> tuple[Any, ...]:
        dy, dlast = (grads[0], grads[1]) if isinstance(grads, (list, tuple)) else (grads, more[0])
        *tensors, marks = ctx.saved_tensors
        x = Inputs._make([*tensors, ctx.scale, ctx.chunk_size])
        given = [*x[:5], x.state]
        if torch.is_grad_enabled():

            def again(*values: Tensor | None) -> tuple[Tensor, ...]:
                q, k, v, beta, g, state = values
                assert q is not None and k is not None and v is not None
                return composed(x._replace(q=q, k=k, v=v, beta=beta, g=g, state=state))

            found = gradients_of(again, given, [dy, dlast])
        else:
            found = backward(dy, dlast, *x, marks)
        dq, dk, dv, dbeta, dg, dfirst = (
            None if one is None or new is None else new.to(one.dtype)
            for one, new in zip(given, found)
        )
        return dq, dk, dv, dbeta, dg, None, dfirst, None, None, None

    def in_operations(x: Inputs, saving: _Saving) -> list[Tensor]:
        return [*composed(x), x.v.new_empty((0,))]

    forward = define(
        name,
        (Inputs, _Saving),
        None,
        _outputs,
        cpu=_forward_cpu,
        rows=("q", "k", "v", "beta", "g", "resets", "state"),
        setup=_setup,
        backward=pull,
        composed=in_operations,
    )

    def walk(x: Inputs) -> tuple[Tensor, Tensor]:
        y, last, _ = forward(*x, torch.is_grad_enabled())
        return y, last

    return walk
