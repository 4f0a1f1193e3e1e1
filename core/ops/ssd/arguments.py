"""The arguments of SSD as a record, what they must be, and what surrounds its recurrence."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import silu, softplus

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

NAME = "ssd"


class Arguments(NamedTuple):
    """A call of ``longseq.core.ops.ssd``, which says what the arguments are."""

    x: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    chunk_size: int = 64
    D: Tensor | None = None
    z: Tensor | None = None
    dt_bias: Tensor | None = None
    initial_states: Tensor | None = None
    resets: Tensor | None = None
    dt_softplus: bool = False
    dt_limit: tuple[float, float] = (0.0, math.inf)

    def tensors(self) -> tuple[Tensor | None, ...]:
        """Returns what a backend computes with."""
        return self.x, self.dt, self.A, self.B, self.C, self.D, self.initial_states

    def dtype(self) -> torch.dtype:
        """Returns the dtype that is computed in."""
        return compute_dtype(self.x, self.dt, self.A, self.B, self.C, self.initial_states)

    def step_size(self) -> Tensor:
        """Returns the step size (B, L, H) after bias, softplus and limits."""
        dt = self.dt.to(self.dtype())
        if self.dt_bias is not None:
            dt = dt + self.dt_bias.to(dt.dtype)
        if self.dt_softplus:
            dt = softplus(dt)
            if tuple(self.dt_limit) == (0.0, math.inf):  # it is never below 0
                return dt
        return dt.clamp(*self.dt_limit)


def checked(call: Arguments) -> Arguments:
    """Checks shapes and devices; returns the arguments with resets as bool.

    Raises:
        ArgumentError: naming the argument that does not fit.
    """
    x, dt, A, B, C, chunk_size, D, z, dt_bias, initial_states, resets, *_ = call
    optional = present(D=D, z=z, dt_bias=dt_bias, initial_states=initial_states)
    check_kind(NAME, True, x=x, dt=dt, A=A, B=B, C=C, **optional)
    check_options(NAME, chunk_size)
    check_heads(NAME, x=x, B=B)
    batch, length, heads, width = x.shape
    groups, states = B.shape[2:]
    if heads % groups:
        raise ArgumentError(
            f"{NAME}: B must have groups that divide the {heads} heads of x, got {groups}"
        )
    check_shape(NAME, "dt", dt, (batch, length, heads), "(batch, length, heads)")
    check_shape(NAME, "A", A, (heads,), "(heads,)")
    for name, tensor in (("B", B), ("C", C)):
        check_shape(
            NAME, name, tensor, (batch, length, groups, states), "(batch, length, groups, states)"
        )
    if D is not None:
        per_channel = (heads, width), "(heads, width)"
        check_shape(NAME, "D", D, *(per_channel if D.ndim == 2 else ((heads,), "(heads,)")))
    if z is not None:
        check_shape(NAME, "z", z, x.shape, "(batch, length, heads, width)")
    if dt_bias is not None:
        check_shape(NAME, "dt_bias", dt_bias, (heads,), "(heads,)")
    if initial_states is not None:
        shape = (batch, heads, width, states)
        check_shape(NAME, "initial_states", initial_states, shape, "(batch, heads, width, states)")
    resets = check_resets(NAME, resets, batch, length)
    named = {"dt": dt, "A": A, "B": B, "C": C, "D": D, "z": z, "dt_bias": dt_bias}
    check_device(NAME, x, named | {"initial_states": initial_states, "resets": resets})
    return call if resets is None else call._replace(resets=resets)


def skip_and_gate(y: Tensor, x: Tensor, D: Tensor | None, z: Tensor | None) -> Tensor:
    """Returns (y + D x) · silu(z) in x's dtype."""
    if D is not None:
        y = y + x.to(y.dtype) * (D.to(y.dtype) if D.ndim == 2 else D.to(y.dtype).unsqueeze(-1))
    if z is not None:
        y = y * silu(z.to(y.dtype))
    return y.to(x.dtype)
