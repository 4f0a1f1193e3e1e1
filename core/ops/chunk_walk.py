"""What the operators that walk over chunks share: cutting chunks out, and the decays inside them.

The weight of position s at position t of a chunk is P[t, s] = exp(e[t, s] - m_t) for s ≤ t, with
e[t, s] = i_s + Σ_{s < r ≤ t} g_r. What enters the chunk has exponent m + Σ_{r ≤ t} g_r, with m its
unit. With input gates i, the unit m_t is the largest exponent of row t, that of what enters
included; without them all units are 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from longseq.core.ops import cpu_calls
from longseq.core.ops.backends import native

_STATE = 1 << 18  # numbers in the states of the rows of a batch that are walked together


def row_blocks(batch: int, state: int) -> Iterator[slice]:
    """Yields the rows of a batch that are walked together: their states should stay in the caches.

    Args:
        batch: B.
        state: numbers in the state of a row.
    """
    size = max(1, _STATE // state)
    for start in range(0, batch, size):
        yield slice(start, start + size)


class Chunks:
    """Cuts (B, L, H, E) tensors into chunks, the heads of a group folded into one wide matrix or
    apart.

    Args:
        q: (B, L, G, K).
        v: (B, L, H, V).
        chunk: T.
    """

    def __init__(self, q: Tensor, v: Tensor, chunk: int) -> None:
        self.batch, self.length, self.heads, self.d_value = v.shape
        self.groups, self.d_key = q.shape[2:]
        self.shared, self.size = self.heads // self.groups, chunk
        self.count = -(-self.length // chunk)

    def at(self, x: Tensor, c: int, fill: float = 0.0) -> Tensor:
        """(B, T, H or G, …) of chunk c, the last one filled up: zeros add nothing to the state."""
        x = x[:, c * self.size : (c + 1) * self.size]
        if x.shape[1] == self.size:
            return x
        filled = x.new_full((x.shape[0], self.size, *x.shape[2:]), fill)
        filled[:, : x.shape[1]] = x
        return filled

    def put(self, x: Tensor, c: int, values: Tensor) -> None:
        """Writes (B, T, H or G, E) as chunk c of x (B, L, H or G, E)."""
        to = x[:, c * self.size : (c + 1) * self.size]
        to.copy_(values[:, : to.shape[1]])

    def heads_first(self, x: Tensor) -> Tensor:
        """(B, T, H, E) → (B·H, T, E), a view for a single row."""
        return x.transpose(1, 2).reshape(-1, self.size, x.shape[3])

    def heads_last(self, x: Tensor) -> Tensor:
        """(B·H, T, E) → (B, T, H, E), a view."""
        return x.view(self.batch, -1, self.size, x.shape[2]).transpose(1, 2)

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

    def state_in(self, state: Tensor) -> Tensor:
        """(B, H, K, V) → (B·G, K, R·V), always a copy."""
        x = state.unflatten(1, (self.groups, self.shared)).transpose(2, 3)
        return x.contiguous().view(self.batch * self.groups, self.d_key, -1).clone()

    def state_out(self, state: Tensor) -> Tensor:
        """(B·G, K, R·V) → (B, H, K, V)."""
        x = state.view(self.batch, self.groups, self.d_key, self.shared, self.d_value).transpose(
            2, 3
        )
        return x.flatten(1, 2).contiguous()

    def heads_of(self, state: Tensor) -> Tensor:
        """(B·G, K, R·V) → (B, G, K, R, V), a view."""
        return state.view(self.batch, self.groups, self.d_key, self.shared, self.d_value)

    def per_state(self, total: Tensor) -> Tensor:
        """(B·H,) → (B, G, 1, R, 1), to multiply ``heads_of``."""
        return total.view(self.batch, self.groups, 1, self.shared, 1)

    def per_value(self, x: Tensor) -> Tensor:
        """(B·H, T) → (B, T, H, 1), to multiply values."""
        return x.view(self.batch, -1, self.size).transpose(1, 2).unsqueeze(-1)


class Decays:
    """The decays of one chunk after another, in memory that the next chunk overwrites.

    Args:
        shape: of the walk.
        g: log-decays (B, L, H).
        i: exponents of the inputs (B, L, H), or None.
    """

    def __init__(self, shape: Chunks, g: Tensor, i: Tensor | None = None) -> None:
        size, count = shape.size, shape.count
        self.shape, self.heads, self.dtype = shape, shape.batch * shape.heads, g.dtype

        def by_chunk(x: Tensor, fill: float) -> Tensor:  # (C, B·H, T)
            x = torch.nn.functional.pad(x, (0, 0, 0, count * size - shape.length), value=fill)
            return (
                x.unflatten(1, (count, size)).permute(1, 0, 3, 2).reshape(count, self.heads, size)
            )

        self.g = by_chunk(g, 0.0).contiguous()
        self.i = None if i is None else by_chunk(i, -torch.inf).contiguous()
        rows = (self.heads, size)
        self.matrix = g.new_empty((*rows, size))
        self.through, self.behind = g.new_empty(rows), g.new_empty(rows)
        self.units, self.sums = g.new_empty(rows), g.new_empty(rows)
        self.winners = torch.empty(rows, dtype=torch.int32)
        self.threads = cpu_calls.threads(self.heads * size * size)

    @property
    def total(self) -> Tensor:
        """The decay over the whole chunk, (B·H,)."""
        return self.through[:, -1]

    def fill(self, c: int, unit: Tensor | None = None, scores: Tensor | None = None) -> Tensor:
        """Computes the decays of chunk c.

        Sets ``through`` (B·H, T), of what enters the chunk; ``behind``, of every position at the
        chunk's end; with input gates the ``units`` m_t; and with scores ``sums``, those of the
        returned rows.

        Args:
            c: chunk.
            unit: m of what enters (B·H,), where there are input gates.
            scores: (B·G, T, T), to be multiplied with.

        Returns:
            The weights (B·H, T, T), times the scores if given.
        """
        pointer = cpu_calls.pointer
        native().decay_weights(
            *self._arguments(c, scores, None if scores is None else self.sums),
            pointer(self.g[c]),
            pointer(unit),
            pointer(self.through),
            pointer(self.behind),
            pointer(self.units),
        )
        return self.matrix

    def slopes(
        self,
        c: int,
        scores: Tensor,
        slopes: Tensor,
        entering: Tensor,
        leaving: Tensor,
        whole: Tensor,
        dg: Tensor,
        more: Tensor | None = None,
        dunits: Tensor | None = None,
        di: Tensor | None = None,
        dunit: Tensor | None = None,
    ) -> None:
        """Finishes the gradients of chunk c, which the last ``fill`` was for, without scores.

        ``matrix`` becomes the decays times the scores.

        Args:
            c: chunk.
            scores: (B·G, T, T).
            slopes: the gradient of decays times scores (B·H, T, T); becomes that of every head's
                scores.
            entering: gradient of the exponents of what enters, at every position (B·H, T).
            leaving: gradient of the exponents of the positions at the chunk's end (B·H, T).
            whole: gradient of the exponent of what enters at the chunk's end (B·H,).
            dg: receives the gradient of g (B·H, T).
            more: added to all slopes of a row (B·H, T).
            dunits: gradient of m_t at fixed exponents (B·H, T), passed to the exponent that attains
                it.
            di: receives the gradient of i (B·H, T).
            dunit: receives the gradient of the unit of what enters (B·H,).
        """
        entering, leaving, whole = entering.contiguous(), leaving.contiguous(), whole.contiguous()
        more = None if more is None else more.contiguous()
        dunits = None if dunits is None else dunits.contiguous()
        given = (slopes, entering, leaving, whole, dunits, dg, di, dunit)
        native().decay_slopes(
            *self._arguments(c, scores, more), *[cpu_calls.pointer(x) for x in given]
        )

    def _arguments(self, c: int, scores: Tensor | None, sums: Tensor | None) -> list[Any]:
        """Returns what both kernels take first."""
        gates = None if self.i is None else self.i[c]
        winners = None if self.i is None else self.winners
        sizes = (self.heads, self.shape.shared, self.shape.size)
        return [
            sizes,
            cpu_calls.code(self.dtype),
            self.threads,
            *[cpu_calls.pointer(x) for x in (gates, scores, self.matrix, sums, winners)],
        ]

    def gradient(self, by_chunk: Tensor) -> Tensor:
        """(C, B·H, T) → (B, L, H)."""
        shape = self.shape
        x = by_chunk.view(shape.count, shape.batch, shape.heads, shape.size).permute(1, 0, 3, 2)
        return x.reshape(shape.batch, -1, shape.heads)[:, : shape.length]
