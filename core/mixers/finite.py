"""What is not finite reaches only what comes after it in its own sequence, whatever the mixer does
inside.

Products over chunks, Fourier transforms and attention sum over positions that a mask weighs with
zero, and zero times NaN is NaN. Therefore such values are taken out before a mixer runs, and its
outputs that lie behind them are made NaN afterwards. Finding them costs one sum over the input.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

State = dict[str, Tensor]
Run = Callable[[Tensor, State | None, Tensor | None], tuple[Tensor, State]]


def run_finite(
    run: Run, x: Tensor, state: State | None, segment_ids: Tensor | None, causal: bool
) -> tuple[Tensor, State]:
    """Runs a mixer on CPU tensors that Python may look into.

    Args:
        run: of (x, state, segment_ids), returning (y, state).
        x: (B, L, D).
        state: or None.
        segment_ids: integers (B, L), or None.
        causal: whether outputs before a value are to be kept from it, or only other sequences.

    Returns:
        The output, NaN from a position that is not finite to the end of its sequence (in all of it,
        if the mixer is not causal), and the state, NaN in rows whose last sequence has such a
        position.
    """
    # A sum is finite if all values are, but for an overflow: then the exact look finds nothing.
    bad: Tensor | None = None
    first: Tensor | None = None
    if not _sums_finite(x):
        found = ~torch.isfinite(x).all(-1)
        bad = found if bool(found.any()) else None
    if segment_ids is not None and state is not None:
        rows = _bad_rows(state, x.shape[0])
        first = rows if rows is not None and bool(rows.any()) else None
    if bad is None and first is None:
        return run(x, state, segment_ids)
    bad = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device) if bad is None else bad
    if first is not None:
        assert state is not None
        state = {
            k: v.masked_fill(_rows(first, v), 0) if _carries(v) else v for k, v in state.items()
        }
    y, last = run(x.masked_fill(bad.unsqueeze(-1), 0.0), state, segment_ids)
    reached = _reached(bad, first, segment_ids, causal)
    # Added, not put in their place: the gradient of what is lost is not lost in silence.
    y = y + torch.zeros_like(y[..., :1]).masked_fill(reached.unsqueeze(-1), torch.nan)
    end = reached[:, -1]
    if bool(end.any()):
        last = {
            k: v.masked_fill(_rows(end, v), torch.nan) if _carries(v) else v
            for k, v in last.items()
        }
    return y, last


def _sums_finite(x: Tensor) -> bool:
    total = x.detach().sum()
    return bool(torch.isfinite(total))


def _carries(value: Tensor) -> bool:
    return value.is_floating_point() or value.is_complex()


def _rows(rows: Tensor, like: Tensor) -> Tensor:
    """Returns (B, 1, …) for rows (B,)."""
    return rows.view(-1, *[1] * (like.dim() - 1))


def _bad_rows(state: State, batch: int) -> Tensor | None:
    """Returns the rows (B,) whose state holds NaN or +inf; -inf is where running maxima start."""
    found = None
    for value in state.values():
        if not _carries(value) or not value.numel() or _sums_finite(value):
            continue
        real = torch.view_as_real(value) if value.is_complex() else value
        rows = ~(real.reshape(batch, -1) < torch.inf).all(1)
        found = rows if found is None else found | rows
    return found


def _reached(bad: Tensor, first: Tensor | None, segment_ids: Tensor | None, causal: bool) -> Tensor:
    """Returns the positions (B, L) whose outputs depend on one that is not finite."""
    number = torch.zeros_like(bad, dtype=torch.long)
    if segment_ids is not None:
        number[:, 1:] = (segment_ids[:, 1:] != segment_ids[:, :-1]).cumsum(1)
    if first is not None:
        bad = bad.clone()
        bad[:, 0] |= first
    if not causal:
        whole = torch.zeros_like(number).scatter_reduce(1, number, bad.long(), "amax")
        return whole.gather(1, number).bool()
    # The number of the sequence of the last one so far: it reaches as far as that goes on.
    return torch.where(bad, number, -1).cummax(1).values == number
