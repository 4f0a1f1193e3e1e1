"""Chaotic flows and maps, many initial states at once, by our own Runge-Kutta solver."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Field = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class System:
    """An autonomous system x' = f(x), or a map x ← f(x).

    Attributes:
        field: f, from (N, D) to (N, D).
        start: a state near the attractor (D,).
        dt: integration step; 0 for a map.
        lyapunov: largest exponent per unit of time (per iteration for a map), from the literature.
    """

    field: Field
    start: tuple[float, ...]
    dt: float
    lyapunov: float


def _of(*columns: np.ndarray) -> np.ndarray:
    return np.stack(columns, -1)


def _lorenz(s: np.ndarray) -> np.ndarray:
    x, y, z = s.T
    return _of(10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z)


def _roessler(s: np.ndarray) -> np.ndarray:
    x, y, z = s.T
    return _of(-y - z, x + 0.2 * y, 0.2 + z * (x - 5.7))


def _chen(s: np.ndarray) -> np.ndarray:
    x, y, z = s.T
    return _of(35 * (y - x), -7 * x - x * z + 28 * y, x * y - 3 * z)


def _thomas(s: np.ndarray) -> np.ndarray:
    x, y, z = s.T
    b = 0.18
    return _of(np.sin(y) - b * x, np.sin(z) - b * y, np.sin(x) - b * z)


def _halvorsen(s: np.ndarray) -> np.ndarray:
    x, y, z = s.T
    a = 1.4
    return _of(
        -a * x - 4 * y - 4 * z - y * y,
        -a * y - 4 * z - 4 * x - z * z,
        -a * z - 4 * x - 4 * y - x * x,
    )


def _sprott_b(s: np.ndarray) -> np.ndarray:
    x, y, z = s.T
    return _of(y * z, x - y, 1 - x * y)


def _rucklidge(s: np.ndarray) -> np.ndarray:
    x, y, z = s.T
    return _of(-2 * x + 6.7 * y - y * z, x, -z + y * y)


def _rabinovich(s: np.ndarray) -> np.ndarray:
    x, y, z = s.T
    return _of(
        y * (z - 1 + x * x) + 0.87 * x, x * (3 * z + 1 - x * x) + 0.87 * y, -2 * z * (1.1 + x * y)
    )


def _double_scroll(s: np.ndarray) -> np.ndarray:
    x, y, z = s.T
    return _of(y, z, -0.8 * z - 0.8 * y - 0.8 * (x - np.sign(x)))


def _duffing(s: np.ndarray) -> np.ndarray:
    x, v, c, d = s.T
    # The forcing cos(1.2 t) is a rotation, so that the system is autonomous.
    return _of(v, x - x**3 - 0.3 * v + 0.5 * c, -1.2 * d, 1.2 * c)


def _henon(s: np.ndarray) -> np.ndarray:
    x, y = s.T
    return _of(1 - 1.4 * x * x + y, 0.3 * x)


def _logistic(s: np.ndarray) -> np.ndarray:
    return 3.99 * s * (1 - s)


def _ikeda(s: np.ndarray) -> np.ndarray:
    x, y = s.T
    t = 0.4 - 6 / (1 + x * x + y * y)
    return _of(1 + 0.9 * (x * np.cos(t) - y * np.sin(t)), 0.9 * (x * np.sin(t) + y * np.cos(t)))


SYSTEMS: dict[str, System] = {
    "lorenz": System(_lorenz, (1.0, 1.0, 20.0), 0.01, 0.9056),
    "roessler": System(_roessler, (1.0, 1.0, 0.0), 0.05, 0.0714),
    "chen": System(_chen, (-3.0, -2.0, 20.0), 0.004, 2.0272),
    "thomas": System(_thomas, (0.1, 0.0, 0.3), 0.1, 0.0349),
    "halvorsen": System(_halvorsen, (-5.0, 0.0, 0.0), 0.01, 0.6928),
    "sprott_b": System(_sprott_b, (0.1, 0.1, 0.1), 0.05, 0.21),
    "rucklidge": System(_rucklidge, (1.0, 0.0, 4.5), 0.03, 0.193),
    "rabinovich_fabrikant": System(_rabinovich, (-1.0, 0.0, 0.5), 0.01, 0.19),
    "double_scroll": System(_double_scroll, (0.01, 0.01, 0.0), 0.05, 0.0497),
    "duffing": System(_duffing, (0.1, 0.1, 1.0, 0.0), 0.05, 0.12),
    "henon": System(_henon, (0.1, 0.1), 0.0, 0.419),
    "logistic": System(_logistic, (0.4,), 0.0, 0.640),
    "ikeda": System(_ikeda, (0.1, 0.1), 0.0, 0.507),
}


def step(system: System, state: np.ndarray) -> np.ndarray:
    """Returns states (N, D) one step later: fourth-order Runge-Kutta, or the map itself."""
    if system.dt == 0:
        return system.field(state)
    f, dt = system.field, system.dt
    k1 = f(state)
    k2 = f(state + dt / 2 * k1)
    k3 = f(state + dt / 2 * k2)
    k4 = f(state + dt * k3)
    return state + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


def simulate(
    name: str, steps: int, batch: int = 1, seed: int = 0, discard: int = 1000, every: int = 1
) -> np.ndarray:
    """Returns trajectories on the attractor, float64 (batch, steps, D).

    Args:
        name: one of ``SYSTEMS``.
        steps: states kept.
        batch: trajectories, from starts a little apart.
        seed: of the starts.
        discard: integration steps before the first state that is kept.
        every: integration steps between states.
    """
    system = SYSTEMS[name]
    rng = np.random.default_rng(seed)
    start = np.asarray(system.start, float)
    state = start + 1e-3 * rng.standard_normal((batch, len(start))) * (np.abs(start) + 0.1)
    if name == "duffing":
        angle = rng.uniform(0, 2 * np.pi, batch)
        state[:, 2], state[:, 3] = np.cos(angle), np.sin(angle)
    # A start that leaves for infinity is no start: it is replaced by a neighbour that stays.
    kept = np.empty((batch, steps, len(start)))
    with np.errstate(all="ignore"):
        for i in range(discard):
            state = step(system, state)
            if i % 50 == 0:
                state = _heal(state)
        for i in range(steps):
            kept[:, i] = state
            for _ in range(every):
                state = step(system, state)
            if i % 50 == 0:
                state = _heal(state)
    return kept


def _heal(state: np.ndarray) -> np.ndarray:
    bad = ~(np.abs(state) < 1e6).all(1)
    if bad.any() and not bad.all():
        state = state.copy()
        state[bad] = state[np.flatnonzero(~bad)[0]]
    return state
