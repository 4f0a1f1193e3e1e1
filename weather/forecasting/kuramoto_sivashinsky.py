"""The Kuramoto-Sivashinsky equation on a circle, by exponential time differencing in torch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from longseq.core.checks import check_even
from longseq.core.errors import ConfigError
from longseq.weather.forecasting.flows import Flow


class KuramotoSivashinsky(Flow):
    """Spatiotemporal chaos in one dimension, the usual test of forecasts and of model errors:

        ∂u/∂t = -a u ∂u/∂x - b ∂²u/∂x² - c ∂⁴u/∂x⁴,

    by ETDRK4 (Kassam and Trefethen 2005, https://doi.org/10.1137/S1064827502410633), exact in the
    linear terms and of fourth order in time; products are dealiased by the two-thirds rule. The
    mean of u is conserved, and advection conserves the energy ½⟨u²⟩, which only the linear terms
    change.

    Args:
        size: points N, even.
        length: of the circle; with 22 there are some three waves, and chaos.
        advection: a.
        growth: b.
        damping: c.
        step: time step.
    """

    channels, every, spin_up = 1, 10, 2000

    def __init__(
        self,
        size: int = 64,
        length: float = 22.0,
        advection: float = 1.0,
        growth: float = 1.0,
        damping: float = 1.0,
        step: float = 0.1,
    ) -> None:
        check_even("size", size, why="")
        self.size = size
        if not (step > 0 and length > 0):
            raise ConfigError(f"step and length must be above zero, got {step} and {length}")
        self.shape, self.length, self.step, self.advection = (1, size), length, step, advection
        self.wave = 2 * math.pi / length * torch.arange(size // 2 + 1, dtype=torch.float64)
        self.kept = (torch.arange(size // 2 + 1) <= size // 3).double()
        self.linear = growth * self.wave**2 - damping * self.wave**4
        # φ-functions by means over a circle round every h L, where no digits cancel.
        h, points = step, 32
        angle = math.pi * (torch.arange(points, dtype=torch.float64) + 0.5) / points
        z = h * self.linear[:, None] + torch.exp(1j * angle)

        def mean(values: Tensor) -> Tensor:
            return h * values.mean(1).real

        self._whole, self._half = torch.exp(h * self.linear), torch.exp(h * self.linear / 2)
        self._q = mean((torch.exp(z / 2) - 1) / z)
        self._first = mean((-4 - z + torch.exp(z) * (4 - 3 * z + z**2)) / z**3)
        self._middle = mean((2 + z + torch.exp(z) * (z - 2)) / z**3)
        self._last = mean((-4 - 3 * z - z**2 + torch.exp(z) * (4 - z)) / z**3)

    def nonlinear(self, u: Tensor) -> Tensor:
        """Returns -a u ∂u/∂x, as Fourier coefficients like u (…, N/2 + 1)."""
        square = torch.fft.rfft(torch.fft.irfft(u * self.kept, n=self.size).square())
        return -self.advection / 2 * 1j * self.wave * square * self.kept

    def tendency(self, u: Tensor) -> Tensor:
        """Returns ∂u/∂t, as Fourier coefficients."""
        return self.nonlinear(u) + self.linear * u

    def advance(self, state: Tensor, steps: int) -> Tensor:
        """Returns u after some time steps, as Fourier coefficients (…, N/2 + 1)."""
        u = state
        for _ in range(steps):
            now = self.nonlinear(u)
            a = self._half * u + self._q * now
            at_a = self.nonlinear(a)
            b = self._half * u + self._q * at_a
            at_b = self.nonlinear(b)
            at_c = self.nonlinear(self._half * a + self._q * (2 * at_b - now))
            u = self._whole * u + now * self._first
            u = u + 2 * (at_a + at_b) * self._middle + at_c * self._last
        return u

    def invariants(self, u: Tensor) -> dict[str, Tensor]:
        """Returns the mean of u, which is conserved, and the energy ½⟨u²⟩."""
        field = self.fields(u)[..., 0, 0, :]
        return {"mean": field.mean(-1), "energy": field.square().mean(-1) / 2}

    def start(self, members: int, seed: int) -> Tensor:
        """Returns small random states without a mean, as Fourier coefficients (M, N/2 + 1)."""
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(members, self.size, generator=generator, dtype=torch.float64)
        made = torch.fft.rfft(noise) * self.kept / (1 + self.wave**4)
        made[:, 0] = 0
        return made

    def fields(self, state: Tensor) -> Tensor:
        """Returns u on the grid (…, 1, 1, N)."""
        return torch.fft.irfft(state, n=self.size)[..., None, None, :]

    def state_of(self, fields: Tensor) -> Tensor:
        """Returns the state whose fields (…, 1, 1, N) are given."""
        return torch.fft.rfft(fields[..., 0, 0, :].double())

    def terms(self, fields: Tensor) -> dict[str, Tensor]:
        """Returns u, its square and cube, four derivatives, and products of both (…, 1, N)."""
        state, one = self.state_of(fields), fields[..., 0, :, :].double()
        slopes = {
            f"u_{'x' * n}": torch.fft.irfft((1j * self.wave) ** n * state, n=self.size)[
                ..., None, :
            ]
            for n in range(1, 5)
        }
        found = {"u": one, "u²": one**2, "u³": one**3, **slopes}
        found |= {f"u {name}": one * slope for name, slope in slopes.items()}
        found |= {f"u² {name}": one**2 * slope for name, slope in slopes.items()}
        found |= {"u_x²": slopes["u_x"] ** 2, "u_x u_xx": slopes["u_x"] * slopes["u_xx"]}
        # As far as the model resolves products.
        return {
            name: torch.fft.irfft(torch.fft.rfft(field) * self.kept, n=self.size)
            for name, field in found.items()
        }
