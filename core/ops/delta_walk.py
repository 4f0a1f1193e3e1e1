"""Matrix states by the CPU kernels that keep a chunk in the caches, as operators of torch: the
delta rule, linear attention, any diagonal plus rank one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
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
    def chunk(self) -> int:
        """Positions in a chunk of the kernel, whole blocks of them."""
        asked = chunk_length(self.chunk_size, self.v.shape[1])
        return min(_LONGEST, -(-asked // _TILE) * _TILE)

    @property
    def sizes(self) -> tuple[int, ...]:
        """What the kernel is told of the shapes."""
        batch, length, heads, d_value = self.v.shape
        groups, d_key = self.q.shape[2:]
        decay = 0 if self.g is None else 1 if self.g.ndim == 3 else 2
        return batch, length, groups, heads, d_key, d_value, self.chunk, decay


class Kernels(NamedTuple):
    """What differs between walks.

    Attributes:
        record: of the inputs, a NamedTuple: rows that have gradients, each (B, L, ...) or None, of
            them q, k and v first; then resets, state, scale and chunk_size, as in ``Inputs``. Its
            ``chunk`` says how many positions a chunk of the kernel has, its ``sizes`` what the
            kernel is told of the shapes.
        name: of the compiled functions, before "_forward" and "_backward".
        mark: name of the compiled constant: chunks from one kept state to the next.
    """

    record: type[Any]
    name: str
    mark: str


DELTA = Kernels(Inputs, "delta_rule", "DELTA_MARK")


class _Saving(NamedTuple):
    marked: bool


class _Incoming(NamedTuple):
    dy: Tensor | None
    dlast: Tensor | None


class _Saved(NamedTuple):
    marks: Tensor


def _dtype(x: Any) -> torch.dtype:
    """Returns what is computed in."""
    return compute_dtype(*x[:-4], x.state)


def _state_shape(x: Any) -> tuple[int, int, int, int]:
    batch, _, heads, d_value = x.v.shape
    return batch, heads, x.q.shape[3], d_value


def _gradients(into: _Incoming, x: Any, saved: _Saved) -> list[Tensor]:
    """Returns room for the gradients of the rows and the state, empty for absent ones."""
    # One empty tensor for all would be two results in one memory, which torch refuses.
    rows = [x.v.new_empty((len(x.v), 0)) if t is None else t.new_empty(t.shape) for t in x[:-4]]
    return [*rows, x.v.new_empty(_state_shape(x), dtype=_dtype(x))]


def _arguments(x: Any, marks: Tensor | None) -> tuple[list[Any], list[Any]]:
    """Returns what both kernels take first, and the tensors that must live until they return."""
    tensors = [None if t is None else cpu_calls.dense(t) for t in x[:-4]]
    resets = None if x.resets is None else x.resets.contiguous()
    threads = cpu_calls.threads(x.v.numel() * x.q.shape[3])
    rows = [cpu_calls.rows(t) for t in tensors]
    pointers = [cpu_calls.pointer(resets), cpu_calls.pointer(marks)]
    code = cpu_calls.code(_dtype(x))
    return [x.sizes, x.scale, code, threads, rows, *pointers], [tensors, resets]


def _backward_cpu(kernels: Kernels, into: _Incoming, x: Any, saved: _Saved) -> list[Tensor]:
    outputs = _gradients(into, x, saved)
    groups, heads, dtype = x.q.shape[2], x.v.shape[2], _dtype(x)
    found = [None if t is None else room for t, room in zip(x[:-4], outputs)]
    apart = []
    if heads != groups:  # every head's share is written, and summed over those that share keys
        apart = [i for i, t in enumerate(x[:-4]) if i != 2 and t is not None and t.ndim == 4]
    for place in apart:
        whole = outputs[place]
        shape = (*whole.shape[:2], heads, whole.shape[3])
        found[place] = whole.new_empty(shape, dtype=dtype)
    cpu_calls.fresh(*[t for t in found if t is not None])
    dy = cpu_calls.dense(torch.zeros_like(x.v) if into.dy is None else into.dy)
    dlast = None if into.dlast is None else into.dlast.to(dtype).contiguous()
    arguments, alive = _arguments(x, saved.marks)
    getattr(native(), f"{kernels.name}_backward")(
        *arguments,
        cpu_calls.rows(dy),
        cpu_calls.pointer(dlast),
        [cpu_calls.rows(t) for t in found],
        cpu_calls.pointer(outputs[-1]),
    )
    del alive
    for place in apart:
        share = found[place]
        assert share is not None
        outputs[place].copy_(share.unflatten(2, (groups, -1)).sum(3))
    return outputs


def _setup(ctx: Any, output: Any, x: Any, saving: _Saving) -> None:
    ctx.save_for_backward(*x[:-2], output[2])
    ctx.options = x[-2:]


Walk = Callable[[Any], tuple[Tensor, Tensor]]


def define_walk(name: str, composed: Walk, kernels: Kernels = DELTA) -> Walk:
    """Registers an operator of torch that runs a CPU kernel.

    Args:
        name: "namespace::operator"; its backward gets "_backward" at the end.
        composed: the same function in torch's own operations: output and last state.
        kernels: which.

    Returns:
        The function of the inputs, (B, L, H, V) and (B, H, K, V).
    """
    record = kernels.record
    fields = record._fields[:-2]

    def outputs(x: Any, saving: _Saving) -> list[Tensor]:
        """Returns room for the output, the last state and the marks."""
        shape, dtype = _state_shape(x), _dtype(x)
        chunks = -(-x.v.shape[1] // x.chunk)
        count = -(-chunks // getattr(native(), kernels.mark)) if saving.marked else 0
        marks = x.v.new_empty((*shape[:2], count, *shape[2:]), dtype=dtype)
        return [x.v.new_empty(x.v.shape), x.v.new_empty(shape, dtype=dtype), marks]

    def forward_cpu(x: Any, saving: _Saving) -> list[Tensor]:
        y, last, marks = room = outputs(x, saving)
        cpu_calls.fresh(y, marks)
        state = None if x.state is None else x.state.to(last.dtype).contiguous()
        arguments, alive = _arguments(x, marks if saving.marked else None)
        getattr(native(), f"{kernels.name}_forward")(
            *arguments, cpu_calls.pointer(state), cpu_calls.rows(y), cpu_calls.pointer(last)
        )
        del alive
        return room

    backward = define(
        f"{name}_backward",
        (_Incoming, record, _Saved),
        None,
        _gradients,
        cpu=partial(_backward_cpu, kernels),
        rows=("dy", "dlast", *fields, "marks"),
    )

    def pull(ctx: Any, grads: Any, *more: Any) -> tuple[Any, ...]:
        dy, dlast = (grads[0], grads[1]) if isinstance(grads, (list, tuple)) else (grads, more[0])
        *tensors, marks = ctx.saved_tensors
        x = record._make([*tensors, *ctx.options])
        given = [*x[:-4], x.state]
        if torch.is_grad_enabled():

            def again(*values: Tensor | None) -> tuple[Tensor, ...]:
                *rows, state = values
                return composed(record._make([*rows, x.resets, state, *x[-2:]]))

            found = gradients_of(again, given, [dy, dlast])
        else:
            found = backward(dy, dlast, *x, marks)
        *rows, dfirst = (
            None if one is None or new is None else new.to(one.dtype)
            for one, new in zip(given, found)
        )
        return *rows, None, dfirst, None, None, None

    def in_operations(x: Any, saving: _Saving) -> list[Tensor]:
        return [*composed(x), x.v.new_empty((0,))]

    forward = define(
        name,
        (record, _Saving),
        None,
        outputs,
        cpu=forward_cpu,
        rows=fields,
        setup=_setup,
        backward=pull,
        composed=in_operations,
    )

    def walk(x: Any) -> tuple[Tensor, Tensor]:
        y, last, _ = forward(*x, torch.is_grad_enabled())
        return y, last

    return walk
