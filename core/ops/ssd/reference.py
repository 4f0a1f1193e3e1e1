"""SSD's recurrence, one position after the other."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from longseq.core.ops.precision import autocast_off
from longseq.core.ops.ssd.arguments import Arguments, checked, skip_and_gate


def ssd_reference(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    initial_states: Tensor | None = None,
    resets: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, math.inf),
) -> tuple[Tensor, Tensor]:
    """The same as ``ssd``, one position after the other.

    Args:
        x: (B, L, H, P).
        dt: (B, L, H).
        A: (H,).
        B: (B, L, G, N).
        C: (B, L, G, N).
        D: (H,) or (H, P).
        z: (B, L, H, P).
        dt_bias: (H,).
        initial_states: (B, H, P, N).
        resets: bool or integer (B, L).
        dt_softplus: whether dt passes through softplus after the bias.
        dt_limit: lower and upper bound of the step size.

    Returns:
        The output (B, L, H, P) and the final state (B, H, P, N).

    Raises:
        ArgumentError: naming the argument that does not fit.
    """
    return run(
        checked(
            Arguments(
                x, dt, A, B, C, 64, D, z, dt_bias, initial_states, resets, dt_softplus, dt_limit
            )
        )
    )


def run(call: Arguments) -> tuple[Tensor, Tensor]:
    """Runs a checked call."""
    x, _, A, B, C, _, D, z, _, initial_states, resets, *_ = call
    dtype = call.dtype()
    with autocast_off(x):
        step = call.step_size()
        shared = x.shape[2] // B.shape[2]
        maps_in, maps_out = (m.to(dtype).repeat_interleave(shared, 2) for m in (B, C))
        if initial_states is None:
            state = torch.zeros(x.shape[0], *x.shape[2:], B.shape[3], dtype=dtype, device=x.device)
        else:
            state = initial_states.to(dtype)
        outputs = []
        for t in range(x.shape[1]):
            if resets is not None:
                state = torch.where(resets[:, t, None, None, None], 0.0, state)
            decay = torch.exp(step[:, t] * A.to(dtype))[..., None, None]
            state = decay * state + torch.einsum(
                "bh,bhp,bhn->bhpn", step[:, t], x[:, t].to(dtype), maps_in[:, t]
            )
            outputs.append(torch.einsum("bhpn,bhn->bhp", state, maps_out[:, t]))
        return skip_and_gate(torch.stack(outputs, 1), x, D, z), state
