"""The long convolution as a direct sum, one tap at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from longseq.core.ops.fft_conv.arguments import Arguments, check, work_dtype


def fft_conv_reference(
    u: Tensor,
    k: Tensor,
    skip: Tensor | None = None,
    history: Tensor | None = None,
    segment_ids: Tensor | None = None,
) -> Tensor:
    """The direct sum that ``fft_conv`` equals, one tap at a time, O((H + L)·L); same arguments and
    result."""
    check(Arguments(u, k, skip, history, segment_ids))
    dtype = work_dtype(u, k)
    batch, length, _ = u.shape
    before = 0 if history is None else history.shape[1]
    x = u if history is None else torch.cat([history.to(u.dtype), u], 1)
    x = x.to(dtype)
    ids = u.new_zeros(batch, length, dtype=torch.long) if segment_ids is None else segment_ids
    rank = torch.zeros(batch, before + length, dtype=torch.long, device=u.device)
    rank[:, before + 1 :] = (ids[:, 1:] != ids[:, :-1]).cumsum(1)
    y = torch.zeros(u.shape, dtype=dtype, device=u.device)
    for j in range(min(k.shape[1], before + length)):
        shifted = torch.nn.functional.pad(x, (0, 0, j, 0))[:, before : before + length]
        theirs = torch.nn.functional.pad(rank, (j, 0), value=-1)[:, before : before + length]
        seen = (theirs == rank[:, before:]).unsqueeze(-1)
        y = y + torch.where(seen, shifted, 0.0) * k[:, j].to(dtype)
    if skip is not None:
        y = y + skip.to(dtype) * u.to(dtype)
    return y.to(u.dtype)
