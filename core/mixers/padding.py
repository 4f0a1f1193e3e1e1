"""Padded batches: a layer or a stack is run over the real positions alone, so that padding changes
nothing."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor

from longseq.core.errors import ArgumentError
from longseq.core.ops.arguments import readable

S = TypeVar("S")


class Carry(ABC, Generic[S]):
    """What padding has to do with carried states of some kind."""

    @abstractmethod
    def start(self, batch: int, x: Tensor) -> S:
        """Returns the state at the start of a sequence, for so many rows of x's device and
        dtype."""

    @abstractmethod
    def select(self, state: S, rows: Tensor) -> S:
        """Returns the state of some rows, by their indices."""

    @abstractmethod
    def join(self, states: Sequence[S]) -> S:
        """Returns the states of all rows, one set of rows after the other."""

    @abstractmethod
    def restart(self, state: S, begins: Sequence[bool]) -> S:
        """Returns the state with that of a start in the rows where a sequence begins."""

    @abstractmethod
    def replace(self, state: S, rows: Tensor, by: S) -> S:
        """Returns the state with those rows (bool) whose entries have the same shape in ``by``
        taken from it."""


def real_positions(
    name: str,
    x: Tensor,
    attention_mask: Tensor | None,
    lengths: Tensor | Sequence[int] | None,
) -> Tensor:
    """Returns a bool tensor (B, L), true at real positions.

    Args:
        name: of who is called, for messages.
        x: (B, L, D).
        attention_mask: bool or integer (B, L), 0 at padding.
        lengths: integers (B,), the number of real positions of each row, its first ones.

    Raises:
        ArgumentError: for both at a time, or another shape, kind or value.
    """
    batch, length = x.shape[:2]
    if attention_mask is not None and lengths is not None:
        raise ArgumentError(f"{name}: give attention_mask or lengths, not both")
    if attention_mask is not None:
        real = torch.as_tensor(attention_mask, device=x.device)
        if real.is_floating_point() or real.is_complex() or tuple(real.shape) != (batch, length):
            raise ArgumentError(
                f"{name}: attention_mask must be bool or integer (batch, length) = "
                f"{(batch, length)}, 0 at padding, got {real.dtype} {tuple(real.shape)}"
            )
        return real.bool()
    counts = torch.as_tensor(lengths, device=x.device)
    if counts.is_floating_point() or counts.dtype == torch.bool or tuple(counts.shape) != (batch,):
        raise ArgumentError(
            f"{name}: lengths must be {batch} integers, one for each row, got {counts.dtype} "
            f"{tuple(counts.shape)}"
        )
    if readable(counts) and bool(((counts < 0) | (counts > length)).any()):
        raise ArgumentError(f"{name}: lengths must be 0 to {length}, got {counts.tolist()}")
    return torch.arange(length, device=x.device) < counts.unsqueeze(1)


def run_real(
    run: Callable[[Tensor, S | None, Tensor | None], tuple[Tensor, S]],
    carry: Carry[S],
    x: Tensor,
    state: S | None,
    segment_ids: Tensor | None,
    real: Tensor,
) -> tuple[Tensor, S]:
    """Runs a layer as though padding were not there, wherever it lies.

    From the start of a sequence, real positions are moved to the right of their row and the padding
    before them is a packed sequence of its own: one call, and the last position is a real one. With
    a state, position 0 must be real, and rows of one length make a call.

    Args:
        run: of (x, state, segment_ids), returning (y, state).
        carry: how its states are selected and joined.
        x: (B, L, D).
        state: before the first real position, or None.
        segment_ids: integers (B, L), or None.
        real: bool (B, L).

    Returns:
        The output (B, L, D), zero at padding, and each row's state after its last real position.

    Raises:
        ArgumentError: under a compiler or a transform, if there is a state.
    """
    if not readable(x, real):
        if state is not None:
            raise ArgumentError(
                "padding after a carried state needs to look at the mask, which a compiler or "
                "transform does not allow: give whole rows there"
            )
        y, last = _aligned(run, x, segment_ids, real)
        return y, carry.replace(last, ~real.any(1), carry.start(x.shape[0], x))
    if bool(real.all()):
        return run(x, state, segment_ids)
    counts = real.sum(1)
    sizes = (counts > 0).long() if state is None else counts
    outputs, states, places = [], [], []
    for size in sizes.unique().tolist():
        rows = (sizes == size).nonzero().squeeze(1)
        before = None if state is None else carry.select(state, rows)
        ids = None if segment_ids is None else segment_ids[rows]
        if size == 0:
            y = torch.zeros_like(x[rows])
            after = carry.start(len(rows), x) if before is None else before
        elif before is None:
            y, after = _aligned(run, x[rows], ids, real[rows])
        else:
            y, after = _counted(run, x[rows], before, ids, real[rows], size)
        outputs.append(y)
        states.append(after)
        places.append(rows)
    back = torch.cat(places).argsort()
    return torch.cat(outputs)[back], carry.select(carry.join(states), back)


def _taken(x: Tensor, index: Tensor) -> Tensor:
    """Returns x (B, L, D) at positions (B, T)."""
    return x.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[2]))


def _aligned(
    run: Callable[[Tensor, S | None, Tensor | None], tuple[Tensor, S]],
    x: Tensor,
    segment_ids: Tensor | None,
    real: Tensor,
) -> tuple[Tensor, S]:
    """Runs rows from their start, the padding moved to their left as a sequence of its own."""
    order = real.long().argsort(dim=1, stable=True)
    there = real.gather(1, order)
    changes = there[:, 1:] != there[:, :-1]
    if segment_ids is not None:
        ids = segment_ids.gather(1, order)
        changes = changes | ((ids[:, 1:] != ids[:, :-1]) & there[:, 1:])
    ids = torch.nn.functional.pad(changes, (1, 0)).long().cumsum(1)
    y, last = run(_taken(x, order).masked_fill(~there.unsqueeze(-1), 0.0), None, ids)
    return _taken(y, order.argsort(1)).masked_fill(~real.unsqueeze(-1), 0.0), last


def _counted(
    run: Callable[[Tensor, S | None, Tensor | None], tuple[Tensor, S]],
    x: Tensor,
    state: S,
    segment_ids: Tensor | None,
    real: Tensor,
    count: int,
) -> tuple[Tensor, S]:
    """Runs rows of ``count`` real positions each, which go on from a state."""
    order = (~real).long().argsort(dim=1, stable=True)[:, :count]
    ids = None if segment_ids is None else segment_ids.gather(1, order)
    y, last = run(_taken(x, order), state, ids)
    room = y.new_zeros(*x.shape[:2], y.shape[2])
    return room.scatter(1, order.unsqueeze(-1).expand(-1, -1, y.shape[2]), y), last


def unpack(x: Tensor, segment_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the sequences of a pack as rows of a padded batch: run with ``lengths``, a mixer then
    returns the state after each of them.

    Args:
        x: packed sequences (B, L, D).
        segment_ids: integers (B, L); a change of id begins another sequence.

    Returns:
        The rows (N, longest, D), zeros behind their ends, in the order of the pack; and their
        lengths (N,).
    """
    ids = _numbers(segment_ids)
    lengths = torch.bincount(ids.flatten())
    longest = int(lengths.max()) if lengths.numel() else 0
    place = torch.arange(longest, device=x.device) < lengths.unsqueeze(1)
    rows = x.new_zeros(*place.shape, x.shape[2])
    return rows.masked_scatter(place.unsqueeze(-1), x), lengths


def repack(rows: Tensor, segment_ids: Tensor) -> Tensor:
    """Undoes ``unpack``.

    Args:
        rows: (N, longest, D).
        segment_ids: integers (B, L), those of the pack.

    Returns:
        (B, L, D).
    """
    lengths = torch.bincount(_numbers(segment_ids).flatten())
    place = torch.arange(rows.shape[1], device=rows.device) < lengths.unsqueeze(1)
    return rows[place].view(*segment_ids.shape, rows.shape[2])


def _numbers(segment_ids: Tensor) -> Tensor:
    """Returns the number of each position's sequence in the whole pack, (B, L)."""
    begins = torch.ones_like(segment_ids)
    begins[:, 1:] = (segment_ids[:, 1:] != segment_ids[:, :-1]).to(begins.dtype)
    return begins.flatten().cumsum(0).view_as(begins) - 1
