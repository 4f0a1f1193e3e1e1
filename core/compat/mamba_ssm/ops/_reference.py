"""What the fused functions are compared with: the recurrence step by step, and the parts of a layer
one after the other."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from longseq.core.compat._operators import selective_scan
from longseq.core.compat.causal_conv1d.causal_conv1d_interface import causal_conv1d_fn
from longseq.core.compat.mamba_ssm.ops._inner import Layer
from longseq.core.compat.mamba_ssm.ops._scan import selective_scan_fn, time_first
from longseq.core.ops.precision import compute_dtype


def selective_scan_ref(
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
    """The scan one position after the other; arguments and results as ``selective_scan_fn``."""
    batch, width, length = u.shape

    def widened(key: str, m: Tensor) -> Tensor:
        m = time_first("selective_scan_ref", key, m, u, A)
        if m.dim() == 2:  # a map of its own for every channel
            m = m.to(A.dtype).expand(batch, length, width, -1)
        return m.repeat_interleave(width // m.shape[2], 2)

    gate = None if z is None else z.transpose(1, 2)
    y, last = selective_scan(
        u.transpose(1, 2),
        delta.transpose(1, 2),
        A,
        widened("B", B),
        widened("C", C),
        D,
        gate,
        delta_bias,
        delta_softplus=bool(delta_softplus),
        backend="reference",
    )
    y = y.transpose(1, 2)
    return (y, last) if return_last_state else y


def _prepared(layer: Layer) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Returns x, Δ, B, C and z, channels first."""
    xz, conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, A, B, C, *biases = layer
    x, z = xz.chunk(2, 1)
    convolved = causal_conv1d_fn(x, conv1d_weight.squeeze(1), conv1d_bias, activation="silu")
    assert isinstance(convolved, Tensor)
    x = convolved
    rank = delta_proj_weight.shape[1]
    states = A.shape[-1] * (2 if A.is_complex() else 1)
    rows = F.linear(x.transpose(1, 2), x_proj_weight)
    delta = F.linear(rows[..., :rank], delta_proj_weight).transpose(1, 2)

    def taken(part: Tensor, bias: Tensor | None) -> Tensor:
        part = part if bias is None else part + bias.to(part.dtype)
        if A.is_complex():
            real = part.to(compute_dtype(part, A)).unflatten(-1, (-1, 2)).contiguous()
            return torch.view_as_complex(real).transpose(1, 2)
        return part.transpose(1, 2)

    B = taken(rows[..., rank : rank + states], biases[0]) if B is None else B
    C = taken(rows[..., -states:], biases[1]) if C is None else C
    return x, delta, B, C, z


def mamba_inner_ref(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
) -> Tensor:
    """A Mamba layer from its input projection on, convolution, projections and scan one after the
    other; arguments as ``mamba_inner_fn``."""
    weights = conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight
    x, delta, B, C, z = _prepared(Layer(xz, *weights, A, B, C, B_proj_bias, C_proj_bias))
    y = selective_scan_fn(x, delta, A, B, C, D, z, delta_bias, delta_softplus)
    assert isinstance(y, Tensor)
    return F.linear(y.transpose(1, 2), out_proj_weight, out_proj_bias)


def bimamba_inner_ref(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    A_b: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
) -> Tensor:
    """A layer that scans in both directions, part by part; arguments as ``bimamba_inner_fn``."""
    weights = conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight
    parts = _prepared(Layer(xz, *weights, A, B, C, B_proj_bias, C_proj_bias))
    y = torch.zeros_like(parts[0])
    for decay, back in ((A, False), (A_b, True)):
        x, delta, B, C, z = (t.flip(-1) if back and t.dim() > 2 else t for t in parts)
        one = selective_scan_fn(x, delta, decay, B, C, D, z, delta_bias, delta_softplus)
        assert isinstance(one, Tensor)
        y = y + (one.flip(-1) if back else one)
    return F.linear(y.transpose(1, 2), out_proj_weight, out_proj_bias)
