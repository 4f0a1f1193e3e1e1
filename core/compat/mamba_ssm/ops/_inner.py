"""The parts of a Mamba layer between its two projections, channels first: the fused functions of
mamba-ssm and of Vision Mamba's fork of it."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from longseq.core.compat.causal_conv1d.causal_conv1d_interface import causal_conv1d_fn
from longseq.core.compat.mamba_ssm.ops._scan import selective_scan_fn
from longseq.core.errors import ArgumentError
from longseq.core.ops.precision import bounded, compute_dtype


class Layer(NamedTuple):
    """What the fused functions are given up to the scan, see ``mamba_inner_fn``."""

    xz: Tensor
    conv1d_weight: Tensor
    conv1d_bias: Tensor | None
    x_proj_weight: Tensor
    delta_proj_weight: Tensor
    A: Tensor
    B: Tensor | None
    C: Tensor | None
    B_proj_bias: Tensor | None
    C_proj_bias: Tensor | None


class Norms(NamedTuple):
    """RMS norms of B, C and Δ, as Jamba and FalconMamba have them; None for absent ones."""

    b: Tensor | None = None
    c: Tensor | None = None
    dt: Tensor | None = None
    eps: float = 0.0


def project(weight: Tensor, rows: Tensor) -> Tensor:
    """Returns W x (B, R, L) of x (B, D, L), whichever dimension is dense: nothing is copied."""
    return torch.bmm(weight.expand(rows.shape[0], -1, -1), rows)


def project_out(y: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Returns W y + bias (B, L, E), dense, of y (B, D, L)."""
    out = torch.bmm(y.transpose(1, 2), weight.t().expand(y.shape[0], -1, -1))
    return out if bias is None else out + bias.to(out.dtype)


def _rms(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """Returns the RMS norm over dimension 1 of (B, R, L); x itself without a weight."""
    if weight is None:
        return x
    wide = bounded(x.to(compute_dtype(x, weight)), 1)
    scaled = wide * torch.rsqrt(wide.square().mean(1, keepdim=True) + eps)
    return (scaled * weight.to(wide.dtype).unsqueeze(-1)).to(x.dtype)


def _maps(
    projected: Tensor,
    constant: Tensor | None,
    bias: Tensor | None,
    A: Tensor,
    norm: Tensor | None,
    eps: float,
) -> Tensor:
    """Returns a map as the scan takes it: the constant (D, N), or (B, N, L), complex if A is."""
    if constant is not None:
        return constant
    if bias is not None:
        projected = projected + bias.to(projected.dtype).unsqueeze(-1)
    if A.is_complex():
        real = projected.to(compute_dtype(projected, A)).unflatten(1, (-1, 2))
        return torch.complex(real[:, :, 0], real[:, :, 1])
    return _rms(projected, norm, eps)


class Parts(NamedTuple):
    """What the scan takes: x, Δ, B, C and z."""

    x: Tensor
    delta: Tensor
    B: Tensor
    C: Tensor
    z: Tensor


def prepare(layer: Layer, norms: Norms) -> Parts:
    """Convolves x and projects Δ, B and C out of it.

    Raises:
        ArgumentError: if x_proj's rows are not those of Δ, and of B and C where they are projected.
    """
    xz, conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, A, B, C, *biases = layer
    x, z = xz.chunk(2, 1)
    convolved = causal_conv1d_fn(x, conv1d_weight.squeeze(1), conv1d_bias, activation="silu")
    assert isinstance(convolved, Tensor)
    x = convolved
    rank = delta_proj_weight.shape[1]
    states = A.shape[-1] * (2 if A.is_complex() else 1)
    sizes = [rank, states if B is None else 0, states if C is None else 0]
    if x_proj_weight.shape[0] != sum(sizes):
        raise ArgumentError(
            f"mamba_inner_fn: x_proj_weight must have {sum(sizes)} rows (for delta, B and C "
            f"{sizes}), got {tuple(x_proj_weight.shape)}"
        )
    low, b, c = project(x_proj_weight, x).split(sizes, 1)
    delta = _rms(project(delta_proj_weight, low), norms.dt, norms.eps)
    map_in = _maps(b, B, biases[0], A, norms.b, norms.eps)
    map_out = _maps(c, C, biases[1], A, norms.c, norms.eps)
    return Parts(x, delta, map_in, map_out, z)


def scan(
    parts: Parts, A: Tensor, D: Tensor | None, delta_bias: Tensor | None, softplus: bool
) -> Tensor:
    """Returns the gated output (B, D, L) of the scan."""
    x, delta, B, C, z = parts
    y = selective_scan_fn(x, delta, A, B, C, D, z, delta_bias, softplus)
    assert isinstance(y, Tensor)
    return y


def mamba_inner_fn_no_out_proj(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    A: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
    checkpoint_lvl: int = 1,
) -> Tensor:
    """Returns what ``mamba_inner_fn`` projects: (B, D, L). Arguments as there."""
    del checkpoint_lvl
    weights = conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight
    layer = Layer(xz, *weights, A, B, C, B_proj_bias, C_proj_bias)
    parts = prepare(layer, Norms())
    return scan(parts, A, D, delta_bias, delta_softplus)


def mamba_inner_fn(
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
    checkpoint_lvl: int = 1,
    b_rms_weight: Tensor | None = None,
    c_rms_weight: Tensor | None = None,
    dt_rms_weight: Tensor | None = None,
    b_c_dt_rms_eps: float = 1e-6,
) -> Tensor:
    """Runs a Mamba layer from its input projection on.

    Args:
        xz: x and z (B, 2D, L).
        conv1d_weight: kernels (D, 1, W).
        conv1d_bias: (D,).
        x_proj_weight: (R + 2N, D): rows of Δ, B and C; without those of a constant B or C.
        delta_proj_weight: (D, R).
        out_proj_weight: (E, D).
        out_proj_bias: (E,).
        A: decays (D, N), real or complex.
        B: constant input map (D, N); None if it is projected from x.
        C: constant output map, as B.
        D: skip (D,).
        delta_bias: (D,).
        B_proj_bias: added to the projected B, (N,).
        C_proj_bias: added to the projected C, (N,).
        delta_softplus: whether the softplus is applied.
        checkpoint_lvl: accepted and not needed: what is kept for the backward pass is always the
            same.
        b_rms_weight: of an RMS norm of B (N,); its gradient exists, unlike in the original.
        c_rms_weight: of an RMS norm of C (N,).
        dt_rms_weight: of an RMS norm of Δ after its projection (D,), with a warning: FalconMamba
            as transformers defines it has the norm before.
        b_c_dt_rms_eps: added to their mean squares.

    Returns:
        (B, L, E).

    Raises:
        ArgumentError: naming the argument that does not fit.
    """
    del checkpoint_lvl
    if dt_rms_weight is not None:
        # FalconMamba's weights are for the other order, which its training by this call is not.
        warnings.warn(
            "mamba_inner_fn normalises delta after its projection, as mamba-ssm does; the torch "
            "path of transformers' FalconMamba does so before it",
            stacklevel=2,
        )
    weights = conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight
    layer = Layer(xz, *weights, A, B, C, B_proj_bias, C_proj_bias)
    parts = prepare(layer, Norms(b_rms_weight, c_rms_weight, dt_rms_weight, b_c_dt_rms_eps))
    y = scan(parts, A, D, delta_bias, delta_softplus)
    return project_out(y, out_proj_weight, out_proj_bias)


def bimamba_inner_fn(
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
    checkpoint_lvl: int = 1,
) -> Tensor:
    """Runs the layer's scan in both directions, with decays A and A_b, and projects their sum.

    Arguments as ``mamba_inner_fn``; the convolution and the projections are shared. Vision Mamba
    (arXiv 2401.09417), its first form.
    """
    del checkpoint_lvl
    weights = conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight
    layer = Layer(xz, *weights, A, B, C, B_proj_bias, C_proj_bias)
    parts = prepare(layer, Norms())
    turned = Parts._make(t.flip(-1) if t.dim() > 2 else t for t in parts)
    y = scan(parts, A, D, delta_bias, delta_softplus)
    y = y + scan(turned, A_b, D, delta_bias, delta_softplus).flip(-1)
    return project_out(y, out_proj_weight, out_proj_bias)
