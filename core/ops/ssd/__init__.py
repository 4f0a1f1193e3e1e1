"""State-space duality (Mamba-2): a scalar decay per head, computed as masked matrix products over
chunks."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from longseq.core.ops.backends import Backend, Dispatch
from longseq.core.ops.ssd import chunked, cpu, mamba_ssm, reference, triton
from longseq.core.ops.ssd.arguments import NAME, Arguments, checked
from longseq.core.ops.ssd.reference import ssd_reference

__all__ = ["ssd", "ssd_reference"]


def _example(new: Callable[..., Tensor]) -> Arguments:
    maps = new(1, 64, 1, 16)
    return Arguments(new(1, 64, 2, 16), new(1, 64, 2), new(2), maps, maps)


_DISPATCH = Dispatch(
    NAME,
    {"cpu": cpu.reason, "triton": triton.reason, "mamba_ssm": mamba_ssm.reason},
    _example,
    "chunked",
    by_name=("mamba_ssm",),
)
_RUN = {
    "triton": triton.run,
    "cpu": cpu.run,
    "mamba_ssm": mamba_ssm.run,
    "chunked": chunked.run,
    "reference": reference.run,
}


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

    See arXiv 2405.21060, eq. 1-2 for the recurrence and section 6 for the chunks. B, C and x·dt are
    the keys, queries and values of a linear attention whose log-decay is dt·A; any length and any
    head or state size will do.

    Args:
        x: input (B, L, H, P).
        dt: step sizes (B, L, H), before ``dt_bias``, softplus and limits.
        A: negative decay rates (H,).
        B: input maps (B, L, G, N), H a multiple of G.
        C: output maps (B, L, G, N).
        chunk_size: positions per chunk, rounded up to a power of two; changes speed only.
        D: skip (H,) or (H, P).
        z: gate (B, L, H, P): the output is multiplied by silu(z).
        dt_bias: added to dt, (H,).
        initial_states: h before position 0, (B, H, P, N); zeros if None.
        resets: bool or integer (B, L), true where the state is cleared before the position is read.
        dt_softplus: whether dt passes through softplus after the bias.
        dt_limit: lower and upper bound of the step size.
        backend: see ``longseq.core.ops.backends``.

    Returns:
        The output (B, L, H, P) in x's dtype and the final state (B, H, P, N), float32 or float64.

    Raises:
        ArgumentError: naming the argument that does not fit.
        BackendError: if the backend asked for cannot serve the call.
    """
    call = checked(
        Arguments(
            x, dt, A, B, C, chunk_size, D, z, dt_bias, initial_states, resets, dt_softplus, dt_limit
        )
    )
    return _RUN[_DISPATCH.choose(backend, call)](call)
