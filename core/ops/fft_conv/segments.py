"""Packed segments of a long convolution, and the history that it carries."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from longseq.core.ops.exported import is_open

_SMALLEST_BUCKET = 16  # packed segments shorter than this are padded to it
Convolve = Callable[[Tensor, Tensor, Tensor | None, int], Tensor]


def by_segments(x: Tensor, k: Tensor, segment_ids: Tensor, convolve: Convolve) -> Tensor:
    """Convolves each packed segment of x (B, H + L, D) alone; the first of a row owns the H before
    it."""
    batch, new = segment_ids.shape
    before = x.shape[1] - new
    rows, starts, lengths = segment_table(segment_ids)
    first = starts == 0
    lengths = torch.where(first, lengths + before, lengths)
    starts = torch.where(first, starts, starts + before)
    exponent = torch.log2(lengths.clamp(min=_SMALLEST_BUCKET).double()).ceil().long()
    flat = x.reshape(-1, x.shape[2])
    outputs: list[Tensor] = []
    places: list[Tensor] = []
    for e in exponent.unique().tolist():
        chosen = exponent == e
        longest = int(lengths[chosen].max())
        offset = torch.arange(longest, device=x.device)
        valid = offset < lengths[chosen].unsqueeze(1)
        place = (rows[chosen] * x.shape[1] + starts[chosen]).unsqueeze(1) + offset
        piece = flat[place.clamp(max=flat.shape[0] - 1)]
        piece = torch.where(valid.unsqueeze(-1), piece, 0.0)
        outputs.append(convolve(piece, k, None, longest)[valid])
        places.append(place[valid])
    # The segments tile the pack: back to where they lay.
    y = torch.cat(outputs)[torch.cat(places).argsort()]
    return y.reshape(batch, before + new, -1)[:, before:]


def segment_table(segment_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the row, start and length of every packed segment, in order: three integer tensors
    (S,).

    Args:
        segment_ids: integers (B, L); a segment ends where the id changes.
    """
    batch, length = segment_ids.shape
    begins = torch.ones(batch, length, dtype=torch.bool, device=segment_ids.device)
    begins[:, 1:] = segment_ids[:, 1:] != segment_ids[:, :-1]
    flat = begins.flatten().nonzero().squeeze(1)
    ends = torch.cat([flat[1:], flat.new_tensor([batch * length])])
    return flat // length, flat % length, ends - flat


def carry_history(
    u: Tensor,
    history: Tensor | None,
    limit: int,
    segment_ids: Tensor | None = None,
    fixed: bool = False,
    own: bool = False,
) -> Tensor:
    """Returns the inputs that later positions of the same sequence still need.

    Args:
        u: input (B, L, D).
        history: inputs (B, H, D) before it, or None.
        limit: how many to keep at most.
        segment_ids: integers (B, L); what lies before a row's last segment becomes zero, and is
            dropped where it is so in every row.
        fixed: pad with zeros on the left to exactly ``limit``.
        own: whether u is nobody else's, so that a part of it may be kept; else it is copied: a
            caller may write the next chunk to the same memory.

    Returns:
        (B, H', D), H' ≤ limit, oldest first.
    """
    if history is not None and history.shape[1]:
        x, own = torch.cat([history.to(u.dtype), u], 1), True
    else:
        x = u
    total = x.shape[1]
    if is_open(total) and segment_ids is None:  # not every torch takes the minimum of an open size
        if fixed:
            return torch.nn.functional.pad(x, (0, 0, limit, 0))[:, total:]
        x = x[:, -limit:] if limit else x[:, :0]
        return x if own else x.clone()
    keep = min(total, limit)
    if segment_ids is not None:
        changed = segment_ids[:, 1:] != segment_ids[:, :-1]
        position = torch.arange(1, u.shape[1], device=u.device) + (total - u.shape[1])
        begin = torch.nn.functional.pad(changed * position, (1, 0)).amax(1)
        x = torch.where(
            (torch.arange(total, device=u.device) >= begin.unsqueeze(1)).unsqueeze(-1), x, 0.0
        )
        keep, own = min(keep, total - int(begin.min())), True
    x = x[:, total - keep :]
    if fixed:  # always a copy
        return torch.nn.functional.pad(x, (0, 0, limit - keep, 0))
    return x if own else x.clone()
