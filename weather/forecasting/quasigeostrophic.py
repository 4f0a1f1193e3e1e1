"""A two-layer quasi-geostrophic flow on a doubly periodic plane, by a spectral solver in torch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from longseq.core.checks import check_even
from longseq.core.errors import ConfigError
from longseq.weather.forecasting.flows import Flow


class TwoLayerFlow(Flow):
    """Phillips' two-layer model in units of the deformation radius and half the shear:

        ∂q_i/∂t + U_i ∂q_i/∂x + J(ψ_i, q_i) + Q_i ∂ψ_i/∂x = -r δ_{i2} ∇²ψ_2 - ν ∇⁸ q_i,
        q_i = ∇²ψ_i + (ψ_j - ψ_i)/2,   U_i = ±U,   Q_i = β ± U,

    so that eddies live on the shear between the layers (Vallis, Atmospheric and Oceanic Fluid
    Dynamics, 5.3 and 9.6). Products are dealiased by the two-thirds rule; time steps are
    fourth-order Runge-Kutta with the hyperviscosity as an integrating factor. Without shear, drag
    and viscosity the space discretisation conserves the energy and the sum of both potential
    enstrophies (without β each of them).

    Args:
        size: points N along either side, even.
        length: side of the plane.
        shear: U.
        beta: β.
        drag: r.
        viscosity: rate of decay by it at the largest resolved wavenumber, per unit of time.
        step: time step.
    """

    channels, every, spin_up = 2, 5, 1500

    def __init__(
        self,
        size: int = 32,
        length: float = 6 * math.pi,
        shear: float = 1.0,
        beta: float = 0.7,
        drag: float = 0.5,
        viscosity: float = 5.0,
        step: float = 0.04,
    ) -> None:
        check_even("size", size, why="")
        self.size, self.shape = size, (size, size)
        if not (step > 0 and length > 0):
            raise ConfigError(f"step and length must be above zero, got {step} and {length}")
        wave = 2 * math.pi / length * torch.fft.fftfreq(size, 1 / size, dtype=torch.float64)
        half = 2 * math.pi / length * torch.arange(size // 2 + 1, dtype=torch.float64)
        self.kx, self.ky = half[None, :], wave[:, None]
        self.square = self.kx**2 + self.ky**2
        limit = 2 * math.pi / length * (size // 3)
        self.kept = ((self.kx.abs() <= limit) & (self.ky.abs() <= limit)).double()
        self.mean_flow = torch.tensor([shear, -shear], dtype=torch.float64)[:, None, None]
        self.gradient = torch.tensor([beta + shear, beta - shear], dtype=torch.float64)[
            :, None, None
        ]
        self.drag, self.step = drag, step
        damping = viscosity * (self.square / limit**2) ** 4
        self._half_step = torch.exp(-damping * step / 2)

    def streamfunction(self, q: Tensor) -> Tensor:
        """Returns ψ of potential vorticity q, both as Fourier coefficients (…, 2, N, N/2 + 1)."""
        k2 = self.square
        # Barotropic and baroclinic parts invert alone: ∇², ∇² - 1.
        safe = torch.where(k2 > 0, k2, torch.ones_like(k2))
        mean = torch.where(k2 > 0, -(q[..., 0, :, :] + q[..., 1, :, :]) / (2 * safe), 0)
        gap = -(q[..., 0, :, :] - q[..., 1, :, :]) / (2 * (k2 + 1))
        return torch.stack([mean + gap, mean - gap], -3)

    def vorticity(self, psi: Tensor) -> Tensor:
        """Returns q of ψ, both as Fourier coefficients."""
        return -self.square * psi + (psi.flip(-3) - psi) / 2

    def tendency(self, q: Tensor) -> Tensor:
        """Returns ∂q/∂t without the viscosity, as Fourier coefficients (…, 2, N, N/2 + 1)."""
        psi = self.streamfunction(q)
        x, y = 1j * self.kx, 1j * self.ky

        def grid(field: Tensor) -> Tensor:
            return torch.fft.irfft2(field * self.kept, s=(self.size, self.size))

        u, v, own = grid(-y * psi), grid(x * psi), grid(q)
        flux = x * torch.fft.rfft2(u * own) + y * torch.fft.rfft2(v * own)
        made = -flux * self.kept - self.mean_flow * x * q - self.gradient * x * psi
        bottom = self.drag * self.square * psi[..., 1, :, :]
        return torch.stack([made[..., 0, :, :], made[..., 1, :, :] + bottom], -3)

    def advance(self, state: Tensor, steps: int) -> Tensor:
        """Returns q after some time steps, as Fourier coefficients."""
        q, h, e = state, self.step, self._half_step
        for _ in range(steps):
            a = self.tendency(q)
            b = self.tendency(e * (q + h / 2 * a))
            c = self.tendency(e * q + h / 2 * b)
            d = self.tendency(e * (e * q + h * c))
            q = e * e * q + h / 6 * (e * e * a + 2 * e * (b + c) + d)
        return q

    def invariants(self, q: Tensor) -> dict[str, Tensor]:
        """Returns the energy and the potential enstrophy of either layer, as means over the plane.

        Args:
            q: Fourier coefficients (…, 2, N, N/2 + 1).
        """
        psi, field = self.streamfunction(q), self.to_grid(q)
        energy = -(self.to_grid(psi) * field).mean((-1, -2)).sum(-1) / 2
        return {"energy": energy, "enstrophy": field.square().mean((-1, -2)) / 2}

    def fields(self, state: Tensor) -> Tensor:
        """Returns the potential vorticities (…, 2, N, N)."""
        return self.to_grid(state)

    def to_grid(self, field: Tensor) -> Tensor:
        """Returns the values (…, N, N) of Fourier coefficients."""
        return torch.fft.irfft2(field, s=(self.size, self.size))

    def start(self, members: int, seed: int) -> Tensor:
        """Returns small random flows as Fourier coefficients (M, 2, N, N/2 + 1)."""
        generator = torch.Generator().manual_seed(seed)
        shape = (members, 2, self.size, self.size)
        noise = torch.fft.rfft2(torch.randn(shape, generator=generator, dtype=torch.float64))
        made = self.vorticity(noise / (1 + self.square) ** 2) * self.kept
        return made / self.to_grid(made).square().mean((-1, -2, -3), keepdim=True).sqrt()

    def state_of(self, fields: Tensor) -> Tensor:
        """Returns the state of potential vorticities (…, 2, N, N)."""
        return torch.fft.rfft2(fields.double())

    def terms(self, fields: Tensor) -> dict[str, Tensor]:
        """Returns either streamfunction, its Laplacian and that one's, their slopes to the east,
        and the advection of potential vorticity (…, N, N)."""
        q = self.state_of(fields)
        psi = self.streamfunction(q)
        x, y = 1j * self.kx, 1j * self.ky
        found = {}
        for layer in (0, 1):
            own, name = psi[..., layer, :, :], f"ψ{layer + 1}"
            for label, field in (
                (name, own),
                (f"∇²{name}", -self.square * own),
                (f"∇⁴{name}", self.square**2 * own),
            ):
                found[label], found[f"∂x {label}"] = self.to_grid(field), self.to_grid(x * field)
            u, v = self.to_grid(-y * own), self.to_grid(x * own)
            slope = [self.to_grid(one * q[..., layer, :, :]) for one in (x, y)]
            advected = torch.fft.rfft2(u * slope[0] + v * slope[1])
            found[f"J({name}, q{layer + 1})"] = self.to_grid(advected * self.kept)
        return found
