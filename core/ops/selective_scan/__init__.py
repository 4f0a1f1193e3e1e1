r"""Selective scan (Mamba, arXiv 2312.00752): a linear recurrence whose coefficients depend on the
input.

    Δ_t = softplus(delta_t + delta_bias)                      per channel d
    h_t = exp(Δ_t A) h_{t-1} + Δ_t B_t u_t                    per channel d and state n
    y_t = Σ_n C_t h_t + D u_t,   then   y_t · silu(z_t)

Steps go from the first position to the last, or along another path: from the last one, or down the
columns of a grid. With a complex A the state is complex and y_t = 2 Re(Σ_n C_t h_t) + D u_t, as for
conjugate pairs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from longseq.core.ops.backends import Backend, Dispatch
from longseq.core.ops.selective_scan import cpu, cuda, mamba_ssm, reference, torch_op
from longseq.core.ops.selective_scan.arguments import (
    NAME,
    Arguments,
    Path,
    check_low_rank,
    checked,
    checked_path,
)
from longseq.core.ops.selective_scan.reference import selective_scan_reference

__all__ = ["selective_scan", "selective_scan_reference"]


def _example(new: Callable[..., Tensor]) -> Arguments:
    rows, maps = new(1, 64, 32), new(1, 64, 1, 16)
    return Arguments(rows, rows, new(32, 16), maps, maps)


_DISPATCH = Dispatch(
    NAME,
    {"cpu": cpu.reason, "cuda": cuda.reason, "mamba_ssm": mamba_ssm.reason},
    _example,
    by_name=("mamba_ssm",),
)
_RUN = {
    "cpu": torch_op.run,
    "cuda": torch_op.run,
    "mamba_ssm": mamba_ssm.run,
    "reference": reference.run,
}


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    *,
    delta_softplus: bool = False,
    initial_state: Tensor | None = None,
    resets: Tensor | None = None,
    reverse: bool = False,
    height: int = 0,
    add: Tensor | None = None,
    delta_weight: Tensor | None = None,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """Runs the selective scan over a sequence.

    Args:
        u: input (B, L, D); float32, bfloat16, float16 or float64.
        delta: step sizes before bias and softplus (B, L, D), or (B, L, R) with ``delta_weight``.
        A: decays (D, N), real and usually negative, or complex.
        B: input map (B, L, N), or (B, L, G, N) shared by D/G channels each; complex if A is.
        C: output map, shaped as B.
        D: skip (D,).
        z: gate (B, L, D).
        delta_bias: added to delta (D,).
        delta_softplus: whether the softplus is applied.
        initial_state: (B, D, N); zero if None.
        resets: bool or integer (B, L); where true the state is zeroed before the step.
        reverse: whether the steps go through the positions backwards; nothing is moved for it, and
            outputs lie where their inputs do.
        height: where not 0, the positions are a grid of so many rows, one after the other, and the
            steps go down its columns.
        add: joins the output before the gate (B, L, D): y_t becomes (y_t + add_t) silu(z_t).
        delta_weight: (D, R); the step sizes before bias and softplus are delta times its rows. On a
            CPU without gradients they are never in memory.
        backend: see ``longseq.core.ops.backends``.

    Returns:
        The output (B, L, D) in u's dtype, and the state after the last step (B, D, N), float32 or
        float64 (or their complex counterparts). Both are differentiable.

    Raises:
        ArgumentError: naming the argument that does not fit.
        BackendError: if the backend asked for cannot serve the call.
    """
    rest = (A, B, C, D, z, delta_bias, initial_state, resets, delta_softplus)
    path = Path(reverse, height, add)
    if delta_weight is not None:
        check_low_rank(u, delta, delta_weight)
        call = checked(Arguments(u, u, *rest))  # with step sizes of their later shape
        if _DISPATCH.choose(backend, call) == "cpu":
            narrow = call._replace(delta=delta)
            found = torch_op.run_widening(narrow, checked_path(call, path), delta_weight)
            if found is not None:
                return found
        delta = reference.widened(delta, delta_weight)
    call = checked(Arguments(u, delta, *rest))
    chosen = _DISPATCH.choose(backend, call)
    if not (reverse or height) and add is None:
        return _RUN[chosen](call)
    path = checked_path(call, path)
    # Traced programs know the plain scan alone, which runs wherever they do.
    if chosen == "cpu" and not torch.compiler.is_compiling():
        return torch_op.run_along(call, path)
    return reference.along(call, path, _RUN[chosen])
