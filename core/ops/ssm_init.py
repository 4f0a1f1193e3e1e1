"""State matrices to start from: HiPPO (LegS, LegT, FouT), their diagonal-plus-low-rank form and
diagonal kin.

All are computed in float64. Complex systems keep one of each conjugate pair, that with negative
imaginary part, so a state of N real dimensions has N/2 complex ones and outputs are twice a real
part.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import wraps
from typing import Any, Literal, NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor

from longseq.core.checks import check_choice, check_even
from longseq.core.errors import ConfigError

Measure = Literal["legs", "legt", "fout"]
P = ParamSpec("P")
R = TypeVar("R")
DiagonalInit = Literal["lin", "inv", "legs", "ptd"]


class LowRankForm(NamedTuple):
    """A = V (Λ - P* P) V* restricted to one of each conjugate pair.

    Attributes:
        eigenvalues: Λ (N/2), complex.
        p: low-rank factor (R, N/2), complex.
        b: input weights (N/2), complex.
        v: orthonormal columns (N, N/2), complex.
    """

    eigenvalues: Tensor
    p: Tensor
    b: Tensor
    v: Tensor


class DiagonalForm(NamedTuple):
    """A = V Λ V⁻¹ restricted to one of each conjugate pair.

    Attributes:
        eigenvalues: Λ (N/2), complex.
        v: eigenvectors (N, N/2), complex.
        v_inverse: the rows of V⁻¹ that belong to them (N/2, N), complex.
    """

    eigenvalues: Tensor
    v: Tensor
    v_inverse: Tensor


def _on_cpu(make: Callable[P, R]) -> Callable[P, R]:
    """Makes a record of tensors on the CPU, whatever device is being built for, and then moves it
    there: eigenvalues are looked at, which the meta device does not allow.

    Args:
        make: returns a NamedTuple of tensors.
    """

    @wraps(make)
    def made(*args: P.args, **kwargs: P.kwargs) -> R:
        target = torch.get_default_device()
        with torch.device("cpu"):
            record: Any = make(*args, **kwargs)
        moved: R = type(record)(*[tensor.to(target) for tensor in record])
        return moved

    return made


def hippo(measure: Measure, n: int) -> tuple[Tensor, Tensor]:
    """Returns the HiPPO system x' = A x + B u (arXiv 2008.07669; scaling of arXiv 2206.12037).

    Args:
        measure: "legs" remembers the whole past in Legendre polynomials, "legt" a sliding window of
            length 2, "fout" such a window in a Fourier basis.
        n: dimensions N; even for "fout".

    Returns:
        A (N, N) and B (N), float64.
    """
    check_choice("measure", measure, Measure)
    k = torch.arange(n, dtype=torch.float64)
    if measure == "fout":
        half = check_even("n", n)
        b = torch.zeros(n, dtype=torch.float64)
        b[0::2] = math.sqrt(2)
        b[0] = 1
        coupling = torch.zeros(n - 1, dtype=torch.float64)
        coupling[0::2] = math.pi * torch.arange(half, dtype=torch.float64)
        # Dimensions 2m and 2m+1 turn into each other at frequency m; the rank-one term forgets what
        # is old.
        return torch.diag(coupling, -1) - torch.diag(coupling, 1) - torch.outer(b, b), b
    root = torch.sqrt(2 * k + 1)
    row, column = k.unsqueeze(1), k.unsqueeze(0)
    if measure == "legs":
        a = -(torch.outer(root, root).tril(-1) + torch.diag(k + 1))
        return a, root
    sign = torch.where(row < column, (-1.0) ** (column - row), 1.0)
    return -0.5 * sign * torch.outer(root, root), 0.5 * root


def low_rank(measure: Measure, n: int) -> Tensor:
    """Returns P (R, N) for which A + Pᵀ P is normal: a multiple of the identity plus a
    skew-symmetric matrix.

    Args:
        measure: see ``hippo``; R is 2 for "legt", else 1.
        n: dimensions N.
    """
    k = torch.arange(n, dtype=torch.float64)
    if measure == "legs":
        return torch.sqrt(k + 0.5).unsqueeze(0)
    if measure == "legt":
        root = torch.sqrt(k + 0.5)
        return torch.stack([root * (k % 2), root * (1 - k % 2)])
    return hippo(measure, n)[1].unsqueeze(0)


@_on_cpu
def low_rank_form(measure: Measure, n: int, clip_b: float | None = 2.0) -> LowRankForm:
    """Diagonalises the normal part of a HiPPO matrix (S4, arXiv 2111.00396).

    Args:
        measure: see ``hippo``.
        n: dimensions N, even.
        clip_b: bound on the imaginary part of the input weights, as published; None for none.
    """
    half = check_even("n", n)
    a, b = hippo(measure, n)
    p = low_rank(measure, n)
    normal = a + p.T @ p
    real = normal.diagonal().mean()
    # -i times a skew-symmetric matrix is Hermitian: eigh gives orthonormal vectors, in rising
    # order.
    imag, v = torch.linalg.eigh(-1j * (normal - real * torch.eye(n, dtype=torch.float64)))
    imag, v = imag[:half], v[:, :half].clone()
    if imag[-1].abs() < 1e-4:
        # FouT's constant has the double eigenvalue 0 on its first two dimensions, where any basis
        # serves
        # eigh: take the one whose other half is its conjugate.
        v[:, -1] = 0
        v[0, -1], v[1, -1] = math.sqrt(0.5), 1j * math.sqrt(0.5)
    adjoint = v.conj().T
    input_weights = adjoint @ b.to(v.dtype)
    if clip_b is not None:
        input_weights = torch.complex(input_weights.real, input_weights.imag.clamp(-clip_b, clip_b))
    return LowRankForm(
        torch.complex(real.expand(half), imag), p.to(v.dtype) @ adjoint.T, input_weights, v
    )


def normal_part(n: int) -> DiagonalForm:
    """Returns the normal part of HiPPO-LegS, what S4D-LegS and S5 start from; V⁻¹ = V*.

    Args:
        n: dimensions N, even.
    """
    form = low_rank_form("legs", n, clip_b=None)
    return DiagonalForm(form.eigenvalues, form.v, form.v.conj().T.resolve_conj())


@_on_cpu
def perturb_then_diagonalise(n: int, size: float = 0.1) -> DiagonalForm:
    """Diagonalises HiPPO-LegS after a small perturbation (PTD, arXiv 2310.01698).

    The eigenvectors of HiPPO-LegS are conditioned exponentially badly in N; those of A + E with
    ‖E‖ = size · ‖A‖ are not, and the transfer function stays within about ``size`` of HiPPO's at
    every frequency, which that of the normal part alone does not. The paper finds E by
    optimisation; here it is a multiple of the rank-one term whose whole makes A normal. It keeps
    the eigenvalues stable and in conjugate pairs, and the condition number near 1.5 / size, for
    every N.

    Args:
        n: dimensions N, even.
        size: ‖E‖ / ‖A‖ in the spectral norm, between 0 and 0.7.

    Raises:
        ConfigError: if ``size`` is outside, or so small that some eigenvalues of A + E are still
            real.
    """
    half = check_even("n", n)
    if not 0 < size <= 0.7:
        raise ConfigError(f"size of the perturbation must be above 0 and at most 0.7, got {size!r}")
    a, _ = hippo("legs", n)
    p = low_rank("legs", n)[0]
    scale = size * torch.linalg.matrix_norm(a, 2) / p.square().sum()
    eigenvalues, v = torch.linalg.eig(a + scale * torch.outer(p, p))
    order = eigenvalues.imag.argsort()
    eigenvalues, v = eigenvalues[order], v[:, order]
    if eigenvalues.imag[half - 1] > -1e-6:
        raise ConfigError(
            f"a perturbation of {size} leaves real eigenvalues for n = {n}: take a larger one"
        )
    return DiagonalForm(eigenvalues[:half], v[:, :half], torch.linalg.inv(v)[:half])


def diagonal_system(init: DiagonalInit, n: int) -> tuple[Tensor, Tensor]:
    """Returns a diagonal system (S4D, arXiv 2206.11893).

    Args:
        init: "lin": -1/2 - iπk, damped Fourier modes; "inv": -1/2 - i (N/π) (N/(2k+1) - 1), the
            asymptotics of LegS; "legs": the normal part of LegS; "ptd": LegS after a perturbation.
        n: dimensions N, even.

    Returns:
        Eigenvalues and input weights, complex (N/2).
    """
    check_choice("init", init, DiagonalInit)
    half = check_even("n", n)
    if init == "legs":
        form = low_rank_form("legs", n)
        return form.eigenvalues, form.b
    if init == "ptd":
        diagonal = perturb_then_diagonalise(n)
        return diagonal.eigenvalues, diagonal.v_inverse @ hippo("legs", n)[1].to(diagonal.v.dtype)
    k = torch.arange(half, dtype=torch.float64)
    imag = math.pi * k if init == "lin" else n / math.pi * (n / (2 * k + 1) - 1)
    return torch.complex(torch.full_like(k, -0.5), -imag), torch.ones(half, dtype=torch.complex128)


def log_uniform(shape: tuple[int, ...], low: float, high: float) -> Tensor:
    """Returns logarithms of time steps drawn log-uniformly.

    Args:
        shape: of the result.
        low: shortest step, above 0.
        high: longest step.

    Raises:
        ConfigError: unless 0 < low ≤ high.
    """
    if not 0 < low <= high:
        raise ConfigError(
            f"time steps need 0 < dt_min <= dt_max, got dt_min={low!r} and dt_max={high!r}"
        )
    return math.log(low) + torch.rand(shape) * (math.log(high) - math.log(low))
