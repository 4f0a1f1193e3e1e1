"""The arguments of the delta rule as a record, and what they must be."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from longseq.core.errors import ArgumentError
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

NAME = "delta_rule"


class Arguments(NamedTuple):
    """A call of ``longseq.core.ops.delta_rule``, which says what the arguments are."""

    q: Tensor
    k: Tensor
    v: Tensor
    beta: Tensor
    log_decay: Tensor | None = None
    scale: float | None = None
    initial_state: Tensor | None = None
    resets: Tensor | None = None
    chunk_size: int = 64

    def tensors(self) -> tuple[Tensor | None, ...]:
        """Returns what a backend computes with."""
        return self.v, self.q, self.k, self.beta, self.log_decay, self.initial_state


def checked(call: Arguments) -> Arguments:
    """Checks shapes and devices; returns the arguments with resets as bool.

    Raises:
        ArgumentError: naming the argument that does not fit.
    """
    q, k, v, beta, log_decay, scale, initial_state, resets, chunk_size = call
    optional = present(log_decay=log_decay, initial_state=initial_state)
    check_kind(NAME, True, q=q, k=k, v=v, beta=beta, **optional)
    check_options(NAME, chunk_size, scale)
    check_heads(NAME, q=q, v=v)
    batch, length, heads, d_value = v.shape
    groups, d_key = q.shape[2:]
    check_shape(NAME, "q", q, (batch, length, groups, d_key), "(batch, length, groups, key width)")
    check_shape(NAME, "k", k, q.shape, "(batch, length, groups, key width)")
    if heads % groups:
        raise ArgumentError(
            f"{NAME}: v must have a multiple of the {groups} heads of q, got {heads}"
        )
    check_shape(NAME, "beta", beta, (batch, length, heads), "(batch, length, heads)")
    resets = check_resets(NAME, resets, batch, length)
    named = {"q": q, "k": k, "beta": beta, "log_decay": log_decay}
    named |= {"initial_state": initial_state, "resets": resets}
    check_device(NAME, v, named)
    if log_decay is not None and log_decay.shape not in ((batch, length, heads), q.shape):
        raise ArgumentError(
            f"{NAME}: log_decay must have shape {(batch, length, heads)} = (batch, length, heads) "
            f"or {tuple(q.shape)} = (batch, length, groups, key width), got "
            f"{tuple(log_decay.shape)}"
        )
    if initial_state is not None:
        shape = (batch, heads, d_key, d_value)
        check_shape(
            NAME, "initial_state", initial_state, shape, "(batch, heads, key width, value width)"
        )
    return call if resets is None else call._replace(resets=resets)


def prepared(call: Arguments) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Returns scaled q, k, v, beta, log-decays (-inf at resets) and the state of a checked call."""
    q, k, v, beta, log_decay, scale, initial_state, resets, _ = call
    batch, length, heads, d_value = v.shape
    d_key = q.shape[3]
    dtype = compute_dtype(q, k, v, beta, log_decay, initial_state)
    if log_decay is None:
        g = torch.zeros(batch, length, heads, dtype=dtype, device=v.device)
    else:
        g = log_decay.to(dtype)
    if resets is not None:
        g = g.masked_fill(resets.reshape(batch, length, *[1] * (g.ndim - 2)), -torch.inf)
    if initial_state is None:
        state = torch.zeros((batch, heads, d_key, d_value), dtype=dtype, device=v.device)
    else:
        state = initial_state.to(dtype)
    scale = d_key**-0.5 if scale is None else scale
    q = q.to(dtype) if scale == 1 else q.to(dtype) * scale
    return q, k.to(dtype), v.to(dtype), beta.to(dtype), g, state
