"""From S4's continuous parameters to discrete systems and to convolution kernels.

Complex systems keep one of each conjugate pair, so their outputs are twice a real part. A
diagonal-plus-low-rank matrix A = Λ - Pᵀ P* acts on half-states z as A z = Λ z - Σ_r P_r · 2 Re(P_r*
· z): linear over the real numbers.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from longseq.core.ops.lti import powers

Discretisation = Literal["zoh", "bilinear"]


def wide(x: Tensor) -> Tensor:
    """Returns a parameter in float64, in which steps and powers of a system are worked out (float32
    on MPS).

    Args:
        x: real or complex.
    """
    real = torch.float32 if x.device.type == "mps" else torch.float64
    return x.to(real.to_complex() if x.is_complex() else real)


def as_complex(x: Tensor) -> Tensor:
    """Returns the complex tensor (...) of a parameter (..., 2), in float64."""
    return torch.view_as_complex(wide(x).contiguous())


def discretise(
    eigenvalues: Tensor, dt: Tensor, method: Discretisation = "zoh"
) -> tuple[Tensor, Tensor]:
    """Discretises diagonal systems x' = λ x + b u (S4D, arXiv 2206.11893).

    Args:
        eigenvalues: λ (..., N), complex.
        dt: time steps, broadcastable to λ.
        method: "zoh" holds the input during a step: e^{λΔ} and (e^{λΔ} - 1)/λ; "bilinear" is the
            trapezium rule: (1 + λΔ/2)/(1 - λΔ/2) and Δ/(1 - λΔ/2).

    Returns:
        The discrete transition, and the factor that b takes.
    """
    z = eigenvalues * dt
    if method == "bilinear":
        return (1 + z / 2) / (1 - z / 2), dt / (1 - z / 2)
    a = torch.exp(z)
    # (e^z - 1)/z near zero by its series: the quotient loses digits there, and has no value at
    # zero.
    small = z.abs() < 1e-3
    safe = torch.where(small, torch.ones_like(z), z)
    series = 1 + z / 2 * (1 + z / 3 * (1 + z / 4))
    return a, dt * torch.where(small, series, (torch.exp(safe) - 1) / safe)


def vandermonde_kernel(a: Tensor, weights: Tensor, length: int) -> Tensor:
    """Returns the kernel Re Σ_n w_n a_nˡ for l = 0 … L-1 of diagonal systems.

    With l = q·S + r the Vandermonde product is a matrix product of the powers a^{qS} and a^r: about
    2√L powers are made instead of L.

    Args:
        a: discrete transitions (H, N), complex.
        weights: products of input and output weights (H, N).
        length: L.

    Returns:
        (H, L), real.
    """
    inner = math.isqrt(length - 1) + 1
    near = powers(a, inner + 1)
    far = powers(near[:, inner], -(-length // inner)) * weights.unsqueeze(1)
    return (far @ near[:, :inner].transpose(1, 2)).real.flatten(1)[:, :length]


def vandermonde_kernel_reference(a: Tensor, weights: Tensor, length: int) -> Tensor:
    """Definition of ``vandermonde_kernel``, position by position.

    Args:
        a: (H, N).
        weights: (H, N).
        length: L.
    """
    values, power = [], torch.ones_like(a)
    for _ in range(length):
        values.append((weights * power).sum(-1).real)
        power = power * a
    return torch.stack(values, 1)


class LowRankSystem(NamedTuple):
    """Continuous diagonal-plus-low-rank systems, H of them, all complex but the step.

    Attributes:
        eigenvalues: Λ (H, N).
        p: (R, H, N).
        b: (H, N).
        c: (H, N).
        dt: (H, 1).
    """

    eigenvalues: Tensor
    p: Tensor
    b: Tensor
    c: Tensor
    dt: Tensor


def low_rank_step(system: LowRankSystem, z: Tensor, u: Tensor) -> Tensor:
    """Advances half-states by one bilinear step in time O(N): (2/Δ - A) z⁺ = (2/Δ + A) z + 2 B u.

    By Woodbury, with D = (2/Δ - Λ)⁻¹: (2/Δ - A)⁻¹ w = D w - Σ_r D P_r s_r, where s solves
    (1 + 2 Re(P* D Pᵀ)) s = 2 Re(P* · D w).

    Args:
        system: H systems.
        z: half-states (..., H, N).
        u: inputs (..., H).

    Returns:
        z⁺ (..., H, N).
    """
    eigenvalues, p, b, _, dt = system
    inverse = 1 / (2 / dt - eigenvalues)
    row = p.conj().transpose(0, 1)  # (H, R, N)
    weighted = (p * inverse).transpose(0, 1)
    small = torch.eye(p.shape[0], dtype=dt.dtype, device=dt.device) + 2 * (row @ weighted.mT).real
    projected = 2 * torch.einsum("hrn,...hn->...hr", row, z).real
    w = (2 / dt + eigenvalues) * z - torch.einsum("rhn,...hr->...hn", p, projected.to(p.dtype))
    w = inverse * (w + 2 * b * u.unsqueeze(-1))
    correction = 2 * torch.einsum("hrn,...hn->...hr", row, w).real
    correction = torch.linalg.solve(small, correction.unsqueeze(-1)).squeeze(-1)
    return w - torch.einsum("hrn,...hr->...hn", weighted, correction.to(p.dtype))


def low_rank_matrices(system: LowRankSystem) -> tuple[Tensor, Tensor, Tensor]:
    """Discretises to full real matrices that act on [Re z, Im z].

    Args:
        system: H systems.

    Returns:
        A (H, 2N, 2N), b (H, 2N) and c (H, 2N), with y = c · x.
    """
    heads, n = system.eigenvalues.shape
    units = torch.eye(n, dtype=system.b.dtype, device=system.b.device)
    basis = torch.cat([units, 1j * units]).unsqueeze(1).expand(-1, heads, -1)
    silence = torch.zeros(2 * n, heads, dtype=system.dt.dtype, device=system.dt.device)
    columns = low_rank_step(system, basis, silence)  # (2N, H, N)
    a = torch.cat([columns.real, columns.imag], dim=-1).permute(1, 2, 0).contiguous()
    entered = low_rank_step(system, torch.zeros_like(system.b), torch.ones_like(silence[0]))
    b = torch.cat([entered.real, entered.imag], dim=-1)
    return a, b, torch.cat([2 * system.c.real, -2 * system.c.imag], dim=-1)


def truncated_output(system: LowRankSystem, length: int, invert: bool = False) -> Tensor:
    """Returns C (1 - Āᴸ), with which a generating function over all l gives the first L values of
    the kernel.

    Args:
        system: H systems.
        length: L.
        invert: whether to go back, from C (1 - Āᴸ) to C. Published checkpoints hold the former.

    Returns:
        (H, N), complex.
    """
    a, _, c = low_rank_matrices(system)
    remainder = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device) - torch.linalg.matrix_power(
        a, length
    )
    if invert:
        c = torch.linalg.solve(remainder.mT, c.unsqueeze(-1)).squeeze(-1)
    else:
        c = (c.unsqueeze(1) @ remainder).squeeze(1)
    real, imag = c.chunk(2, dim=-1)
    return torch.complex(real / 2, -imag / 2)


def low_rank_kernel(system: LowRankSystem, length: int, block: int = 1024) -> Tensor:
    """Returns the convolution kernel 2 Re(C Āˡ B̄), l = 0 … L-1 (S4, arXiv 2111.00396).

    The generating function at the L-th roots of unity ω is made of (1+R)² Cauchy products with
    nodes 2(1-ω)/(1+ω), joined by Woodbury; an inverse FFT gives the values, in time O(L (N + log
    L)) once C (1 - Āᴸ) is known. Numerator and denominator are kept multiplied by (1+ω), so ω = -1
    needs no care.

    Args:
        system: H systems.
        length: L.
        block: nodes worked out at once, which bounds the memory to H·N·block.

    Returns:
        (H, L), real.
    """
    c = truncated_output(system, length)
    poles = (system.eigenvalues * system.dt).unsqueeze(-1)
    left = torch.cat([c.unsqueeze(0), system.p.conj()])  # C and P*: (1+R, H, N)
    right = torch.cat([system.b.unsqueeze(0), system.p]) * system.dt
    residues = (left.unsqueeze(1) * right.unsqueeze(0)).unsqueeze(-1)  # (1+R, 1+R, H, N, 1)
    k = torch.arange(length // 2 + 1, device=c.device)
    omega = torch.polar(
        torch.ones_like(k, dtype=poles.real.dtype), -2 * math.pi / length * k.to(poles.real.dtype)
    )
    identity = torch.eye(system.p.shape[0], dtype=c.dtype, device=c.device)
    spectrum = []
    for nodes in omega.split(block):
        top, bottom = 2 * (1 - nodes), 1 + nodes
        g = (residues / (top - poles * bottom)).sum(-2)
        g = g + (residues.conj() / (top - poles.conj() * bottom)).sum(-2)  # (1+R, 1+R, H, nodes)
        middle = identity + (bottom * g[1:, 1:]).permute(2, 3, 0, 1)
        solved = torch.linalg.solve(middle, g[1:, 0].permute(1, 2, 0).unsqueeze(-1)).squeeze(-1)
        spectrum.append(2 * (g[0, 0] - bottom * torch.einsum("rhl,hlr->hl", g[0, 1:], solved)))
    return torch.fft.irfft(torch.cat(spectrum, -1), n=length)


def low_rank_kernel_reference(system: LowRankSystem, length: int) -> Tensor:
    """Definition of ``low_rank_kernel``: the recurrence's response to a unit impulse, step by step.

    Args:
        system: H systems.
        length: L.
    """
    z, u = torch.zeros_like(system.b), torch.ones_like(system.dt.squeeze(-1))
    values = []
    for _ in range(length):
        z = low_rank_step(system, z, u)
        u = torch.zeros_like(u)
        values.append(2 * (system.c * z).sum(-1).real)
    return torch.stack(values, 1)
