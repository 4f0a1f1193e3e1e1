"""What the published signatures share: layouts, indices of sequences, slots of states."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from longseq.core.errors import ArgumentError


def like(y: Tensor, x: Tensor) -> Tensor:
    """Returns y with time as its dense dimension if it is x's: callers may rely on views of the
    output."""
    return y.contiguous() if x.stride(-1) == 1 else y


def changes(seq_idx: Tensor, before: int | None) -> Tensor:
    """Returns a bool tensor (B, L), true where the index is not that of the position before.

    Args:
        seq_idx: integers (B, L).
        before: the index before position 0; None if that position begins a sequence anyway.
    """
    first = (
        torch.ones_like(seq_idx[:, :1], dtype=torch.bool)
        if before is None
        else seq_idx[:, :1] != before
    )
    return torch.cat([first, seq_idx[:, 1:] != seq_idx[:, :-1]], 1)


def check_indices(name: str, key: str, indices: Tensor | None, batch: int) -> Tensor | None:
    """Returns which rows are not padding; None without indices.

    Raises:
        ArgumentError: if the indices are not integers, one a row.
    """
    if indices is None:
        return None
    if tuple(indices.shape) != (batch,) or indices.is_floating_point():
        raise ArgumentError(
            f"{name}: {key} must be integers of shape {(batch,)} = (batch,), got {indices.dtype} "
            f"{tuple(indices.shape)}"
        )
    return indices >= 0


def take(slots: Tensor, indices: Tensor | None) -> Tensor:
    """Returns the states of the rows; some state for padding rows."""
    return slots if indices is None else slots[indices.long().clamp(min=0)]


def put(slots: Tensor, indices: Tensor | None, keep: Tensor | None, new: Tensor) -> None:
    """Writes the new states in place, those of padding rows excepted."""
    with torch.no_grad():
        new = new.to(slots.dtype)
        if indices is None or keep is None:
            slots.copy_(new)
        else:
            slots[indices.long()[keep]] = new[keep]


def bounds_of(name: str, cu_seqlens: Tensor, total: int) -> list[int]:
    """Returns where packed sequences begin, and the end of the last one.

    Args:
        name: of the function, for messages.
        cu_seqlens: integers (S + 1,), rising from 0; a repeated entry is an empty sequence.
        total: positions there are; those after the last sequence are padding.

    Raises:
        ArgumentError: if they are anything else.
    """
    if cu_seqlens.dim() != 1 or cu_seqlens.is_floating_point() or not cu_seqlens.numel():
        raise ArgumentError(
            f"{name}: cu_seqlens must be integers of shape (sequences + 1,), got "
            f"{cu_seqlens.dtype} {tuple(cu_seqlens.shape)}"
        )
    bounds = [int(at) for at in cu_seqlens.tolist()]
    if bounds[0] != 0 or bounds != sorted(bounds) or bounds[-1] > total:
        raise ArgumentError(
            f"{name}: cu_seqlens must rise from 0 to at most the length {total}, got {bounds}"
        )
    return bounds


def pullback(
    run: Callable[[Sequence[Tensor | None]], Tensor | tuple[Tensor, ...]],
    tensors: Sequence[Tensor | None],
    grads: Sequence[Tensor],
) -> list[Tensor | None]:
    """Runs a function again and returns the gradients of its arguments, for extensions' ``bwd``.

    Args:
        run: from leaves like the tensors to outputs.
        tensors: the arguments, None for absent ones.
        grads: of the outputs.

    Returns:
        A gradient for each argument; None for absent ones.
    """
    with torch.enable_grad():
        leaves = [None if t is None else t.detach().requires_grad_() for t in tensors]
        outputs = run(leaves)
        outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
        grads = [g.to(y.dtype) for g, y in zip(grads, outputs)]
        found = iter(torch.autograd.grad(outputs, [t for t in leaves if t is not None], grads))
    return [None if t is None else next(found) for t in leaves]
