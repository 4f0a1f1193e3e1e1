"""The selective scan of mamba-ssm, channels first."""

from __future__ import annotations

import torch
from torch import Tensor

from longseq.core.compat._operators import selective_scan
from longseq.core.compat._tensors import like
from longseq.core.compat.mamba_ssm.ops._constant_maps import scan_with_constant_maps
from longseq.core.errors import ArgumentError
from longseq.core.ops.arguments import check_kind, check_shape, present
from longseq.core.ops.precision import compute_dtype


def selective_scan_fn(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Runs the selective scan of Mamba, channels first.

    Args:
        u: input (B, D, L).
        delta: step sizes (B, D, L).
        A: decays (D, N), real or complex.
        B: input map, constant (D, N), or (B, N, L), or (B, G, N, L). With a complex A, a map that
            depends on time is complex, or real with 2L values along its last dimension, real and
            imaginary in turn.
        C: output map, as B.
        D: skip (D,).
        z: gate (B, D, L).
        delta_bias: added to delta (D,).
        delta_softplus: whether the softplus is applied.
        return_last_state: whether the last state is returned too.

    Returns:
        The output (B, D, L) in u's dtype; and, if asked for, the last state (B, D, N),
        differentiable.

    Raises:
        ArgumentError: naming the argument that does not fit.
    """
    name = "selective_scan_fn"
    check_kind(name, True, u=u, delta=delta, **present(z=z))
    check_kind(name, False, A=A, B=B, C=C)
    if u.dim() != 3:
        raise ArgumentError(f"{name}: u must be (batch, channels, length), got {tuple(u.shape)}")
    check_shape(name, "delta", delta, u.shape, "(batch, channels, length)")
    if z is not None:
        check_shape(name, "z", z, u.shape, "(batch, channels, length)")
    maps = [time_first(name, key, m, u, A) for key, m in (("B", B), ("C", C))]
    varying = [m for m in maps if m.dim() == 4]
    groups = max((m.shape[2] for m in varying), default=1)
    maps = [m.expand(-1, -1, groups, -1) if m.dim() == 4 and m.shape[2] == 1 else m for m in maps]
    x, dt = u.transpose(1, 2), delta.transpose(1, 2)
    gate = None if z is None else z.transpose(1, 2)
    if len(varying) == 2:
        y, last = selective_scan(
            x, dt, A, maps[0], maps[1], D, gate, delta_bias, delta_softplus=delta_softplus
        )
    else:
        y, last = scan_with_constant_maps(x, dt, A, maps, D, gate, delta_bias, delta_softplus)
    out = like(y.transpose(1, 2), u)
    return (out, last) if return_last_state else out


def time_first(name: str, key: str, m: Tensor, u: Tensor, A: Tensor) -> Tensor:
    """Returns a map (B, L, G, N), complex if A is; or (D, N) as it is."""
    if m.dim() == 2:
        check_shape(name, key, m, A.shape, "(channels, states)")
        return m
    if m.dim() not in (3, 4):
        raise ArgumentError(
            f"{name}: {key} must be (channels, states), (batch, states, length) or "
            f"(batch, groups, states, length), got {tuple(m.shape)}"
        )
    if A.is_complex() and not m.is_complex():
        if m.shape[-1] != 2 * u.shape[2]:
            raise ArgumentError(
                f"{name}: A is complex, so {key} must be complex, or real with twice the length "
                f"in its last dimension ({2 * u.shape[2]}), got {tuple(m.shape)}"
            )
        pairs = m.to(compute_dtype(u, A)).unflatten(-1, (-1, 2))
        m = torch.view_as_complex(pairs.contiguous())
    return (m.unsqueeze(1) if m.dim() == 3 else m).permute(0, 3, 1, 2)
