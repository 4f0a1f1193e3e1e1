"""The scan of Mamba-2 as a selective scan, and the layer around it part by part: for comparison."""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn import functional as F

from longseq.core.compat.causal_conv1d.causal_conv1d_interface import causal_conv1d_ref
from longseq.core.compat.mamba_ssm.ops._scan import selective_scan_fn
from longseq.core.compat.mamba_ssm.ops.triton.layernorm_gated import rms_norm_ref
from longseq.core.compat.mamba_ssm.ops.triton.ssd_chunk_scan import chunk_scan_ref
from longseq.core.compat.mamba_ssm.ops.triton.ssd_chunk_state import chunk_cumsum, chunk_state_ref
from longseq.core.compat.mamba_ssm.ops.triton.ssd_state_passing import state_passing_ref


def ssd_selective_scan(
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
) -> Tensor:
    """The scan of Mamba-2 by the selective scan of Mamba, every channel with its own decays.

    Args:
        x: input (B, L, H, P).
        dt: step sizes (B, L, H), or (B, L, H, P).
        A: decay rates (H,), or decays (HP, N).
        B: input maps (B, L, G, N).
        C: output maps (B, L, G, N).
        D: skip (H,), or (H, P).
        z: gate (B, L, H, P).
        dt_bias: (H,), or (H, P).
        dt_softplus: whether the softplus is applied to dt.
        dt_limit: bounds of the step size.

    Returns:
        (B, L, H, P).
    """
    heads, width = x.shape[2:]

    def per_channel(t: Tensor, dims: int) -> Tensor:
        return t.unsqueeze(-1).expand(*t.shape, width) if t.dim() == dims else t

    delta = per_channel(dt, 3).flatten(2).transpose(1, 2)
    decays = A.float()
    if A.dim() == 1:
        decays = decays.repeat_interleave(width).unsqueeze(1).expand(-1, B.shape[-1])
    skip = None if D is None else per_channel(D, 1).flatten()
    bias = None if dt_bias is None else per_channel(dt_bias, 1).flatten()
    if tuple(dt_limit) != (0.0, math.inf):
        delta = delta if bias is None else delta + bias.unsqueeze(-1)
        delta = (F.softplus(delta) if dt_softplus else delta).clamp(*dt_limit).to(x.dtype)
        bias, dt_softplus = None, False
    y = selective_scan_fn(
        x.flatten(2).transpose(1, 2),
        delta,
        decays,
        B.permute(0, 2, 3, 1),
        C.permute(0, 2, 3, 1),
        skip,
        None if z is None else z.flatten(2).transpose(1, 2),
        bias,
        dt_softplus,
    )
    assert isinstance(y, Tensor)
    return y.transpose(1, 2).unflatten(2, (heads, width))


def ssd_chunk_scan_combined_ref(
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
    """The scan of Mamba-2 chunk by chunk in torch's operations; arguments as
    ``mamba_chunk_scan_combined``."""
    length = x.shape[1]
    sums, steps = chunk_cumsum(dt, A, chunk_size, dt_bias, dt_softplus)
    states = chunk_state_ref(B, x, steps, sums)
    before = state_passing_ref(states.flatten(3), sums[..., -1])[0].view_as(states)
    missing = (0, 0, 0, 0, 0, sums.shape[2] * chunk_size - length)
    rows = [None if t is None else F.pad(t, missing) for t in (B, C, x, z)]
    assert rows[0] is not None and rows[1] is not None and rows[2] is not None
    return chunk_scan_ref(rows[0], rows[1], rows[2], steps, sums, before, D, rows[3])[:, :length]


def mamba_conv1d_scan_ref(
    xBC: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    dt: Tensor,
    A: Tensor,
    chunk_size: int,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, math.inf),
    activation: str = "silu",
    headdim: int | None = None,
    ngroups: int = 1,
) -> Tensor:
    """Convolution and scan of a Mamba-2 layer (B, L, HP) one after the other; arguments as
    ``mamba_split_conv1d_scan_combined``."""
    del chunk_size
    heads = dt.shape[2]
    if z is not None:
        headdim = z.shape[-1] // heads
    elif D is not None and D.dim() == 2:
        headdim = D.shape[1]
    assert headdim is not None, "headdim must be given"
    inner = heads * headdim
    mixed = causal_conv1d_ref(
        xBC.transpose(1, 2),
        conv1d_weight,
        conv1d_bias,
        activation=activation,
    )
    assert isinstance(mixed, Tensor)
    maps = (xBC.shape[-1] - inner) // 2
    x, B, C = mixed.transpose(1, 2).split([inner, maps, maps], -1)
    y = ssd_selective_scan(
        x.unflatten(-1, (heads, headdim)),
        dt.to(x.dtype),
        A,
        B.unflatten(-1, (ngroups, -1)),
        C.unflatten(-1, (ngroups, -1)),
        D,
        None if z is None else z.unflatten(-1, (heads, headdim)),
        dt_bias,
        dt_softplus,
        dt_limit,
    )
    return y.flatten(2)


def mamba_split_conv1d_scan_ref(
    zxbcdt: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    chunk_size: int,
    dt_limit: tuple[float, float] = (0.0, math.inf),
    activation: str = "silu",
    rmsnorm_weight: Tensor | None = None,
    rmsnorm_eps: float = 1e-6,
    outproj_weight: Tensor | None = None,
    outproj_bias: Tensor | None = None,
    headdim: int | None = None,
    ngroups: int = 1,
    norm_before_gate: bool = True,
) -> Tensor:
    """A Mamba-2 layer from its input projection on, part by part and without an MLP; arguments as
    ``mamba_split_conv1d_scan_combined``."""
    heads = D.shape[0]
    width = D.shape[1] if D.dim() == 2 else headdim
    assert width is not None, "headdim must be given"
    inner = heads * width
    z, mixed, dt = zxbcdt.split([inner, zxbcdt.shape[-1] - inner - heads, heads], -1)
    y = mamba_conv1d_scan_ref(
        mixed,
        conv1d_weight,
        conv1d_bias,
        dt,
        A,
        chunk_size,
        D,
        z if rmsnorm_weight is None else None,
        dt_bias,
        True,
        dt_limit,
        activation,
        width,
        ngroups,
    )
    if rmsnorm_weight is not None:
        y = rms_norm_ref(
            y, rmsnorm_weight, None, z, rmsnorm_eps, inner // ngroups, norm_before_gate
        )
    return y if outproj_weight is None else F.linear(y, outproj_weight, outproj_bias)
