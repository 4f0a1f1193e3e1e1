"""Linear attention with a decay per head, chunk by chunk in the caches, with a backward that recomputes."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from longseq.core.ops import _native
from longseq.core.ops._chunk_walk import Chunks, Decays, row_blocks
from longseq.core.ops._chunking import (
    chunk_length,
    fold,
    from_chunks,
    lower_triangular,
    pass_states,
    span_sums,
    to_chunks,
    unfold,
)

_MARK = 8  # chunks between the states that the backward starts from


class _Walk:
    """Some rows of a batch, chunk after chunk; arguments as in ``composed``."""

    def __init__(
        self, q: Tensor, k: Tensor, v: Tensor, g: Tensor, step: Tensor | None, skip: Tensor | None, chunk: int
    ) -> None:
        self.q, self.k, self.v, self.step, self.skip = q, k, v, step, skip
        self.shape = Chunks(q, v, chunk)
        self.decays = Decays(self.shape, g)
        self.scores = v.new_empty((self.shape.batch * self.shape.groups, chunk, chunk))
        self.weighted = v.new_empty((self.shape.batch, chunk, *v.shape[2:]))

    def values(self, c: int) -> tuple[Tensor, Tensor]:
        """Returns the values of chunk c (B, T, H, V), and times their steps."""
        values = self.shape.at(self.v, c)
        return values, values if self.step is None else values * self.shape.at(self.step, c).unsqueeze(-1)

    def advance(self, state: Tensor, c: int, stepped: Tensor, out: Tensor) -> None:
        """Writes the state (B·G, K, R·V) after chunk c, that of the last ``Decays.fill``, to ``out``."""
        shape, decays = self.shape, self.decays
        torch.mul(shape.heads_of(state), shape.per_state(decays.total), out=shape.heads_of(out))
        torch.mul(stepped, shape.per_value(decays.behind), out=self.weighted)
        keys = shape.heads_first(shape.at(self.k, c))
        out.baddbmm_(keys.transpose(1, 2), shape.folded(self.weighted))

    def forward(self, state: Tensor, marks: Tensor | None, y: Tensor) -> None:
        """Writes y (B, L, H, V), the marks (B·G, marks, K, R·V) and, in place, the last state."""
        shape, decays = self.shape, self.decays
        inside = self.v.new_empty((decays.heads, shape.size, shape.d_value))
        across = self.v.new_empty((state.shape[0], shape.size, state.shape[2]))
        for c in range(shape.count):
            if marks is not None and c % _MARK == 0:
                marks[:, c // _MARK] = state
            queries, keys = (shape.heads_first(shape.at(x, c)) for x in (self.q, self.k))
            values, stepped = self.values(c)
            torch.bmm(queries, keys.transpose(1, 2), out=self.scores)
            weights = decays.fill(c, scores=self.scores)
            torch.bmm(weights, shape.heads_first(stepped), out=inside)
            out = shape.unfolded(torch.bmm(queries, state, out=across)).mul_(shape.per_value(decays.through))
            if self.skip is not None:
                out.addcmul_(values, self.skip)
            shape.put(y, c, out.add_(shape.heads_last(inside)))
            self.advance(state, c, stepped, state)

    def backward(
        self, dy: Tensor, dstate: Tensor, marks: Tensor, dq: Tensor, dk: Tensor, dv: Tensor, dg: Tensor,
        dstep: Tensor, dskip: Tensor,
    ) -> None:  # fmt: skip
        """Writes all gradients; that of the last state becomes in place that of the first one."""
        shape, decays = self.shape, self.decays
        dgs, slopes = torch.empty_like(decays.g), torch.empty_like(decays.matrix)
        inside = self.v.new_empty((decays.heads, shape.size, shape.d_value))
        seen = self.v.new_empty((dstate.shape[0], shape.size, dstate.shape[2]))
        entered = torch.empty_like(seen)
        spare = [torch.empty_like(dstate) for _ in range(min(_MARK, shape.count) - 1)]
        for first in reversed(range(0, shape.count, _MARK)):
            states = [marks[:, first // _MARK], *spare[: min(_MARK, shape.count - first) - 1]]
            for c, (state, after) in enumerate(pairwise(states), first):
                decays.fill(c)
                self.advance(state, c, self.values(c)[1], after)
            for c, state in reversed(list(enumerate(states, first))):
                queries, keys = (shape.heads_first(shape.at(x, c)) for x in (self.q, self.k))
                values, stepped = self.values(c)
                out = shape.at(dy, c)
                dapart = shape.heads_first(out)
                decays.fill(c)
                # Across the chunk's borders: what the exponents get, and the first part of all gradients.
                through, behind = shape.per_value(decays.through), shape.per_value(decays.behind)
                decayed = shape.folded(out * through)
                weighted = shape.folded(torch.mul(stepped, behind, out=self.weighted))
                at_end = shape.unfolded(torch.bmm(keys, dstate, out=entered)).mul_(behind)
                before = shape.unfolded(torch.bmm(queries, state, out=seen).mul_(decayed))
                entering, leaving = (
                    x.sum(-1).transpose(1, 2).reshape(decays.heads, -1) for x in (before, at_end * stepped)
                )
                dkeys = torch.bmm(weighted, dstate.transpose(1, 2))
                shape.heads_of(dstate).mul_(shape.per_state(decays.total))
                whole = torch.linalg.vecdot(shape.heads_of(dstate), shape.heads_of(state)).sum(2).flatten()
                # Inside the chunk.
                torch.bmm(queries, keys.transpose(1, 2), out=self.scores)
                torch.bmm(dapart, shape.heads_first(stepped).transpose(1, 2), out=slopes)
                decays.slopes(c, self.scores, slopes, entering, leaving, whole, dgs[c])
                torch.bmm(decays.matrix.transpose(1, 2), dapart, out=inside)
                dscores = slopes.view(-1, shape.shared, shape.size, shape.size).sum(1)
                dkeys.baddbmm_(dscores.transpose(1, 2), queries)
                dqueries = torch.bmm(decayed, state.transpose(1, 2)).baddbmm_(dscores, keys)
                shape.put(dk, c, shape.heads_last(dkeys))
                shape.put(dq, c, shape.heads_last(dqueries))
                dvalues = at_end.add_(shape.heads_last(inside))
                if self.step is not None:
                    shape.put(dstep, c, torch.linalg.vecdot(dvalues, values))
                    dvalues.mul_(shape.at(self.step, c).unsqueeze(-1))
                if self.skip is not None:
                    dskip.add_((out * values).sum(1))
                    dvalues.addcmul_(out, self.skip)
                shape.put(dv, c, dvalues)
                dstate.baddbmm_(queries.transpose(1, 2), decayed)
        dg.copy_(decays.gradient(dgs))


@torch.library.custom_op("longseq::decay_attention", mutates_args=(), device_types="cpu")
def _attend(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, state: Tensor, step: Tensor | None, skip: Tensor | None,
    chunk_size: int, marked: bool,
) -> list[Tensor]:  # fmt: skip
    y, last, marks = outputs = _attend_fake(q, k, v, g, state, step, skip, chunk_size, marked)
    _native.fresh(y)
    chunk = chunk_length(chunk_size, v.shape[1])
    for rows in row_blocks(v.shape[0], state[0].numel()):
        walk = _Walk(q[rows], k[rows], v[rows], g[rows], None if step is None else step[rows], skip, chunk)
        running = walk.shape.state_in(state[rows])
        walk.forward(running, marks[rows].flatten(0, 1) if marked else None, y[rows])
        last[rows] = walk.shape.state_out(running)
    return outputs


@_attend.register_fake
def _attend_fake(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, state: Tensor, step: Tensor | None, skip: Tensor | None,
    chunk_size: int, marked: bool,
) -> list[Tensor]:  # fmt: skip
    count = -(-v.shape[1] // chunk_length(chunk_size, v.shape[1]))
    batch, _, groups, d_key = q.shape
    width = v.shape[2] // groups * v.shape[3]
    marks = v.new_empty((batch, groups, -(-count // _MARK) if marked else 0, d_key, width))
    return [v.new_empty(v.shape), v.new_empty(state.shape), marks]


@torch.library.custom_op("longseq::decay_attention_backward", mutates_args=(), device_types="cpu")
def _attend_backward(
    dy: Tensor, dlast: Tensor, q: Tensor, k: Tensor, v: Tensor, g: Tensor, marks: Tensor,
    step: Tensor | None, skip: Tensor | None, chunk_size: int,
) -> list[Tensor]:  # fmt: skip
    outputs = _attend_backward_fake(dy, dlast, q, k, v, g, marks, step, skip, chunk_size)
    dq, dk, dv, dg, dfirst, dstep, dskip = outputs
    dskip.zero_()
    _native.fresh(dq, dk, dv)
    chunk = chunk_length(chunk_size, v.shape[1])
    for rows in row_blocks(v.shape[0], dlast[0].numel()):
        walk = _Walk(q[rows], k[rows], v[rows], g[rows], None if step is None else step[rows], skip, chunk)
        dstate = walk.shape.state_in(dlast[rows])
        walk.backward(
            dy[rows], dstate, marks[rows].flatten(0, 1), dq[rows], dk[rows], dv[rows], dg[rows], dstep[rows],
            dskip[rows],
        )  # fmt: skip
        dfirst[rows] = walk.shape.state_out(dstate)
    return outputs


@_attend_backward.register_fake
def _attend_backward_fake(
    dy: Tensor, dlast: Tensor, q: Tensor, k: Tensor, v: Tensor, g: Tensor, marks: Tensor,
    step: Tensor | None, skip: Tensor | None, chunk_size: int,
) -> list[Tensor]:  # fmt: skip
    dstep = v.new_empty((0,) if step is None else step.shape)
    dskip = v.new_empty((0,) if skip is None else (v.shape[0], *skip.shape))  # of every row
    return [*[x.new_empty(x.shape) for x in (q, k, v, g, dlast)], dstep, dskip]


def composed(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, state: Tensor, chunk_size: int,
    step: Tensor | None = None, skip: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The same in operations that have derivatives of any order, all chunks at a time.

    Args:
        q: (B, L, G, K), scaled.
        k: (B, L, G, K).
        v: (B, L, H, V).
        g: log-decays (B, L, H).
        state: (B, H, K, V).
        chunk_size: positions a chunk.
        step: (B, L, H) or None: what of the values is attended to.
        skip: (H, V) or None: what of the values is added to the output.

    Returns:
        The output (B, L, H, V) and the final state (B, H, K, V).
    """
    groups, shared = q.shape[2], v.shape[2] // q.shape[2]
    chunk = chunk_length(chunk_size, v.shape[1])
    stepped = v if step is None else v * step.unsqueeze(-1)
    qc, kc, vc = (to_chunks(x, chunk) for x in (q, k, stepped))
    spans = span_sums(to_chunks(g.unsqueeze(-1), chunk))
    through, behind = (x.squeeze(-3).exp() for x in spans[-1])  # (B, H, C, T, 1)
    blocks = (a[..., 1::2, :, :].exp() * b[..., 0::2, :, :].exp().transpose(-1, -2) for a, b in spans[:-1])
    decay = lower_triangular(torch.ones_like(spans[0][0]), blocks, 0.0)  # (B, H, C, T, T)
    scores = (qc @ kc.transpose(-1, -2)).unsqueeze(2) * decay.unflatten(1, (groups, shared))
    y = scores.flatten(1, 2) @ vc
    local = kc.transpose(-1, -2) @ fold(vc * behind, groups)  # (B, G, C, K, R·V)
    total = through[..., -1, :].unflatten(1, (groups, shared)).permute(0, 1, 3, 4, 2)
    total = total.repeat_interleave(v.shape[3], dim=-1)  # (B, G, C, 1, R·V)
    carried, last = pass_states(fold(state.unsqueeze(2), groups).squeeze(2), local, total)
    y = from_chunks(y + unfold(qc @ carried, shared) * through, v.shape[1])
    if skip is not None:
        y = y + v * skip
    return y, unfold(last.unsqueeze(2), shared).squeeze(2)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[:7], output[2])
    ctx.chunk_size = inputs[7]


def _backward(ctx: Any, grads: Any, *more: Any) -> tuple[Any, ...]:
    dy, dlast = (grads[0], grads[1]) if isinstance(grads, (list, tuple)) else (grads, more[0])
    q, k, v, g, state, step, skip, marks = ctx.saved_tensors
    dy = torch.zeros_like(v) if dy is None else dy
    dlast = torch.zeros_like(state) if dlast is None else dlast
    if torch.is_grad_enabled():
        there = [x is not None for x in (step, skip)]

        def again(*values: Tensor) -> tuple[Tensor, Tensor]:
            q, k, v, g, state, *others = values
            rest = iter(others)
            step, skip = (next(rest) if given else None for given in there)
            return composed(q, k, v, g, state, ctx.chunk_size, step, skip)

        _, pull, *_ = torch.func.vjp(again, *[x for x in (q, k, v, g, state, step, skip) if x is not None])
        (*found,) = pull((dy, dlast))
        dstep = found.pop(5) if there[0] else None
        dskip = found.pop(5) if there[1] else None
    else:
        *found, dstep, dskip = _call_backward(dy, dlast, q, k, v, g, marks, step, skip, ctx.chunk_size)
        dskip = None if skip is None else dskip.sum(0)
    return (*found, None if step is None else dstep, dskip, None, None)


_attend.register_autograd(_backward, setup_context=_setup)


def _attend_vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
    return _native.vmap_fold(_call, range(6), info, in_dims, args), (0,) * 3


def _attend_backward_vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
    return _native.vmap_fold(_call_backward, range(8), info, in_dims, args), (0,) * 7


_call_backward = _native.transformable(_attend_backward, _attend_backward_vmap)
_call = _native.transformable(_attend, _attend_vmap, _setup, _backward)


def decay_attention(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, state: Tensor, chunk_size: int,
    step: Tensor | None = None, skip: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """``composed`` where no intermediate is larger than a chunk's, for CPU tensors; same arguments."""
    y, last, _ = _call(q, k, v, g, state, step, skip, chunk_size, torch.is_grad_enabled())
    return y, last
