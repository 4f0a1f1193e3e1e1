"""The scan of Mamba-2 and what mamba-ssm fuses around it."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from longseq.core.compat._names import module_getattr
from longseq.core.compat._operators import ssd
from longseq.core.compat._tensors import bounds_of, changes
from longseq.core.compat.causal_conv1d.causal_conv1d_interface import causal_conv1d_fn
from longseq.core.compat.mamba_ssm.ops.triton._ssd_reference import (
    mamba_conv1d_scan_ref,
    mamba_split_conv1d_scan_ref,
    ssd_chunk_scan_combined_ref,
    ssd_selective_scan,
)
from longseq.core.compat.mamba_ssm.ops.triton.layernorm_gated import rmsnorm_fn
from longseq.core.errors import ArgumentError
from longseq.core.ops.ssd.arguments import Arguments

__all__ = [
    "mamba_chunk_scan",
    "mamba_chunk_scan_combined",
    "mamba_conv1d_scan_ref",
    "mamba_split_conv1d_scan_combined",
    "mamba_split_conv1d_scan_ref",
    "ssd_chunk_scan_combined_ref",
    "ssd_selective_scan",
]
__getattr__ = module_getattr(__name__)


def mamba_chunk_scan_combined(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    initial_states: Tensor | None = None,
    seq_idx: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, math.inf),
    return_final_states: bool = False,
    return_varlen_states: bool = False,
    state_dtype: torch.dtype | None = None,
) -> Tensor | tuple[Tensor, ...]:
    """Runs the scan of Mamba-2 in chunks.

    Args:
        x: input (B, L, H, P).
        dt: step sizes (B, L, H).
        A: decay rates (H,).
        B: input maps (B, L, G, N).
        C: output maps (B, L, G, N).
        chunk_size: positions per chunk; changes speed only.
        D: skip (H,) or (H, P).
        z: gate (B, L, H, P).
        dt_bias: added to dt (H,).
        initial_states: (B, H, P, N); with ``seq_idx`` it belongs to the sequence of index 0.
        seq_idx: integers (B, L): the state is zeroed wherever they change.
        cu_seqlens: where the packed sequences begin, and the end of the last (S + 1,), a repeated
            entry being an empty sequence; for varlen states only.
        dt_softplus: whether the softplus is applied to dt.
        dt_limit: bounds of the step size.
        return_final_states: whether the final states (B, H, P, N) are returned too.
        return_varlen_states: whether each packed sequence's final state (S, H, P, N) is returned
            too; B is 1.
        state_dtype: accepted and not needed: states are float32, or float64 for float64 inputs.

    Returns:
        The output (B, L, H, P); then, as asked for, the final states and the varlen states.

    Raises:
        ArgumentError: naming the argument that does not fit.
    """
    del state_dtype
    name = "mamba_chunk_scan_combined"
    resets = None
    if seq_idx is not None:
        if seq_idx.shape != x.shape[:2] or seq_idx.is_floating_point():
            raise ArgumentError(
                f"{name}: seq_idx must be integers of shape {tuple(x.shape[:2])} = (batch, "
                f"length), got {seq_idx.dtype} {tuple(seq_idx.shape)}"
            )
        resets = changes(seq_idx, 0)
    call = Arguments(
        x, dt, A, B, C, chunk_size, D, z, dt_bias, initial_states, resets, dt_softplus, dt_limit
    )
    y, final = ssd(*call)
    results: tuple[Tensor, ...] = (y, final) if return_final_states else (y,)
    if return_varlen_states:
        if cu_seqlens is None or x.shape[0] != 1:
            raise ArgumentError(f"{name}: return_varlen_states needs cu_seqlens and a batch of 1")
        results = (*results, _states_at_ends(call, bounds_of(name, cu_seqlens, x.shape[1])))
    return results if len(results) > 1 else y


def _states_at_ends(call: Arguments, bounds: list[int]) -> Tensor:
    """Returns the state (S, H, P, N) at the end of every packed sequence of a batch of 1: zero for
    one that is empty."""
    dtype = call.dtype()
    step = call.step_size()[0]
    heads, groups = call.x.shape[2], call.B.shape[2]
    decay = step.double() * call.A.double()
    states = []
    for start, stop in pairwise(bounds):
        # How much of what is written at a position is left at the end.
        left = decay[start:stop].flip(0).cumsum(0).flip(0)
        kept = torch.exp(left - decay[start:stop]).to(dtype) * step[start:stop]
        values = call.x[0, start:stop].to(dtype) * kept.unsqueeze(-1)
        maps = call.B[0, start:stop].to(dtype).repeat_interleave(heads // groups, 1)
        state = torch.bmm(values.permute(1, 2, 0), maps.permute(1, 0, 2))
        if start == 0 and stop and call.initial_states is not None:
            whole = torch.exp(left[0]).to(dtype)
            state = state + whole[:, None, None] * call.initial_states[0].to(dtype)
        states.append(state)
    if not states:
        return call.x.new_zeros((0, heads, call.x.shape[3], call.B.shape[3]), dtype=dtype)
    return torch.stack(states)


def mamba_chunk_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
) -> Tensor:
    """The output of ``mamba_chunk_scan_combined`` alone; arguments as there."""
    y = mamba_chunk_scan_combined(
        x, dt, A, B, C, chunk_size, D, z, dt_bias, dt_softplus=dt_softplus
    )
    assert isinstance(y, Tensor)
    return y


def mamba_split_conv1d_scan_combined(
    zxbcdt: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    chunk_size: int,
    initial_states: Tensor | None = None,
    seq_idx: Tensor | None = None,
    dt_limit: tuple[float, float] = (0.0, math.inf),
    return_final_states: bool = False,
    activation: str = "silu",
    rmsnorm_weight: Tensor | None = None,
    rmsnorm_eps: float = 1e-6,
    outproj_weight: Tensor | None = None,
    outproj_bias: Tensor | None = None,
    headdim: int | None = None,
    ngroups: int = 1,
    norm_before_gate: bool = True,
    state_dtype: torch.dtype | None = None,
    rmsnorm_group_size: int | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Runs a Mamba-2 layer from its input projection on.

    Args:
        zxbcdt: what was projected (B, L, 2M + 2HP + 2GN + H): gate and value of an MLP of width M
            (often 0), the gate z, x, B, C and dt.
        conv1d_weight: kernels (HP + 2GN, W).
        conv1d_bias: (HP + 2GN,).
        dt_bias: (H,).
        A: decay rates (H,).
        D: skip (H,), or (H, P).
        chunk_size: positions per chunk; changes speed only.
        initial_states: (B, H, P, N).
        seq_idx: integers (B, L), the sequence of each position.
        dt_limit: bounds of the step size.
        return_final_states: whether the final states (B, H, P, N) are returned too.
        activation: of the convolution: "silu", "swish" or None.
        rmsnorm_weight: (HP,); without it the gate is applied alone.
        rmsnorm_eps: added to the mean square.
        outproj_weight: (E, M + HP); without it nothing is projected.
        outproj_bias: (E,).
        headdim: P, where D is (H,).
        ngroups: G, of B, C and the norm.
        norm_before_gate: whether the gate comes after the norm.
        state_dtype: accepted and not needed.
        rmsnorm_group_size: channels of a group of the norm; HP / G if None.

    Returns:
        (B, L, E), or (B, L, M + HP) without the projection; and the final states, if asked for.

    Raises:
        ArgumentError: naming the argument that does not fit.
    """
    name = "mamba_split_conv1d_scan_combined"
    if D.dim() == 1 and headdim is None:
        raise ArgumentError(f"{name}: headdim must be given where D is (heads,)")
    heads, width = D.shape if D.dim() == 2 else (D.shape[0], headdim or 0)
    inner = heads * width
    states = (conv1d_weight.shape[0] - inner) // ngroups // 2
    convolved = inner + 2 * ngroups * states
    mlp = (zxbcdt.shape[-1] - inner - convolved - heads) // 2
    if mlp < 0 or 2 * mlp + inner + convolved + heads != zxbcdt.shape[-1]:
        raise ArgumentError(
            f"{name}: zxbcdt must have {inner + convolved + heads} channels (z {inner}, x, B and "
            f"C {convolved}, dt {heads}), and twice those of an MLP, got {zxbcdt.shape[-1]}"
        )
    gate, value, z, mixed, dt = zxbcdt.split([mlp, mlp, inner, convolved, heads], -1)
    mixed = causal_conv1d_fn(
        mixed.transpose(1, 2),
        conv1d_weight,
        conv1d_bias,
        seq_idx,
        activation=activation,
    )
    assert isinstance(mixed, Tensor)
    maps = ngroups * states
    x, B, C = mixed.transpose(1, 2).split([inner, maps, maps], -1)
    normed = rmsnorm_weight is not None
    y, final = mamba_chunk_scan_combined(
        x.unflatten(-1, (heads, width)),
        dt,
        A,
        B.unflatten(-1, (ngroups, states)),
        C.unflatten(-1, (ngroups, states)),
        chunk_size,
        D,
        None if normed else z.unflatten(-1, (heads, width)),
        dt_bias,
        initial_states,
        seq_idx,
        dt_softplus=True,
        dt_limit=dt_limit,
        return_final_states=True,
        state_dtype=state_dtype,
    )
    y = y.flatten(2)
    if rmsnorm_weight is not None:
        size = rmsnorm_group_size or inner // ngroups
        y = rmsnorm_fn(y, rmsnorm_weight, None, z, rmsnorm_eps, size, norm_before_gate)
    if mlp:
        y = torch.cat([F.silu(gate) * value, y], -1)
    if outproj_weight is not None:
        y = F.linear(y, outproj_weight, outproj_bias)
    return (y, final) if return_final_states else y
