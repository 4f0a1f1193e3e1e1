"""Shared machinery of the chunked operators: cutting into chunks, and sums of log-decays."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from longseq.core.errors import ArgumentError

Spans = list[tuple[Tensor, Tensor]]
S = TypeVar("S")
BLOCK = 4096
"""Positions computed at a time where no gradient is kept."""


def chunk_length(chunk_size: int, length: int) -> int:
    """Returns the chunk length: the power of two that holds ``chunk_size`` or the whole sequence,
    if shorter.

    Args:
        chunk_size: positions asked for, at least 1.
        length: positions in the sequence.

    Raises:
        ArgumentError: if ``chunk_size`` is below 1.
    """
    if chunk_size < 1:
        raise ArgumentError(f"chunk_size must be at least 1, got {chunk_size}")
    return 1 << (min(chunk_size, length) - 1).bit_length()


def by_blocks(length: int) -> bool:
    """Returns whether a call is run block by block: it is long, and no graph needs its
    intermediates.

    Args:
        length: positions in the sequence.
    """
    return length > BLOCK and not torch.is_grad_enabled()


def run_blocks(
    function: Callable[..., tuple[Tensor, S]], sequences: Sequence[Tensor | None], state: S | None
) -> tuple[Tensor, S]:
    """Runs a function that carries a state over blocks of the sequence, in the memory of one block.

    Args:
        function: of the sequences and the state, returning an output (B, L, ...) and the new state.
        sequences: (B, L, ...) each, or None where an argument is absent.
        state: before position 0.

    Returns:
        The output (B, L, ...) and the state after the last position.
    """
    length = next(x.shape[1] for x in sequences if x is not None)

    def block(start: int) -> list[Tensor | None]:
        return [None if x is None else x[:, start : start + BLOCK] for x in sequences]

    y, last = function(*block(0), state)
    outputs = [y]
    for start in range(BLOCK, length, BLOCK):
        y, last = function(*block(start), last)
        outputs.append(y)
    return torch.cat(outputs, 1), last


def to_chunks(x: Tensor, chunk: int, fill: float = 0.0) -> Tensor:
    """Returns (B, H, C, T, E) for x (B, L, H, E), the last chunk filled up with ``fill``.

    Args:
        x: (B, L, H, E).
        chunk: T.
        fill: value behind the end.
    """
    padding = -x.shape[1] % chunk
    if padding:
        x = torch.nn.functional.pad(x, (0, 0, 0, 0, 0, padding), value=fill)
    return x.unflatten(1, (-1, chunk)).permute(0, 3, 1, 2, 4)


def from_chunks(x: Tensor, length: int) -> Tensor:
    """Returns (B, L, H, E) for x (B, H, C, T, E), without what ``to_chunks`` filled in.

    Args:
        x: (B, H, C, T, E).
        length: L.
    """
    return x.permute(0, 2, 3, 1, 4).flatten(1, 2)[:, :length]


def span_sums(log_decay: Tensor) -> Spans:
    """Sums log-decays inside blocks of 1, 2, 4, … T positions.

    Every sum is built by adding, never as a difference of two cumulative sums: a long strong decay
    before a span costs no precision inside it, and a log-decay of -inf (a reset) needs no care.

    Args:
        log_decay: (..., T, E), T a power of two.

    Returns:
        For each block length h, two tensors (..., T/h, h, E): the sum from the block's start
        through each position, and the sum over the positions of the block behind each position.
    """
    through, behind = log_decay.unsqueeze(-2), torch.zeros_like(log_decay).unsqueeze(-2)
    spans = [(through, behind)]
    while through.shape[-3] > 1:
        total = through[..., -1:, :]
        early, late = slice(0, None, 2), slice(1, None, 2)
        behind = torch.cat(
            [behind[..., early, :, :] + total[..., late, :, :], behind[..., late, :, :]], dim=-2
        )
        through = torch.cat(
            [through[..., early, :, :], through[..., late, :, :] + total[..., early, :, :]], dim=-2
        )
        spans.append((through, behind))
    return spans


def lower_triangular(diagonal: Tensor, blocks: Iterable[Tensor], fill: float) -> Tensor:
    """Builds (..., T, T) from its diagonal and the blocks below it, by doubling.

    Args:
        diagonal: (..., T, 1, 1).
        blocks: for h = 1, 2, 4, … the h × h blocks (..., T/2h, h, h) in which the rows of each
            pair's later half meet the columns of its earlier half.
        fill: value above the diagonal.
    """
    matrix = diagonal
    for block in blocks:
        above = torch.full_like(block, fill)
        top = torch.cat([matrix[..., 0::2, :, :], above], dim=-1)
        bottom = torch.cat([block, matrix[..., 1::2, :, :]], dim=-1)
        matrix = torch.cat([top, bottom], dim=-2)
    return matrix.squeeze(-3)


def decayed_products(
    rows: Sequence[Tensor], columns: Sequence[Tensor], spans: Spans
) -> list[list[Tensor]]:
    """Returns Σ_c x_ic y_jc exp(g_{j+1,c} + … + g_ic) for j ≤ i, else 0, (..., T, T): for each of
    several y a list of those of several x.

    The product is taken over halves, quarters, … of the chunk, each with its decays measured from
    the cut.

    Args:
        rows: x (..., T, K) each.
        columns: y (..., T, K) each.
        spans: of log-decays (..., T, K).
    """

    def halves(x: Tensor, decays: Sequence[Tensor], which: int) -> list[Tensor]:
        # (..., T/2h, h, K) for every h, decayed to the cut
        return [
            x.unflatten(-2, (-1, 2, decay.shape[-2])).select(-3, which) * decay for decay in decays
        ]

    late = [through[..., 1::2, :, :].exp() for through, _ in spans[:-1]]
    early = [behind[..., 0::2, :, :].exp() for _, behind in spans[:-1]]
    below = [halves(x, late, 1) for x in rows]
    before = [[half.transpose(-1, -2) for half in halves(y, early, 0)] for y in columns]
    return [
        [
            lower_triangular(
                (x * y).sum(-1)[..., None, None],
                [left @ right for left, right in zip(lefts, rights)],
                0.0,
            )
            for x, lefts in zip(rows, below)
        ]
        for y, rights in zip(columns, before)
    ]


def fold(x: Tensor, groups: int) -> Tensor:
    """(B, G·R, C, T, V) → (B, G, C, T, R·V): the heads that share a key become one wide matrix
    product."""
    return x.unflatten(1, (groups, -1)).permute(0, 1, 3, 4, 2, 5).flatten(-2)


def unfold(x: Tensor, shared: int) -> Tensor:
    """(B, G, C, T, R·V) → (B, G·R, C, T, V)."""
    return x.unflatten(-1, (shared, -1)).permute(0, 1, 4, 2, 3, 5).flatten(1, 2)


def pass_states(state: Tensor, local: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
    """Hands the state on; returns the state before each chunk, stacked at dim 2, and the last."""
    before = []
    for own, decay in zip(local.unbind(2), total.unbind(2)):
        before.append(state)
        state = torch.addcmul(own, decay.expand_as(own), state)
    return torch.stack(before, 2), state
