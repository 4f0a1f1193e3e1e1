"""The arguments of the diagonal-plus-rank-one recurrence as a record, and what they must be."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from longseq.core.ops.arguments import (
    check_device,
    check_heads,
    check_kind,
    check_options,
    check_resets,
    check_shape,
    present,
)
from longseq.core.ops.precision import compute_dtype

NAME = "dplr"


class Arguments(NamedTuple):
    """A call of ``longseq.core.ops.dplr``, which says what the arguments are."""

    q: Tensor
    k: Tensor
    v: Tensor
    a: Tensor
    b: Tensor
    log_decay: Tensor
    scale: float | None = None
    initial_state: Tensor | None = None
    resets: Tensor | None = None
    chunk_size: int = 64


def checked(call: Arguments) -> Arguments:
    """Checks shapes and devices; returns the arguments with resets as bool.

    Raises:
        ArgumentError: naming the argument that does not fit.
    """
    q, k, v, a, b, log_decay, scale, initial_state, resets, chunk_size = call
    optional = present(initial_state=initial_state)
    check_kind(NAME, True, q=q, k=k, v=v, a=a, b=b, log_decay=log_decay, **optional)
    check_options(NAME, chunk_size, scale)
    check_heads(NAME, q=q, v=v)
    batch, length, heads, d_value = v.shape
    d_key = q.shape[3]
    for name, tensor in (("q", q), ("k", k), ("a", a), ("b", b), ("log_decay", log_decay)):
        shape = (batch, length, heads, d_key)
        check_shape(NAME, name, tensor, shape, "(batch, length, heads, key width)")
    resets = check_resets(NAME, resets, batch, length)
    if initial_state is not None:
        shape = (batch, heads, d_key, d_value)
        check_shape(
            NAME, "initial_state", initial_state, shape, "(batch, heads, key width, value width)"
        )
    optional = present(initial_state=initial_state, resets=resets)
    check_device(NAME, v, {"q": q, "k": k, "a": a, "b": b, "log_decay": log_decay, **optional})
    return call._replace(resets=resets)


def prepared(call: Arguments) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Returns scaled q, k, v, a, b (0 at resets), log-decays (-inf at resets) and the state."""
    q, k, v, a, b, g, scale, state, resets, _ = call
    dtype = compute_dtype(q, k, v, a, b, g, state)
    q, k, values, a, b, g = (x.to(dtype) for x in (q, k, v, a, b, g))
    if resets is not None:
        cleared = resets[..., None, None]
        b, g = b.masked_fill(cleared, 0.0), g.masked_fill(cleared, -torch.inf)
    scale = q.shape[3] ** -0.5 if scale is None else scale
    if state is None:
        state = torch.zeros((*v.shape[::2], q.shape[3], v.shape[3]), dtype=dtype, device=v.device)
    return (q if scale == 1 else q * scale), k, values, a, b, g, state.to(dtype)
