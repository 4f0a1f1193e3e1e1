"""HiPPO matrices and the initialisations drawn from them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from longseq.core.errors import ConfigError
from longseq.core.ops.ssm_init import (
    diagonal_system,
    hippo,
    log_uniform,
    low_rank,
    low_rank_form,
    normal_part,
    perturb_then_diagonalise,
)

MEASURES = ["legs", "legt", "fout"]


def transfer(a: Tensor, b: Tensor, c: Tensor, s: Tensor) -> Tensor:
    """c (s - A)⁻¹ b at each s."""
    one = torch.eye(len(a), dtype=torch.complex128)
    return torch.stack([c @ torch.linalg.solve(z * one - a, b) for z in s])


def test_small_matrices_in_closed_form() -> None:
    r3 = math.sqrt(3)
    a, b = hippo("legs", 2)
    assert torch.allclose(a, torch.tensor([[-1, 0], [-r3, -2]], dtype=torch.float64))
    assert torch.allclose(b, torch.tensor([1, r3], dtype=torch.float64))
    a, b = hippo("legt", 2)
    assert torch.allclose(a, torch.tensor([[-0.5, r3 / 2], [-r3 / 2, -1.5]], dtype=torch.float64))
    a, b = hippo("fout", 4)
    r2 = math.sqrt(2)
    assert torch.allclose(b, torch.tensor([1, 0, r2, 0], dtype=torch.float64))
    expected = [[-1, 0, -r2, 0], [0, 0, 0, 0], [-r2, 0, -2, -math.pi], [0, 0, math.pi, 0]]
    assert torch.allclose(a, torch.tensor(expected, dtype=torch.float64))


def test_legs_has_the_eigenvalues_minus_1_to_minus_n() -> None:
    eigenvalues = torch.linalg.eigvals(hippo("legs", 8)[0]).real.sort().values
    assert torch.allclose(eigenvalues, -torch.arange(8, 0, -1, dtype=torch.float64), atol=1e-8)


@pytest.mark.parametrize("measure", ["legt", "fout"])
def test_windowed_measures_forget_what_left_the_window(measure: str) -> None:
    window = 2.0
    a, b = hippo(measure, 128)  # type: ignore[arg-type]
    # The response to an impulse, smooth part.
    inside = (torch.linalg.matrix_exp(a * (0.9 * window)) @ b)[:8]
    behind = (torch.linalg.matrix_exp(a * (1.1 * window)) @ b)[:8]
    assert behind.norm() < 0.15 * inside.norm()


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("n", [2, 4, 16, 64])
def test_low_rank_form_is_the_matrix(measure: str, n: int) -> None:
    if measure == "fout" and n == 2:
        n = 6
    a, b = hippo(measure, n)  # type: ignore[arg-type]
    p = low_rank(measure, n)  # type: ignore[arg-type]
    skew = a + p.T @ p
    skew = skew - skew.diagonal().mean() * torch.eye(n, dtype=torch.float64)
    assert torch.allclose(skew, -skew.T, atol=1e-11)
    form = low_rank_form(measure, n, clip_b=None)  # type: ignore[arg-type]
    v = torch.cat([form.v, form.v.conj()], 1)
    both = torch.cat([form.p, form.p.conj()], 1)
    core = torch.diag(torch.cat([form.eigenvalues, form.eigenvalues.conj()])) - both.T @ both.conj()
    assert torch.allclose(v @ v.conj().T, torch.eye(n, dtype=torch.complex128), atol=1e-11)
    assert torch.allclose(v @ core @ v.conj().T, a.to(v.dtype), atol=1e-10)
    assert torch.allclose(2 * (form.v @ form.b).real, b, atol=1e-11)
    assert (form.eigenvalues.imag <= 1e-12).all() and (form.eigenvalues.real <= 1e-12).all()


def test_input_weights_are_clipped_as_published() -> None:
    assert low_rank_form("legs", 64).b.imag.abs().max() <= 2


def test_diagonal_systems() -> None:
    eigenvalues, b = diagonal_system("lin", 6)
    assert torch.allclose(eigenvalues.imag, -math.pi * torch.arange(3, dtype=torch.float64))
    assert (eigenvalues.real == -0.5).all() and (b == 1).all()
    eigenvalues, _ = diagonal_system("inv", 6)
    expected = -6 / math.pi * (6 / torch.tensor([1.0, 3, 5], dtype=torch.float64) - 1)
    assert torch.allclose(eigenvalues.imag, expected)
    legs, _ = diagonal_system("legs", 64)
    inv, _ = diagonal_system("inv", 64)
    # S4D-Inv was found as the asymptotics of S4D-LegS.
    assert (
        (legs.imag.sort().values - inv.imag.sort().values).abs() <= 0.06 * inv.imag.abs().max()
    ).all()
    assert (diagonal_system("ptd", 64)[0].real < 0).all()


@pytest.mark.parametrize("n", [4, 16, 64])
@pytest.mark.parametrize("size", [0.05, 0.1, 0.3])
def test_perturb_then_diagonalise(n: int, size: float) -> None:
    form = perturb_then_diagonalise(n, size)
    a, _ = hippo("legs", n)
    v = torch.cat([form.v, form.v.conj()], 1)
    inverse = torch.cat([form.v_inverse, form.v_inverse.conj()])
    rebuilt = (
        v @ torch.diag(torch.cat([form.eigenvalues, form.eigenvalues.conj()])) @ inverse
    ).real
    perturbation = torch.linalg.matrix_norm(rebuilt - a, 2) / torch.linalg.matrix_norm(a, 2)
    assert perturbation.item() == pytest.approx(size, rel=1e-9)
    assert torch.linalg.cond(v) < 2 / size, (
        "the eigenvectors are well conditioned, unlike HiPPO's own"
    )
    assert (form.eigenvalues.real < 0).all()


def test_the_perturbed_system_is_close_at_every_frequency_and_the_normal_part_is_not() -> None:
    n = 64
    a, b = (t.to(torch.complex128) for t in hippo("legs", n))
    c = torch.randn(n, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(
        torch.complex128
    )
    s = 1j * torch.logspace(-1, 3, 60, dtype=torch.float64)
    exact = transfer(a, b, c, s)

    def error(eigenvalues: Tensor, v: Tensor, inverse: Tensor, gain: float = 1.0) -> float:
        whole = torch.cat([eigenvalues, eigenvalues.conj()])
        left, right = torch.cat([v, v.conj()], 1), torch.cat([inverse, inverse.conj()])
        diagonal = transfer(torch.diag(whole), gain * (right @ b), c @ left, s)
        return ((diagonal - exact).abs().max() / exact.abs().max()).item()

    assert error(*perturb_then_diagonalise(n, 0.1)) < 0.1
    assert error(*perturb_then_diagonalise(n, 0.02)) < 0.02
    # Halved input weights, as the theory of S4D-LegS has them.
    assert error(*normal_part(n), 0.5) > 0.5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: hippo("legz", 4), "did you mean 'leg"),  # type: ignore[arg-type]
        (lambda: diagonal_system("linear", 4), "did you mean 'lin'"),  # type: ignore[arg-type]
        (lambda: low_rank_form("legs", 7), "n must be an even integer"),
        (lambda: perturb_then_diagonalise(4, 0.0), "perturbation"),
        (lambda: perturb_then_diagonalise(2, 0.01), "take a larger one"),
        (lambda: log_uniform((3,), 0.1, 0.01), "dt_min"),
    ],
)
def test_wrong_arguments(call: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        call()  # type: ignore[operator]
