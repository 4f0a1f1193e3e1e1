r"""One position of a diagonal state-space layer, for decoding: ``selective_scan`` and ``ssd`` at L
= 1.

    Δ = softplus(dt + dt_bias);   h' = exp(Δ A) h + Δ B u;   y = (C h' + D u) · silu(z)

On a CPU the kernel is called without the dispatch of a custom operator, which would cost more than
the arithmetic, wherever no autograd, compiler, transform or autocast has to see the call.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from longseq.core.errors import ArgumentError
from longseq.core.ops.arguments import check_kind, present
from longseq.core.ops.backends import Backend, Dispatch
from longseq.core.ops.state_update import composed, cpu
from longseq.core.ops.state_update.arguments import Arguments

__all__ = ["state_update"]


def _example(new: Callable[..., Tensor]) -> Arguments:
    maps = new(1, 16)
    return Arguments(new(1, 32, 16), new(1, 32), new(1, 32), new(32, 16), maps, maps)


# The composed form is ``selective_scan`` or ``ssd``, which say by what they run.
_DISPATCH = Dispatch("state_update", {"cpu": cpu.reason}, _example, "composed", announced=False)


def state_update(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, math.inf),
    log_decay: bool = False,
    *,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """Takes one step.

    Args:
        state: h, (B, D, N) or (B, H, P, N), real, of the compute dtype.
        x: u, (B, D), with D = H P.
        dt: step sizes before bias and softplus: (B, D), or (B, H) one for each head.
        A: decays (D, N), or (H,) one number for each head.
        B: input map (B, N) or (B, G, N).
        C: output map, as B.
        D: skip (D,) or (H,).
        z: gate (B, D).
        dt_bias: (D,) or (H,), as dt.
        dt_softplus: whether the softplus is applied.
        dt_limit: bounds of the step size; (0, inf) is no bound, unlike in ``ssd``.
        log_decay: whether ``A`` is log(-A).
        backend: see ``longseq.core.ops.backends``; of ``selective_scan`` or ``ssd`` where the
            kernel may not be called directly.

    Returns:
        y (B, D) in x's dtype and the new state, shaped as ``state``.

    Raises:
        ArgumentError: naming the argument that does not fit.
        BackendError: if the backend asked for cannot serve the call.
    """
    optional = present(D=D, z=z, dt_bias=dt_bias)
    check_kind("state_update", False, A=A, state=state)
    check_kind("state_update", True, x=x, dt=dt, **optional)
    check_kind("state_update", not A.is_complex(), B=B, C=C)
    if x.ndim != 2 or not (dt.ndim == 2 and x.shape[1] and dt.shape[1]):
        raise ArgumentError(
            "state_update: x and dt must be (batch, channels) and (batch, channels or heads), got "
            f"{tuple(x.shape)} and {tuple(dt.shape)}"
        )
    for name, vector in present(D=D, dt_bias=dt_bias).items():
        if vector.numel() < 1:
            raise ArgumentError(f"state_update: {name} must not be empty")
    call = Arguments(state, x, dt, A, B, C, D, z, dt_bias, dt_softplus, dt_limit, log_decay)
    if backend in ("auto", "cpu") and _DISPATCH.choose("auto", call) == "cpu":
        return cpu.run(call)
    return composed.run(call, backend)
