"""A box model of the global energy balance: radiative forcing to temperatures, with a memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from longseq.core.errors import ConfigError


@dataclass(frozen=True)
class EnergyBalance:
    """Boxes of heat above each other, the first of which radiates to space:

        C₁ dT₁/dt = F - λ T₁ - κ₂ (T₁ - T₂),   Cᵢ dTᵢ/dt = κᵢ (Tᵢ₋₁ - Tᵢ) - κᵢ₊₁ (Tᵢ - Tᵢ₊₁).

    The forcing of a year is constant over it, and the step over a year is exact. The default values
    are typical of the three-box fits to CMIP6 models (Cummins et al. 2020,
    https://doi.org/10.1175/JCLI-D-19-0589.1).

    Args:
        capacities: Cᵢ from the surface down, W yr m-2 K-1.
        exchange: λ, κ₂, κ₃ …, W m-2 K-1; as many as capacities.
    """

    capacities: tuple[float, ...] = (4.0, 12.0, 90.0)
    exchange: tuple[float, ...] = (1.2, 2.0, 0.75)

    def __post_init__(self) -> None:
        sizes = (*self.capacities, *self.exchange)
        if len(self.capacities) != len(self.exchange) or not all(size > 0 for size in sizes):
            raise ConfigError("an energy balance needs as many exchanges as capacities, all > 0")

    def step(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns A (N, N) and b (N) of T(t + 1) = A T(t) + b F."""
        from scipy.linalg import expm

        count = len(self.capacities)
        rates = np.zeros((count + 1, count + 1))
        for box, (capacity, exchange) in enumerate(zip(self.capacities, self.exchange)):
            rates[box, box] -= exchange / capacity
            if box:
                rates[box, box - 1] += exchange / capacity
                above = self.capacities[box - 1]
                rates[box - 1, box - 1] -= exchange / above
                rates[box - 1, box] += exchange / above
        rates[0, count] = 1 / self.capacities[0]  # a last state holds the forcing
        made = expm(rates)
        return made[:count, :count], made[:count, count]

    def temperatures(self, forcing: np.ndarray) -> np.ndarray:
        """Returns the boxes' temperatures at the end of every year, from zero (T, N), K.

        Args:
            forcing: effective radiative forcing of every year (T), W m-2.
        """
        transition, drive = self.step()
        found = np.zeros((len(forcing), len(drive)))
        state = np.zeros(len(drive))
        for year, value in enumerate(np.asarray(forcing, dtype=np.float64)):
            state = transition @ state + drive * value
            found[year] = state
        return found

    @property
    def sensitivity(self) -> float:
        """Warming in equilibrium, K per W m-2."""
        return 1 / self.exchange[0]


def fit_energy_balance(
    forcing: np.ndarray, temperature: np.ndarray, boxes: int = 3
) -> EnergyBalance:
    """Returns the energy balance whose surface follows a temperature best, by least squares.

    Args:
        forcing: of several scenarios (S, T), W m-2.
        temperature: of the surface (S, T), K.
        boxes: their number, 1 to 3.
    """
    from scipy.optimize import least_squares

    if not 1 <= boxes <= 3:
        raise ConfigError(f"an energy balance is fitted with 1 to 3 boxes, got {boxes}")
    start = EnergyBalance()
    first = np.log([*start.capacities[:boxes], *start.exchange[:boxes]])

    def made(logs: np.ndarray) -> EnergyBalance:
        values = np.exp(np.clip(logs, -5, 8)).tolist()
        return EnergyBalance(tuple(values[:boxes]), tuple(values[boxes:]))

    def gap(logs: np.ndarray) -> np.ndarray:
        model = made(logs)
        found = [model.temperatures(one)[:, 0] for one in forcing]
        return (np.stack(found) - temperature).ravel()

    return made(least_squares(gap, first, max_nfev=60).x)
