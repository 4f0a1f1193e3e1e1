"""The stand-in for mamba-ssm's compiled extension, which forks of its interface call."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from longseq.core.compat._names import module_getattr
from longseq.core.compat._tensors import pullback
from longseq.core.compat.mamba_ssm.ops.selective_scan_interface import selective_scan_fn

__all__ = ["bwd", "fwd"]
__getattr__ = module_getattr(__name__)


def fwd(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
) -> list[Tensor]:
    """Runs the scan without autograd.

    Args:
        u: see ``selective_scan_fn`` for this and what is not named here.
        delta: step sizes.
        A: decays.
        B: input map, (D, N) or (B, G, N, L).
        C: output map, as B.
        D: skip.
        z: gate.
        delta_bias: added to delta.
        delta_softplus: whether the softplus is applied.

    Returns:
        The output (B, D, L) before the gate; the states as the extension keeps them
        (B, D, 1, 2N), of which only the last state, ``[:, :, -1, 1::2]``, says anything: the other
        half is NaN; and the gated output, if there is a gate.
    """
    with torch.no_grad():
        out, last = selective_scan_fn(
            u, delta, A, B, C, D, None, delta_bias, delta_softplus, return_last_state=True
        )
        states = torch.stack([torch.full_like(last, torch.nan), last], -1).flatten(2).unsqueeze(2)
        if z is None:
            return [out, states]
        gated = selective_scan_fn(u, delta, A, B, C, D, z, delta_bias, delta_softplus)
        assert isinstance(gated, Tensor)
        return [out, states, gated]


def bwd(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    dout: Tensor,
    x: Tensor | None = None,
    out: Tensor | None = None,
    dz: Tensor | None = None,
    delta_softplus: bool = False,
    recompute_out_z: bool = False,
) -> list[Tensor | None]:
    """Runs the scan again and returns its gradients.

    Args:
        u: see ``selective_scan_fn`` for this and the next seven.
        delta: step sizes.
        A: decays.
        B: input map.
        C: output map.
        D: skip.
        z: gate.
        delta_bias: added to delta.
        dout: gradient of the output, of the gated one if there is a gate (B, D, L).
        x: states of ``fwd``; not needed.
        out: the output before the gate; not needed.
        dz: where the gradient of z is written, if given.
        delta_softplus: whether the softplus is applied.
        recompute_out_z: whether the gated output is returned too.

    Returns:
        The gradients of u, delta, A, B, C, D and delta_bias, None for absent ones; then that of z,
        if there is one, and the gated output, if asked for.
    """
    kept: list[Tensor] = []

    def run(leaves: Sequence[Tensor | None]) -> Tensor:
        u, delta, A, B, C, D, z, bias = leaves
        assert u is not None and delta is not None and A is not None
        assert B is not None and C is not None
        y = selective_scan_fn(u, delta, A, B, C, D, z, bias, delta_softplus)
        assert isinstance(y, Tensor)
        kept.append(y.detach())
        return y

    *found, d_z, d_bias = pullback(run, [u, delta, A, B, C, D, z, delta_bias], [dout])
    results = [*found, d_bias]
    if z is not None and d_z is not None:
        results.append(d_z if dz is None else dz.copy_(d_z))
    return [*results, *kept] if recompute_out_z else results
