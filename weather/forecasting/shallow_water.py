"""Rotating shallow water on a doubly periodic plane, on a C-grid in torch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from longseq.core.checks import check_even
from longseq.core.errors import ConfigError
from longseq.weather.forecasting.flows import Flow


def _centre(field: Tensor, axis: int) -> Tensor:
    """Returns the means of neighbours, half a point up along an axis."""
    return (field + field.roll(-1, axis)) / 2


def _face(field: Tensor, axis: int) -> Tensor:
    """Returns the means of neighbours, half a point down along an axis."""
    return (field + field.roll(1, axis)) / 2


class ShallowWater(Flow):
    """Shallow water in units of the mean depth, the gravity-wave speed and the inertial time, so
    that the deformation radius is one:

        ∂u/∂t = q V - ∂(h + K)/∂x - ν ∇⁴ u + r (u_jet - u)
        ∂v/∂t = -q U - ∂(h + K)/∂y - ν ∇⁴ v - r v
        ∂h/∂t = -∂U/∂x - ∂V/∂y + r (h_jet - h),

    with U = h u, V = h v, K = (u² + v²)/2 and q = (1 + ∂v/∂x - ∂u/∂y)/h on the C-grid of Sadourny
    (1975, https://doi.org/10.1175/1520-0469(1975)032<0680:TDOFDM>2.0.CO;2), which conserves mass
    and energy exactly without forcing and viscosity. Relaxation towards unstable jets
    u_jet = A cos(m y), in balance with h_jet, keeps eddies and gravity waves alive. Time steps are
    fourth-order Runge-Kutta. Fields are the depth's departure from one, u and v.

    Args:
        size: points N along either side, even.
        length: side of the plane in deformation radii.
        jet: A, in gravity-wave speeds.
        jets: pairs of jets.
        relaxation: r.
        viscosity: rate of decay of the shortest waves along an axis, per unit of time.
        step: time step.
    """

    channels, every, spin_up = 3, 10, 2000

    def __init__(
        self,
        size: int = 32,
        length: float = 10.0,
        jet: float = 0.6,
        jets: int = 3,
        relaxation: float = 0.02,
        viscosity: float = 0.5,
        step: float = 0.1,
    ) -> None:
        check_even("size", size, why="")
        self.size = size
        if not (step > 0 and length > 0):
            raise ConfigError(f"step and length must be above zero, got {step} and {length}")
        self.shape, self.step, self.width = (size, size), step, length / size
        self.relaxation = relaxation
        self.viscosity = viscosity * self.width**4 / 16
        wave = 2 * math.pi * jets / length
        y = self.width * torch.arange(size, dtype=torch.float64)[:, None].expand(size, size)
        # u is on faces west of the centres, in their row: the depth balances it where it is.
        depth = 1 - jet / wave * torch.sin(wave * y)
        if not bool((depth > 0).all()):
            raise ConfigError("the jet is too strong: its depth falls below zero")
        zeros = torch.zeros_like(y)
        self.target = torch.stack([depth, jet * torch.cos(wave * y), zeros])

    def tendency(self, state: Tensor) -> Tensor:
        """Returns ∂/∂t of depth, u and v (…, 3, N, N)."""
        made = self.free_tendency(state)
        for channel in (1, 2):
            field = state[..., channel, :, :]
            made[..., channel, :, :] -= self.viscosity * self._laplace(self._laplace(field))
        return made + self.relaxation * (self.target - state)

    def _laplace(self, field: Tensor) -> Tensor:
        around = sum(field.roll(shift, axis) for shift in (1, -1) for axis in (-1, -2))
        assert isinstance(around, Tensor)
        return (around - 4 * field) / self.width**2

    def free_tendency(self, state: Tensor) -> Tensor:
        """Returns the tendency without forcing and viscosity, which conserves mass and energy."""
        x, y, width = -1, -2, self.width
        h, u, v = state.unbind(-3)
        through_x, through_y = _face(h, x) * u, _face(h, y) * v
        kinetic = (_centre(u * u, x) + _centre(v * v, y)) / 2
        head = h + kinetic
        # On corners, south-west of the centres.
        spin = (v - v.roll(1, x)) / width - (u - u.roll(1, y)) / width
        q = (1 + spin) / _face(_face(h, x), y)
        du = _centre(q * _face(through_y, x), y) - (head - head.roll(1, x)) / width
        dv = -_centre(q * _face(through_x, y), x) - (head - head.roll(1, y)) / width
        dh = -(through_x.roll(-1, x) - through_x) / width
        dh = dh - (through_y.roll(-1, y) - through_y) / width
        return torch.stack([dh, du, dv], -3)

    def advance(self, state: Tensor, steps: int) -> Tensor:
        """Returns depth, u and v (…, 3, N, N) after some time steps."""
        h = self.step
        for _ in range(steps):
            a = self.tendency(state)
            b = self.tendency(state + h / 2 * a)
            c = self.tendency(state + h / 2 * b)
            d = self.tendency(state + h * c)
            state = state + h / 6 * (a + 2 * (b + c) + d)
        return state

    def invariants(self, state: Tensor) -> dict[str, Tensor]:
        """Returns the mass and the energy, as means over the plane."""
        h, u, v = state.unbind(-3)
        kinetic = (_centre(u * u, -1) + _centre(v * v, -2)) / 2
        return {
            "mass": h.mean((-1, -2)),
            "energy": (h * kinetic + h * h / 2).mean((-1, -2)),
        }

    def start(self, members: int, seed: int) -> Tensor:
        """Returns the jets with small disturbances of the depth (M, 3, N, N)."""
        generator = torch.Generator().manual_seed(seed)
        shape = (members, self.size, self.size)
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        for _ in range(4):
            noise = _face(_centre(_face(_centre(noise, -1), -1), -2), -2)
        state = self.target.repeat(members, 1, 1, 1)
        state[:, 0] += 0.05 * (noise - noise.mean((-1, -2), keepdim=True))
        return state

    def fields(self, state: Tensor) -> Tensor:
        """Returns the depth's departure from one, u and v (…, 3, N, N)."""
        return state - state.new_tensor([1.0, 0.0, 0.0])[:, None, None]
