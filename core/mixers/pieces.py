"""Long inputs without gradients, in pieces of time: between them only a state is carried."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

import torch
from torch import Tensor, nn

from longseq.core.mixers.padding import Carry
from longseq.core.ops.arguments import readable

S = TypeVar("S")

WHOLE = 1 << 24  # values (B, L, D) that go through layers at once; ...
PIECE = 1 << 22  # ... of more, so many in each piece, ...
SHORTEST = 4096  # ... but so many positions at least, as every piece costs calls


def piece_length(model: nn.Module, x: Tensor, width: int, segment_ids: Tensor | None) -> int | None:
    """Returns how many positions to run at once, or None for all of them.

    Pieces are for evaluation without gradients, where nothing but the states joins what comes
    before to what comes after. A model with hooks is run whole: a hook is promised every call, and
    may count on one.

    Args:
        model: whose submodules are to be run.
        x: (B, L, …), L positions.
        width: D.
        segment_ids: what will be cut with x.
    """
    batch, length = x.shape[:2]
    if model.training or torch.is_grad_enabled() or not readable(x):
        return None
    if batch * length * width <= WHOLE or (
        segment_ids is not None and segment_ids.shape != x.shape[:2]
    ):
        return None
    size = max(SHORTEST, PIECE // (batch * width))
    inner = (one for one in model.modules() if one is not model)
    hooked = any(one._forward_hooks or one._forward_pre_hooks for one in inner)
    return None if length <= size or hooked else size


def in_pieces(
    run: Callable[[Tensor, S | None, Tensor | None], tuple[Tensor, S]],
    carry: Carry[S] | None,
    x: Tensor,
    state: S | None,
    segment_ids: Tensor | None,
    size: int,
) -> tuple[Tensor, S]:
    """Runs layers over pieces of time; equal to one run over all of it, by the contract's law 1.

    Args:
        run: of (x, state, segment_ids), returning (y, state).
        carry: how its states begin and are joined; needed with ``segment_ids`` alone.
        x: (B, L, …), L ≥ 1.
        state: before the first position, or None.
        segment_ids: integers (B, L), or None.
        size: positions of a piece.

    Returns:
        The output (B, L, …) and the state after the last position.
    """
    y: Tensor | None = None
    for low in range(0, x.shape[1], size):
        piece = slice(low, min(low + size, x.shape[1]))
        ids = None
        if segment_ids is not None:
            ids = segment_ids[:, piece]
            if low and carry is not None and state is not None:
                new = (segment_ids[:, low] != segment_ids[:, low - 1]).tolist()
                state = carry.restart(state, new)
        out, state = run(x[:, piece], state, ids)
        if y is None:
            y = out.new_empty(*x.shape[:2], *out.shape[2:])
        y[:, piece] = out
    assert y is not None and state is not None
    return y, state


def pointwise(run: Callable[[Tensor], Tensor], x: Tensor, size: int) -> Tensor:
    """Runs a map that looks at every position alone over pieces of time.

    Args:
        run: (B, l, …) to (B, l, …).
        x: (B, L, …).
        size: positions of a piece.
    """
    parts = x.split(size, 1)
    first = run(parts[0])
    y = first.new_empty(*x.shape[:2], *first.shape[2:])
    for part, out in zip(parts, y.split(size, 1)):
        out.copy_(first if part is parts[0] else run(part))
    return y


def runs_of(kinds: Iterable[bool]) -> list[tuple[bool, int, int]]:
    """Returns the runs of equal values, each with its first index and the one past its last."""
    runs: list[tuple[bool, int, int]] = []
    for i, kind in enumerate(kinds):
        if runs and runs[-1][0] == kind:
            runs[-1] = (kind, runs[-1][1], i + 1)
        else:
            runs.append((kind, i, i + 1))
    return runs
