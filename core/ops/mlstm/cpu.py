"""The mLSTM's memory chunk by chunk in the caches, on the CPU, with a backward that recomputes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from longseq.core.ops.backends import cpu_reason
from longseq.core.ops.chunk_walk import Chunks, Decays
from longseq.core.ops.chunking import chunk_length
from longseq.core.ops.mlstm.arguments import Arguments
from longseq.core.ops.mlstm.stabiliser import MAX_FLOOR_EXPONENT, floor_of

MARK = 4
"""Chunks between the states that the backward starts from."""
Memory = tuple[Tensor, Tensor, Tensor]


class Inputs(NamedTuple):
    """What is read; arguments as in ``chunked.composed``."""

    q: Tensor
    k: Tensor
    v: Tensor
    i: Tensor
    g: Tensor

    def at(self, rows: slice) -> Inputs:
        """Returns those of some rows of the batch."""
        return Inputs(*[x[rows] for x in self])


class Options(NamedTuple):
    """How it is computed."""

    chunk_size: int
    eps: float


class Kept(NamedTuple):
    """What the forward walk keeps for the backward one: h, nᵀq, and the memory every few chunks."""

    h: Tensor
    seen: Tensor
    mark_c: Tensor
    mark_n: Tensor
    mark_m: Tensor


def reason(call: Arguments) -> str | None:
    """Returns why the CPU kernels cannot serve a call, or None if they can."""
    return cpu_reason(*call.tensors())


class _Walk:
    """The states of some rows of a batch, handed from chunk to chunk.

    Args:
        x: of these rows.
        chunk_size: positions per chunk asked for.
    """

    def __init__(self, x: Inputs, chunk_size: int) -> None:
        q, _, v, i, g = x
        chunk = chunk_length(chunk_size, v.shape[1])
        self.shape = Chunks(q, v, chunk)
        self.decays = Decays(self.shape, g, i)
        heads, self.scale = self.decays.heads, self.shape.d_key**-0.5
        self.weighted = v.new_empty((heads, chunk, self.shape.d_value))
        self.scores = torch.empty_like(self.decays.matrix)

    def keys(self, k: Tensor, c: int) -> Tensor:
        """(B·H, T, K) of chunk c, scaled, dense."""
        return self.shape.heads_first(self.shape.at(k, c) * self.scale)

    def advance(self, memory: Memory, keys: Tensor, values: Tensor, out: Memory) -> None:
        """Writes the memory after the chunk of the last ``Decays.fill`` to ``out``."""
        behind, total = self.decays.behind.unsqueeze(-1), self.decays.total.unsqueeze(-1)
        across = keys.transpose(1, 2)
        torch.mul(memory[0], total.unsqueeze(-1), out=out[0])
        out[0].baddbmm_(across, torch.mul(values, behind, out=self.weighted))
        torch.mul(memory[1], total, out=out[1]).unsqueeze(1).baddbmm_(behind.transpose(1, 2), keys)
        out[2].copy_(self.decays.units[:, -1])


def forward(
    x: Inputs, options: Options, memory: Memory, marks: Sequence[Tensor], h: Tensor, seen: Tensor
) -> None:
    """Walks over all chunks; writes h (B, L, H, V), nᵀq (B, L, H), the marks, and the memory in
    place."""
    q, k, v, *_ = x
    walk, eps = _Walk(x, options.chunk_size), options.eps
    shape, decays = walk.shape, walk.decays
    y = torch.empty_like(walk.weighted)
    for c in range(shape.count):
        if marks and c % MARK == 0:
            for mark, part in zip(marks, memory):
                mark[:, c // MARK] = part.view_as(mark[:, c // MARK])
        queries, keys = shape.heads_first(shape.at(q, c)), walk.keys(k, c)
        values = shape.heads_first(shape.at(v, c))
        torch.bmm(queries, keys.transpose(1, 2), out=walk.scores)
        weights = decays.fill(c, memory[2], walk.scores)
        entered = queries * decays.through.unsqueeze(-1)
        torch.bmm(weights, values, out=y).baddbmm_(entered, memory[0])
        total = torch.baddbmm(decays.sums.unsqueeze(-1), entered, memory[1].unsqueeze(-1))
        y.div_(torch.maximum(total.abs(), floor_of(decays.units).unsqueeze(-1)).add_(eps))
        shape.put(h, c, shape.heads_last(y))
        shape.put(seen, c, shape.heads_last(total).squeeze(-1))
        walk.advance(memory, keys, values, memory)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Returns the sum over the last dimension of a product that is not written out: (..., E) to
    (...)."""
    return torch.linalg.vecdot(a, b)


def backward(
    dh: Tensor,
    dlast: Sequence[Tensor],
    x: Inputs,
    kept: Kept,
    options: Options,
    outputs: Sequence[Tensor],
) -> None:
    """Walks back over all chunks; writes the gradients of q, k, v, i, g, C, n and m.

    With y_t = Σ_s P[t, s] (q_t·k_s) v_s + through_t Cᵀ q_t and x_t = nᵀ q_t alike, the output is
    h_t = y_t / (max(|x_t|, exp(-m_t)) + eps). A larger m_t divides y_t, x_t and exp(-m_t) by the
    same, so that only eps (and the bound of the exponent) leaves it a gradient. That of the
    memory's unit is -⟨dC, C⟩ - ⟨dn, n⟩. Both go to the exponent that attains m.
    """
    q, k, v, *_ = x
    h, seen, *marks = kept
    walk, eps = _Walk(x, options.chunk_size), options.eps
    shape, decays = walk.shape, walk.decays
    chunk = shape.size
    dq, dk, dv, di, dg, *dfirst = outputs
    dis, dgs = torch.empty_like(decays.g), torch.empty_like(decays.g)
    dc, dn, dm = (x.flatten(0, 1).clone() for x in dlast)
    slopes, dy, inside, entered = (
        torch.empty_like(x) for x in (decays.matrix, walk.weighted, walk.weighted, walk.weighted)
    )
    dqueries, dkeys = (dc.new_empty((decays.heads, chunk, shape.d_key)) for _ in range(2))
    memories = [
        (torch.empty_like(dc), torch.empty_like(dn), torch.empty_like(dm))
        for _ in range(min(MARK, shape.count))
    ]
    for first in reversed(range(0, shape.count, MARK)):
        for part, mark in zip(memories[0], marks):
            part.copy_(mark[:, first // MARK].flatten(0, 1))
        behind = range(first + 1, min(first + MARK, shape.count))
        for c, memory, after in zip(behind, memories, memories[1:]):
            decays.fill(c - 1, memory[2])
            walk.advance(memory, walk.keys(k, c - 1), shape.heads_first(shape.at(v, c - 1)), after)
        for c in reversed(range(first, behind.stop)):
            memory = memories[c - first]
            queries, keys = shape.heads_first(shape.at(q, c)), walk.keys(k, c)
            values, dout = (shape.heads_first(shape.at(x, c)) for x in (v, dh))
            decays.fill(c, memory[2])
            # Through the division.
            total = shape.heads_first(shape.at(seen, c, 1.0).unsqueeze(-1)).squeeze(-1)
            floor = floor_of(decays.units)
            divisor = torch.maximum(total.abs(), floor).add_(eps)
            per_part = _dot(dout, shape.heads_first(shape.at(h, c))).div_(divisor).neg_()
            above = total.abs() > floor
            dseen = torch.where(above, per_part * total.sign(), 0.0)
            bounded = ~above & (decays.units < -MAX_FLOOR_EXPONENT)
            dunits = per_part.mul_(torch.where(bounded, divisor, eps))
            torch.div(dout, divisor.unsqueeze(-1), out=dy)
            # Across the chunk's borders.
            through, behind_ = decays.through.unsqueeze(-1), decays.behind.unsqueeze(-1)
            decayed, dseen_ = dy * through, (dseen * decays.through).unsqueeze(-1)
            torch.bmm(decayed, memory[0].transpose(1, 2), out=dqueries).addcmul_(
                dseen_, memory[1].unsqueeze(-2)
            )
            weighted = torch.mul(values, behind_, out=walk.weighted)
            torch.bmm(weighted, dc.transpose(1, 2), out=dkeys).addcmul_(behind_, dn.unsqueeze(-2))
            entering, leaving = _dot(dqueries, queries), _dot(dkeys, keys)
            total_ = decays.total
            whole = _dot(dc.flatten(1), memory[0].flatten(1)).add_(_dot(dn, memory[1])).mul_(total_)
            dunits[:, -1] += dm - leaving.sum(-1) - whole
            torch.bmm(keys, dc, out=entered)
            # Inside the chunk.
            torch.bmm(queries, keys.transpose(1, 2), out=walk.scores)
            torch.bmm(dy, values.transpose(1, 2), out=slopes)
            decays.slopes(
                c, walk.scores, slopes, entering, leaving, whole, dgs[c], dseen, dunits, dis[c], dm
            )
            torch.bmm(decays.matrix.transpose(1, 2), dy, out=inside).addcmul_(entered, behind_)
            dqueries.baddbmm_(slopes, keys)
            dkeys.baddbmm_(slopes.transpose(1, 2), queries).mul_(walk.scale)
            for to, part in zip((dq, dk, dv), (dqueries, dkeys, inside)):
                shape.put(to, c, shape.heads_last(part))
            # To the memory before the chunk.
            across = queries.transpose(1, 2)
            dc.mul_(total_.view(-1, 1, 1)).baddbmm_(across, decayed)
            dn.mul_(total_.unsqueeze(-1)).unsqueeze(1).baddbmm_(dseen_.transpose(1, 2), queries)
    di.copy_(decays.gradient(dis))
    dg.copy_(decays.gradient(dgs))
    for to, part in zip(dfirst, (dc, dn, dm)):
        to.copy_(part.view_as(to))
