"""Discretisation and kernels of S4 and S4D against their definitions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from longseq.core.ops.lti import lti_scan_reference
from longseq.core.ops.s4_kernel import (
    LowRankSystem,
    as_complex,
    discretise,
    low_rank_kernel,
    low_rank_kernel_reference,
    low_rank_matrices,
    low_rank_step,
    truncated_output,
    vandermonde_kernel,
    vandermonde_kernel_reference,
)
from longseq.core.ops.ssm_init import hippo, low_rank_form


def hippo_system(measure: str = "legs", n: int = 8, heads: int = 3) -> LowRankSystem:
    form = low_rank_form(measure, n, clip_b=None)  # type: ignore[arg-type]
    c = torch.randn(
        heads, n // 2, dtype=torch.complex128, generator=torch.Generator().manual_seed(0)
    )
    dt = torch.logspace(-2, -0.5, heads, dtype=torch.float64).unsqueeze(1)
    spread = [form.eigenvalues - 1e-3, form.b]
    eigenvalues, b = (t.expand(heads, -1).clone() for t in spread)
    return LowRankSystem(eigenvalues, form.p.unsqueeze(1).expand(-1, heads, -1).clone(), b, c, dt)


def close(actual: Tensor, expected: Tensor, bound: float = 1e-12) -> None:
    error = (actual - expected).abs().max().item()
    assert error <= bound * max(1.0, expected.abs().max().item()), f"{error:.2e}"


@pytest.mark.parametrize("dt", [1e-12, 1e-6, 1e-3, 0.1, 3.0])
def test_zero_order_hold_at_every_scale(dt: float) -> None:
    eigenvalues = torch.tensor(
        [-0.5 - 3j, -1e-4 + 0j, -0.0 - 1e-9j, -2.0 - 100j], dtype=torch.complex128
    )
    a, factor = discretise(eigenvalues, torch.tensor(dt, dtype=torch.float64))
    z = eigenvalues * dt
    close(a, torch.exp(z))
    # ∫₀^Δ e^{λs} ds = Δ e^{z/2} sinh(z/2)/(z/2)
    half = z / 2
    sinc = torch.where(half.abs() < 1e-2, 1 + half**2 / 6 + half**4 / 120, torch.sinh(half) / half)
    close(factor / dt, torch.exp(half) * sinc, 1e-12)


def test_zero_order_hold_is_differentiable_at_zero() -> None:
    eigenvalues = torch.zeros(1, dtype=torch.complex128, requires_grad=True)
    _, factor = discretise(eigenvalues, torch.tensor(0.5, dtype=torch.float64))
    (gradient,) = torch.autograd.grad(factor.real.sum(), eigenvalues)
    close(gradient, torch.tensor([0.125 + 0j]))  # d/dλ (e^{λΔ}-1)/λ = Δ²/2


def test_bilinear_is_the_trapezium_rule() -> None:
    eigenvalues = torch.tensor([-0.5 - 3j, -1 + 0j], dtype=torch.complex128)
    dt = torch.tensor(0.3, dtype=torch.float64)
    a, factor = discretise(eigenvalues, dt, "bilinear")
    before, after = torch.tensor(0.7 + 0.2j), None
    after = a * before + factor
    close(after - before, dt * (eigenvalues * (before + after) / 2 + 1))


@pytest.mark.parametrize("length", [1, 2, 3, 16, 17, 101])
def test_vandermonde_kernel(length: int) -> None:
    g = torch.Generator().manual_seed(1)
    a = torch.polar(
        torch.rand(3, 5, dtype=torch.float64, generator=g),
        6 * torch.rand(3, 5, dtype=torch.float64, generator=g),
    ).requires_grad_()
    w = torch.randn(3, 5, dtype=torch.complex128, generator=g, requires_grad=True)
    k, reference = vandermonde_kernel(a, w, length), vandermonde_kernel_reference(a, w, length)
    close(k, reference)
    up = torch.randn(3, length, dtype=torch.float64, generator=g)
    leaves = [w] if length == 1 else [a, w]  # the first value is Σ w: it does not depend on a
    for x, y in zip(torch.autograd.grad(k, leaves, up), torch.autograd.grad(reference, leaves, up)):
        close(x, y)
    single = vandermonde_kernel(a.to(torch.complex64), w.to(torch.complex64), length)
    close(single, reference, 1e-5)


@pytest.mark.parametrize("measure", ["legs", "legt", "fout"])
@pytest.mark.parametrize("length", [1, 2, 3, 8, 51, 64])
def test_low_rank_kernel(measure: str, length: int) -> None:
    system = LowRankSystem(*(t.requires_grad_() for t in hippo_system(measure)))
    k, reference = (
        low_rank_kernel(system, length, block=7),
        low_rank_kernel_reference(system, length),
    )
    # The inverse FFT divides by 1 + P*(…)P, whose condition costs one or two digits.
    close(k, reference, 1e-11)
    up = torch.randn(3, length, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    actual = torch.autograd.grad(k, list(system), up)
    for name, x, y in zip(system._fields, actual, torch.autograd.grad(reference, list(system), up)):
        close(x, y, 1e-10)
        assert torch.isfinite(torch.view_as_real(x) if x.is_complex() else x).all(), name


def test_low_rank_kernel_in_float32() -> None:
    system = hippo_system("legs", n=32)
    low = LowRankSystem(*(t.to(torch.complex64) for t in system[:4]), system.dt.float())
    close(low_rank_kernel(low, 200), low_rank_kernel_reference(system, 200), 1e-4)


@pytest.mark.parametrize("measure", ["legs", "legt", "fout"])
def test_the_half_states_are_hippo(measure: str) -> None:
    """V and its conjugate turn the discretised half-system back into the bilinear step of HiPPO
    itself."""
    n, dt = 8, 0.1
    a, b = hippo(measure, n)  # type: ignore[arg-type]
    form = low_rank_form(measure, n, clip_b=None)  # type: ignore[arg-type]
    one = torch.eye(n, dtype=torch.float64)
    step = torch.linalg.solve(one - dt / 2 * a, one + dt / 2 * a)
    entered = torch.linalg.solve(one - dt / 2 * a, dt * b)
    system = LowRankSystem(
        form.eigenvalues.unsqueeze(0),
        form.p.unsqueeze(1),
        form.b.unsqueeze(0),
        torch.zeros(1, n // 2, dtype=torch.complex128),
        torch.tensor([[dt]], dtype=torch.float64),
    )
    x = torch.randn(n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    z = form.v.conj().T @ x.to(form.v.dtype)
    after = low_rank_step(system, z.unsqueeze(0), torch.tensor([0.3], dtype=torch.float64))[0]
    close(2 * (form.v @ after).real, step @ x + 0.3 * entered, 1e-12)


def test_the_full_matrices_are_the_step() -> None:
    system = hippo_system("legt")
    a, b, c = low_rank_matrices(system)
    u = torch.randn(2, 20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y, _ = lti_scan_reference(u, a, b, c)
    z = torch.zeros(2, 3, 4, dtype=torch.complex128)
    outputs = []
    for t in range(20):
        z = low_rank_step(system, z, u[:, t])
        outputs.append(2 * (system.c * z).sum(-1).real)
    close(torch.stack(outputs, 1), y)


def test_truncated_output_there_and_back() -> None:
    system = hippo_system("fout")
    tilde = truncated_output(system, 40)
    close(truncated_output(system._replace(c=tilde), 40, invert=True), system.c, 1e-11)


def test_as_complex_widens() -> None:
    assert as_complex(torch.ones(3, 2, dtype=torch.bfloat16)).dtype == torch.complex128
