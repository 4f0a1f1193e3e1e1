"""Linear attention with a decay per head, chunk by chunk in the caches, with a backward that recomputes."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from longseq.core.ops import _native
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


class DecayMatrices:
    """The decays of every chunk: between positions, from the chunk's start, to its end, over all of it.

    Args:
        g: log-decays (B, L, H).
        chunk: T, a power of two.
    """

    def __init__(self, g: Tensor, chunk: int) -> None:
        self.spans = [
            (a.squeeze(-1).exp(), b.squeeze(-1).exp())
            for a, b in span_sums(to_chunks(g.unsqueeze(-1), chunk))
        ]
        through, behind = self.spans[-1]  # (B, H, C, 1, T)
        self.through = through.squeeze(-2).permute(2, 0, 3, 1).contiguous().unsqueeze(-1)  # (C, B, T, H, 1)
        self.behind = behind.squeeze(-2).permute(2, 0, 3, 1).contiguous().unsqueeze(-1)
        self.total = self.through[:, :, -1]  # (C, B, H, 1)
        batch, heads, self.count = through.shape[:3]
        self.matrix = torch.eye(chunk, dtype=g.dtype, device=g.device).repeat(batch, heads, 1, 1)

    def fill(self, c: int) -> Tensor:
        """Returns the (B, H, T, T) decays inside chunk c, in memory that the next call overwrites.

        Entry [t, s] is that of positions s + 1 … t; above the diagonal it is zero.
        """
        size = self.matrix.shape[-1]
        outer = self.matrix.stride()[:2]
        for level, (through, behind) in enumerate(self.spans[:-1]):
            half = 1 << level
            # The blocks in which the later half of each pair of spans meets the earlier one.
            blocks = self.matrix.as_strided(
                (*self.matrix.shape[:2], size // (2 * half), half, half),
                (*outer, 2 * half * (size + 1), size, 1),
                half * size,
            )
            later, earlier = through[:, :, c, 1::2], behind[:, :, c, 0::2]
            torch.mul(later.unsqueeze(-1), earlier.unsqueeze(-2), out=blocks)
        return self.matrix


class _Chunks:
    """Cuts (B, L, H, E) tensors into chunks, the heads of a group folded into one wide matrix or apart."""

    def __init__(self, q: Tensor, v: Tensor, chunk: int) -> None:
        self.batch, self.length, self.heads, self.d_value = v.shape
        self.groups, self.d_key = q.shape[2:]
        self.shared, self.size = self.heads // self.groups, chunk
        self.count = -(-self.length // chunk)

    def pad(self, x: Tensor) -> Tensor:
        """Fills x up with zeros to whole chunks: they add nothing to the state and do not decay it."""
        behind = self.count * self.size - self.length
        return torch.nn.functional.pad(x, (0, 0, 0, 0, 0, behind)) if behind else x

    def at(self, x: Tensor, c: int) -> Tensor:
        """(B, T, H or G, E) of chunk c."""
        return x[:, c * self.size : (c + 1) * self.size]

    def keys(self, x: Tensor, c: int) -> Tensor:
        """(B·G, T, K) of queries or keys."""
        return self.at(x, c).transpose(1, 2).reshape(-1, self.size, self.d_key)

    def folded(self, x: Tensor) -> Tensor:
        """(B, T, H, V) → (B·G, T, R·V)."""
        return (
            x.unflatten(2, (self.groups, self.shared))
            .transpose(1, 2)
            .reshape(self.batch * self.groups, x.shape[1], -1)
        )

    def unfolded(self, x: Tensor) -> Tensor:
        """(B·G, T, R·V) → (B, T, H, V), a view unless there are both rows and groups."""
        x = x.view(self.batch, self.groups, -1, self.shared, self.d_value)
        return x.transpose(1, 2).reshape(self.batch, -1, self.heads, self.d_value)

    def apart(self, x: Tensor) -> Tensor:
        """(B, T, H, V) → (B·H, T, V)."""
        return x.transpose(1, 2).reshape(self.batch * self.heads, -1, self.d_value)

    def by_head(self, x: Tensor) -> Tensor:
        """(B·G, T, T) → (B, G, 1, T, T) or (B, H, T, T) → (B, G, R, T, T)."""
        return x.view(self.batch, self.groups, -1, self.size, self.size)

    def state_in(self, state: Tensor) -> Tensor:
        """(B, H, K, V) → (B·G, K, R·V), always a copy."""
        x = state.unflatten(1, (self.groups, self.shared)).transpose(2, 3)
        return x.contiguous().view(self.batch * self.groups, self.d_key, -1).clone()

    def state_out(self, state: Tensor) -> Tensor:
        """(B·G, K, R·V) → (B, H, K, V)."""
        x = state.view(self.batch, self.groups, self.d_key, self.shared, self.d_value).transpose(2, 3)
        return x.flatten(1, 2).contiguous()

    def heads_of(self, state: Tensor) -> Tensor:
        """(B·G, K, R·V) → (B, G, K, R, V), a view."""
        return state.view(self.batch, self.groups, self.d_key, self.shared, self.d_value)

    def per_state(self, total: Tensor) -> Tensor:
        """(B, H, 1) → (B, G, 1, R, 1), to multiply ``heads_of``."""
        return total.view(self.batch, self.groups, 1, self.shared, 1)

    def advance(
        self, state: Tensor, keys: Tensor, values: Tensor, decays: DecayMatrices, c: int, out: Tensor
    ) -> None:
        """Writes the state (B·G, K, R·V) after chunk c to ``out``; values (B, T, H, V)."""
        torch.mul(self.heads_of(state), self.per_state(decays.total[c]), out=self.heads_of(out))
        out.baddbmm_(keys.transpose(1, 2), self.folded(values * decays.behind[c]))


@torch.library.custom_op("longseq::decay_attention", mutates_args=(), device_types="cpu")
def _attend(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, state: Tensor, chunk_size: int, marked: bool
) -> list[Tensor]:
    chunk = chunk_length(chunk_size, v.shape[1])
    shape = _Chunks(q, v, chunk)
    decays = DecayMatrices(g, chunk)
    q, k, v = (shape.pad(x) for x in (q, k, v))
    y = torch.empty(v.shape, dtype=v.dtype)
    running = shape.state_in(state)
    count = -(-shape.count // _MARK) if marked else 0
    marks = running.new_empty((running.shape[0], count, *running.shape[1:]))
    weights = torch.empty_like(decays.matrix)
    inside = v.new_empty((shape.batch * shape.heads, chunk, shape.d_value))
    across = v.new_empty((shape.batch * shape.groups, chunk, shape.shared * shape.d_value))
    for c in range(shape.count):
        if marked and c % _MARK == 0:
            marks[:, c // _MARK] = running
        queries, keys, values = shape.keys(q, c), shape.keys(k, c), shape.at(v, c)
        scores = torch.bmm(queries, keys.transpose(1, 2))
        torch.mul(shape.by_head(scores), shape.by_head(decays.fill(c)), out=shape.by_head(weights))
        torch.bmm(weights.flatten(0, 1), shape.apart(values), out=inside)
        torch.bmm(queries, running, out=across)
        out = shape.at(y, c)
        torch.mul(shape.unfolded(across), decays.through[c], out=out)
        out.add_(inside.view(shape.batch, shape.heads, chunk, -1).transpose(1, 2))
        shape.advance(running, keys, values, decays, c, running)
    if y.shape[1] != shape.length:
        y = y[:, : shape.length].contiguous()
    return [y, shape.state_out(running), marks]


@_attend.register_fake
def _attend_fake(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, state: Tensor, chunk_size: int, marked: bool
) -> list[Tensor]:
    count = -(-v.shape[1] // chunk_length(chunk_size, v.shape[1]))
    batch, _, groups, d_key = q.shape
    width = v.shape[2] // groups * v.shape[3]
    marks = v.new_empty((batch * groups, -(-count // _MARK) if marked else 0, d_key, width))
    return [v.new_empty(v.shape), v.new_empty(state.shape), marks]


@torch.library.custom_op("longseq::decay_attention_backward", mutates_args=(), device_types="cpu")
def _attend_backward(
    dy: Tensor, dlast: Tensor, q: Tensor, k: Tensor, v: Tensor, g: Tensor, marks: Tensor, chunk_size: int
) -> list[Tensor]:
    chunk = chunk_length(chunk_size, v.shape[1])
    shape = _Chunks(q, v, chunk)
    decays = DecayMatrices(g, chunk)
    q, k, v, dy = (shape.pad(x) for x in (q, k, v, dy))
    dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty(v.shape, dtype=v.dtype)
    dstate = shape.state_in(dlast)
    # Of every position: what its log-decay gets from spans inside the chunk that cross it (sums of their own
    # terms: as a difference of sums over ends and beginnings, a strong decay would get the roundings of all);
    # what spans from the chunk's start to it get, and from it to the chunk's end; and of the whole chunk.
    crossed, ends, reach, whole = (
        g.new_empty((shape.count, shape.batch, *rest, shape.heads))
        for rest in ((chunk,), (chunk,), (chunk,), ())
    )
    after = torch.ones(chunk, chunk, dtype=g.dtype).tril()
    before = torch.ones_like(after).triu(1)
    weights, slopes = torch.empty_like(decays.matrix), torch.empty_like(decays.matrix)
    spare = [torch.empty_like(dstate) for _ in range(min(_MARK, shape.count) - 1)]
    product = torch.empty_like(dstate)
    for mark in reversed(range(marks.shape[1])):
        first = mark * _MARK
        states = [marks[:, mark], *spare[: min(_MARK, shape.count - first) - 1]]
        for c, (state, out) in enumerate(pairwise(states), first):
            shape.advance(state, shape.keys(k, c), shape.at(v, c), decays, c, out)
        for c, state in reversed(list(enumerate(states, first))):
            queries, keys, values = shape.keys(q, c), shape.keys(k, c), shape.at(v, c)
            out = shape.at(dy, c)
            apart, dapart = shape.apart(values), shape.apart(out)
            scores = torch.bmm(queries, keys.transpose(1, 2))
            matrix = decays.fill(c)
            torch.mul(shape.by_head(scores), shape.by_head(matrix), out=shape.by_head(weights))
            inside = torch.bmm(weights.flatten(0, 1).transpose(1, 2), dapart)
            torch.bmm(dapart, apart.transpose(1, 2), out=slopes.flatten(0, 1))
            slopes.mul_(matrix)
            dscores = shape.by_head(slopes).sum(2).flatten(0, 1)
            shape.by_head(slopes).mul_(shape.by_head(scores))
            torch.matmul(slopes, before, out=weights)  # [t, u]: spans from before u
            crossed[c] = weights.mul_(after).sum(-2).transpose(1, 2)
            # Across the chunk's borders.
            decayed = shape.folded(out * decays.through[c])
            weighted = shape.folded(values * decays.behind[c])
            entered = shape.unfolded(torch.bmm(keys, dstate)).mul_(decays.behind[c])
            torch.add(
                inside.view(shape.batch, shape.heads, chunk, -1).transpose(1, 2), entered, out=shape.at(dv, c)
            )
            reach[c] = entered.mul_(values).sum(-1)
            seen = shape.unfolded(torch.bmm(queries, state).mul_(decayed)).sum(-1)
            ends[c] = seen
            dkeys = torch.bmm(dscores.transpose(1, 2), queries).baddbmm_(weighted, dstate.transpose(1, 2))
            dqueries = torch.bmm(dscores, keys).baddbmm_(decayed, state.transpose(1, 2))
            shape.at(dk, c).copy_(dkeys.view(shape.batch, shape.groups, chunk, -1).transpose(1, 2))
            shape.at(dq, c).copy_(dqueries.view(shape.batch, shape.groups, chunk, -1).transpose(1, 2))
            shape.heads_of(dstate).mul_(shape.per_state(decays.total[c]))
            torch.mul(dstate, state, out=product)
            whole[c] = shape.heads_of(product).sum((2, 4)).flatten(1)
            dstate.baddbmm_(queries.transpose(1, 2), decayed)
    begins = torch.nn.functional.pad(reach.cumsum(2)[:, :, :-1], (0, 0, 1, 0))
    dg = ends.flip(2).cumsum(2).flip(2).add_(begins).add_(crossed).add_(whole.unsqueeze(2))
    dg = dg.transpose(0, 1).flatten(1, 2)
    return [x[:, : shape.length].contiguous() for x in (dq, dk, dv, dg)] + [shape.state_out(dstate)]


@_attend_backward.register_fake
def _attend_backward_fake(
    dy: Tensor, dlast: Tensor, q: Tensor, k: Tensor, v: Tensor, g: Tensor, marks: Tensor, chunk_size: int
) -> list[Tensor]:
    return [x.new_empty(x.shape) for x in (q, k, v, g, dlast)]


def composed(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, state: Tensor, chunk_size: int
) -> tuple[Tensor, Tensor]:
    """The same in operations that have derivatives of any order, all chunks at a time.

    Args:
        q: (B, L, G, K), scaled.
        k: (B, L, G, K).
        v: (B, L, H, V).
        g: log-decays (B, L, H).
        state: (B, H, K, V).
        chunk_size: positions a chunk.

    Returns:
        The output (B, L, H, V) and the final state (B, H, K, V).
    """
    groups, shared = q.shape[2], v.shape[2] // q.shape[2]
    chunk = chunk_length(chunk_size, v.shape[1])
    qc, kc, vc = (to_chunks(x, chunk) for x in (q, k, v))
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
    y = y + unfold(qc @ carried, shared) * through
    return from_chunks(y, v.shape[1]), unfold(last.unsqueeze(2), shared).squeeze(2)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[:5], output[2])
    ctx.chunk_size = inputs[5]


def _backward(ctx: Any, grads: Any, *more: Any) -> tuple[Any, ...]:
    dy, dlast = (grads[0], grads[1]) if isinstance(grads, (list, tuple)) else (grads, more[0])
    q, k, v, g, state, marks = ctx.saved_tensors
    dy = torch.zeros_like(v) if dy is None else dy
    dlast = torch.zeros_like(state) if dlast is None else dlast
    if torch.is_grad_enabled():

        def again(q: Tensor, k: Tensor, v: Tensor, g: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
            return composed(q, k, v, g, state, ctx.chunk_size)

        _, pull, *_ = torch.func.vjp(again, q, k, v, g, state)
        found = pull((dy, dlast))
    else:
        found = _call_backward(dy, dlast, q, k, v, g, marks, ctx.chunk_size)
    return (*found, None, None)


_attend.register_autograd(_backward, setup_context=_setup)


def _attend_vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
    return _native.vmap_fold(_call, range(5), info, in_dims, args), (0,) * 3


def _attend_backward_vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
    return _native.vmap_fold(_call_backward, range(7), info, in_dims, args), (0,) * 5


_call_backward = _native.transformable(_attend_backward, _attend_backward_vmap)
_call = _native.transformable(_attend, _attend_vmap, _setup, _backward)


def decay_attention(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, state: Tensor, chunk_size: int
) -> tuple[Tensor, Tensor]:
    """``composed`` where no intermediate is larger than a chunk's, for CPU tensors; same arguments."""
    y, last, _ = _call(q, k, v, g, state, chunk_size, torch.is_grad_enabled())
    return y, last
