"""The arguments of the mLSTM as a record, and what they must be."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from longseq.core.ops.arguments import (
    check_device,
    check_heads,
    check_kind,
    check_options,
    check_real,
    check_resets,
    check_shape,
)
from longseq.core.ops.precision import compute_dtype

NAME = "mlstm"
EPS = 1e-6
"""Added to the denominator unless said otherwise."""
MLSTMState = tuple[Tensor, Tensor, Tensor]
"""C (B, H, K, V), n (B, H, K), m (B, H)."""


class Arguments(NamedTuple):
    """A call of ``longseq.core.ops.mlstm``, which says what the arguments are."""

    q: Tensor
    k: Tensor
    v: Tensor
    i: Tensor
    f: Tensor
    initial_state: MLSTMState | None = None
    resets: Tensor | None = None
    chunk_size: int = 128
    eps: float = EPS

    def tensors(self) -> tuple[Tensor, ...]:
        """Returns what a backend computes with."""
        return self.v, self.q, self.k, self.i, self.f, *(self.initial_state or ())


def checked(call: Arguments) -> Arguments:
    """Checks shapes and devices; returns the arguments with resets as bool.

    Raises:
        ArgumentError: naming the argument that does not fit.
    """
    q, k, v, i, f, initial_state, resets, chunk_size, eps = call
    named = dict(zip(("C", "n", "m"), initial_state or ()))
    check_kind(NAME, True, q=q, k=k, v=v, i=i, f=f)
    check_kind(NAME, True, **{f"{name} of initial_state": part for name, part in named.items()})
    check_options(NAME, chunk_size)
    check_real(NAME, "eps", eps)
    check_heads(NAME, q=q, v=v)
    batch, length, heads, d_value = v.shape
    d_key = q.shape[-1]
    for name, tensor in (("q", q), ("k", k)):
        check_shape(
            NAME, name, tensor, (batch, length, heads, d_key), "(batch, length, heads, key width)"
        )
    for name, tensor in (("i", i), ("f", f)):
        check_shape(NAME, name, tensor, (batch, length, heads), "(batch, length, heads)")
    resets = check_resets(NAME, resets, batch, length)
    check_device(NAME, v, {"q": q, "k": k, "i": i, "f": f, "resets": resets})
    if initial_state is not None:
        c, n, m = initial_state
        shape = (batch, heads, d_key, d_value)
        check_shape(NAME, "C of initial_state", c, shape, "(batch, heads, key width, value width)")
        check_shape(NAME, "n of initial_state", n, shape[:3], "(batch, heads, key width)")
        check_shape(NAME, "m of initial_state", m, shape[:2], "(batch, heads)")
    return call if resets is None else call._replace(resets=resets)


def prepared(call: Arguments) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, MLSTMState]:
    """Returns q, k, v, i, log forget gates (-inf at resets) and the state of a checked call."""
    q, k, v, i, f, initial_state, resets, *_ = call
    batch, _, heads, d_value = v.shape
    d_key = q.shape[-1]
    dtype = compute_dtype(q, k, v, i, f)
    if initial_state is None:
        shape = (batch, heads, d_key, d_value)
        state = (
            torch.zeros(shape, dtype=dtype, device=v.device),
            torch.zeros(shape[:3], dtype=dtype, device=v.device),
            torch.full(shape[:2], -torch.inf, dtype=dtype, device=v.device),
        )
    else:
        c, n, m = initial_state
        state = (c.to(dtype), n.to(dtype), m.to(dtype))
    log_f = logsigmoid(f.to(dtype))
    if resets is not None:
        log_f = log_f.masked_fill(resets.unsqueeze(-1), -torch.inf)
    return q.to(dtype), k.to(dtype), v.to(dtype), i.to(dtype), log_f, state
