"""Linear attention with a decay per head, chunk by chunk in the caches, with a backward that
recomputes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from longseq.core.ops.backends import cpu_reason
from longseq.core.ops.chunk_walk import Chunks, Decays
from longseq.core.ops.chunking import chunk_length
from longseq.core.ops.linear_attention.arguments import Arguments

MARK = 8
"""Chunks between the states that the backward starts from."""


class Inputs(NamedTuple):
    """What is attended to; arguments as in ``chunked.per_head``."""

    q: Tensor
    k: Tensor
    v: Tensor
    g: Tensor
    step: Tensor | None
    skip: Tensor | None
    chunk_size: int

    def at(self, rows: slice) -> Inputs:
        """Returns those of some rows of the batch."""
        q, k, v, g, step, skip, chunk_size = self
        step = None if step is None else step[rows]
        return Inputs(q[rows], k[rows], v[rows], g[rows], step, skip, chunk_size)


class Walk:
    """Some rows of a batch, chunk after chunk.

    Args:
        inputs: of these rows.
    """

    def __init__(self, inputs: Inputs) -> None:
        self.q, self.k, self.v, g, self.step, self.skip, chunk_size = inputs
        q, v, chunk = self.q, self.v, chunk_length(chunk_size, self.v.shape[1])
        self.shape = Chunks(q, v, chunk)
        self.decays = Decays(self.shape, g)
        self.scores = v.new_empty((self.shape.batch * self.shape.groups, chunk, chunk))
        self.weighted = v.new_empty((self.shape.batch, chunk, *v.shape[2:]))

    def values(self, c: int) -> tuple[Tensor, Tensor]:
        """Returns the values of chunk c (B, T, H, V), and times their steps."""
        values = self.shape.at(self.v, c)
        return values, values if self.step is None else values * self.shape.at(
            self.step, c
        ).unsqueeze(-1)

    def advance(self, state: Tensor, c: int, stepped: Tensor, out: Tensor) -> None:
        """Writes the state (B·G, K, R·V) after chunk c, that of the last ``Decays.fill``, to
        ``out``."""
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
            if marks is not None and c % MARK == 0:
                marks[:, c // MARK] = state
            queries, keys = (shape.heads_first(shape.at(x, c)) for x in (self.q, self.k))
            values, stepped = self.values(c)
            torch.bmm(queries, keys.transpose(1, 2), out=self.scores)
            weights = decays.fill(c, scores=self.scores)
            torch.bmm(weights, shape.heads_first(stepped), out=inside)
            out = shape.unfolded(torch.bmm(queries, state, out=across)).mul_(
                shape.per_value(decays.through)
            )
            if self.skip is not None:
                out.addcmul_(values, self.skip)
            shape.put(y, c, out.add_(shape.heads_last(inside)))
            self.advance(state, c, stepped, state)

    def backward(self, dy: Tensor, dstate: Tensor, marks: Tensor, grads: Sequence[Tensor]) -> None:
        """Writes the gradients of q, k, v, g, step and skip; the last state's becomes the
        first's."""
        dq, dk, dv, dg, dstep, dskip = grads
        shape, decays = self.shape, self.decays
        dgs, slopes = torch.empty_like(decays.g), torch.empty_like(decays.matrix)
        inside = self.v.new_empty((decays.heads, shape.size, shape.d_value))
        seen = self.v.new_empty((dstate.shape[0], shape.size, dstate.shape[2]))
        entered = torch.empty_like(seen)
        spare = [torch.empty_like(dstate) for _ in range(min(MARK, shape.count) - 1)]
        for first in reversed(range(0, shape.count, MARK)):
            states = [marks[:, first // MARK], *spare[: min(MARK, shape.count - first) - 1]]
            for c, (state, after) in enumerate(pairwise(states), first):
                decays.fill(c)
                self.advance(state, c, self.values(c)[1], after)
            for c, state in reversed(list(enumerate(states, first))):
                queries, keys = (shape.heads_first(shape.at(x, c)) for x in (self.q, self.k))
                values, stepped = self.values(c)
                out = shape.at(dy, c)
                dapart = shape.heads_first(out)
                decays.fill(c)
                # Across the chunk's borders: what the exponents get, and the first part of all
                # gradients.
                through, behind = shape.per_value(decays.through), shape.per_value(decays.behind)
                decayed = shape.folded(out * through)
                weighted = shape.folded(torch.mul(stepped, behind, out=self.weighted))
                at_end = shape.unfolded(torch.bmm(keys, dstate, out=entered)).mul_(behind)
                before = shape.unfolded(torch.bmm(queries, state, out=seen).mul_(decayed))
                entering, leaving = (
                    x.sum(-1).transpose(1, 2).reshape(decays.heads, -1)
                    for x in (before, at_end * stepped)
                )
                dkeys = torch.bmm(weighted, dstate.transpose(1, 2))
                shape.heads_of(dstate).mul_(shape.per_state(decays.total))
                whole = (
                    torch.linalg.vecdot(shape.heads_of(dstate), shape.heads_of(state))
                    .sum(2)
                    .flatten()
                )
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


def reason(call: Arguments) -> str | None:
    """Returns why the CPU kernels cannot serve a call, or None if they can."""
    return cpu_reason(*call.tensors())
