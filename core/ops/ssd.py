"""State-space duality (Mamba-2): a scalar decay per head, computed as masked matrix products over chunks."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import silu, softplus

from longseq.core.errors import ArgumentError
from longseq.core.ops import _mamba_ssm, _native
from longseq.core.ops._chunking import check_resets, chunk_length
from longseq.core.ops._decay_attention import decay_attention
from longseq.core.ops._triton import by_triton, lowered
from longseq.core.ops.backends import Backend, by_cpu
from longseq.core.ops.linear_attention import linear_attention

_NAME = "ssd"


def ssd(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int = 64,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    initial_states: Tensor | None = None,
    resets: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, math.inf),
    *,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """Runs h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_tᵀ, y_t = h_t C_t + D x_t, in chunks.

    See arXiv 2405.21060, eq. 1-2 for the recurrence and section 6 for the chunks. B, C and x·dt are the keys,
    queries and values of a linear attention whose log-decay is dt·A; any length and any head or state size
    will do.

    Args:
        x: input (B, L, H, P).
        dt: step sizes (B, L, H), before ``dt_bias``, softplus and limits.
        A: negative decay rates (H,).
        B: input maps (B, L, G, N), H a multiple of G.
        C: output maps (B, L, G, N).
        chunk_size: positions a chunk, rounded up to a power of two; changes speed only.
        D: skip (H,) or (H, P).
        z: gate (B, L, H, P): the output is multiplied by silu(z).
        dt_bias: added to dt, (H,).
        initial_states: h before position 0, (B, H, P, N); zeros if None.
        resets: bool (B, L), true where the state is cleared before the position is read.
        dt_softplus: whether dt passes through softplus after the bias.
        dt_limit: lower and upper bound of the step size.
        backend: see ``longseq.core.ops._triton.by_triton``.

    Returns:
        The output (B, L, H, P) in x's dtype and the final state (B, H, P, N), float32 or float64.

    Raises:
        ArgumentError: naming the argument that does not fit.
        BackendError: if the backend asked for cannot serve the call.
    """
    _check(x, dt, A, B, C, D, z, dt_bias, initial_states, resets)
    if backend == "mamba_ssm":
        return _mamba_ssm.ssd(
            x, dt, A, B, C, chunk_size, D, z, dt_bias, initial_states, resets, dt_softplus, dt_limit
        )
    dtype = _native.compute_dtype(x, dt, A, B, C, initial_states)
    triton = by_triton(_NAME, backend, x, dt, A, B, C, D, initial_states)
    if triton:
        x, B, C = lowered(x, B, C)
    with torch.autocast(x.device.type, enabled=False):
        step = _step_size(dt.to(dtype), A, dt_bias, dt_softplus, dt_limit)
        if triton:
            from longseq.core.kernels.triton.ssd import scan

            chunk_length(chunk_size, x.shape[1])
            y, last = scan(x, step, A, B, C, D, initial_states, resets, chunk_size)
            return _skip_and_gate(y, x, None, z), last
        if x.shape[1] > 1 and by_cpu(_NAME, backend, x, dt, A, B, C, D, initial_states):
            y, last = _walk(x, step, A, B, C, D, initial_states, resets, chunk_size)
            return _skip_and_gate(y, x, None, z), last
        y, last = linear_attention(
            C.to(dtype),
            B.to(dtype),
            x.to(dtype) * step.unsqueeze(-1),
            step * A.to(dtype),
            scale=1.0,
            initial_state=None if initial_states is None else initial_states.transpose(-1, -2),
            resets=resets,
            chunk_size=chunk_size,
            backend="reference",
        )
        return _skip_and_gate(y, x, D, z), last.transpose(-1, -2)


def _walk(
    x: Tensor,
    step: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    initial_states: Tensor | None,
    resets: Tensor | None,
    chunk_size: int,
) -> tuple[Tensor, Tensor]:
    """The operator on the CPU, with no tensor for x·dt or D·x; the output is in the compute dtype."""
    dtype = step.dtype
    g = step * A.to(dtype)
    if resets is not None:
        g = g.masked_fill(resets.unsqueeze(-1), -torch.inf)
    if initial_states is None:
        state = torch.zeros(x.shape[0], x.shape[2], B.shape[3], x.shape[3], dtype=dtype)
    else:
        state = initial_states.to(dtype).transpose(-1, -2)
    skip = D if D is None or D.ndim == 2 else D.unsqueeze(-1).expand(x.shape[2:])
    y, last = decay_attention(
        C.to(dtype), B.to(dtype), x.to(dtype), g, state, chunk_size, step,
        None if skip is None else skip.to(dtype),
    )  # fmt: skip
    return y, last.transpose(-1, -2)


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
        resets: bool (B, L).
        dt_softplus: whether dt passes through softplus after the bias.
        dt_limit: lower and upper bound of the step size.

    Returns:
        The output (B, L, H, P) and the final state (B, H, P, N).

    Raises:
        ArgumentError: naming the argument that does not fit.
    """
    _check(x, dt, A, B, C, D, z, dt_bias, initial_states, resets)
    dtype = _native.compute_dtype(x, dt, A, B, C, initial_states)
    with torch.autocast(x.device.type, enabled=False):
        step = _step_size(dt.to(dtype), A, dt_bias, dt_softplus, dt_limit)
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
        return _skip_and_gate(torch.stack(outputs, 1), x, D, z), state


def _check(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    initial_states: Tensor | None,
    resets: Tensor | None,
) -> None:
    """Checks shapes and devices."""
    for name, tensor in (("x", x), ("B", B)):
        if tensor.ndim != 4 or tensor.shape[1] < 1:
            raise ArgumentError(
                f"{_NAME}: {name} must be (batch, length ≥ 1, heads, width), got {tuple(tensor.shape)}"
            )
    batch, length, heads, width = x.shape
    groups, states = B.shape[2:]
    if heads % groups:
        raise ArgumentError(f"{_NAME}: B must have groups that divide the {heads} heads of x, got {groups}")
    _native.check(_NAME, "dt", dt, (batch, length, heads), "(batch, length, heads)")
    _native.check(_NAME, "A", A, (heads,), "(heads,)")
    for name, tensor in (("B", B), ("C", C)):
        _native.check(_NAME, name, tensor, (batch, length, groups, states), "(batch, length, groups, states)")
    if D is not None:
        per_channel = (heads, width), "(heads, width)"
        _native.check(_NAME, "D", D, *(per_channel if D.ndim == 2 else ((heads,), "(heads,)")))
    if z is not None:
        _native.check(_NAME, "z", z, x.shape, "(batch, length, heads, width)")
    if dt_bias is not None:
        _native.check(_NAME, "dt_bias", dt_bias, (heads,), "(heads,)")
    if initial_states is not None:
        shape = (batch, heads, width, states)
        _native.check(_NAME, "initial_states", initial_states, shape, "(batch, heads, width, states)")
    if resets is not None:
        check_resets(_NAME, resets, x)
    named = {"dt": dt, "A": A, "B": B, "C": C, "D": D, "z": z, "dt_bias": dt_bias}
    _native.check_device(_NAME, x, named | {"initial_states": initial_states, "resets": resets})


def _step_size(
    dt: Tensor, A: Tensor, dt_bias: Tensor | None, dt_softplus: bool, dt_limit: tuple[float, float]
) -> Tensor:
    """Returns the step size (B, L, H) after bias, softplus and limits."""
    if dt_bias is not None:
        dt = dt + dt_bias.to(dt.dtype)
    if dt_softplus:
        dt = softplus(dt)
    return dt if tuple(dt_limit) == (0.0, math.inf) else dt.clamp(*dt_limit)


def _skip_and_gate(y: Tensor, x: Tensor, D: Tensor | None, z: Tensor | None) -> Tensor:
    """Returns (y + D x) · silu(z) in x's dtype."""
    if D is not None:
        y = y + x.to(y.dtype) * (D.to(y.dtype) if D.ndim == 2 else D.to(y.dtype).unsqueeze(-1))
    if z is not None:
        y = y * silu(z.to(y.dtype))
    return y.to(x.dtype)
