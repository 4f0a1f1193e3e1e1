"""Realisations of a run's own internal variability: patterns in space, autoregressions in time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Variability:
    """Departures from the forced response, as the sum of EOFs with AR(1) scores and local noise.

        v_t = Σ_k a_k(t) e_k + r_t,   a_k(t) = φ_k a_k(t - 1) + √(1 - φ_k²) σ_k ε_k(t),

    where r is what the leading EOFs leave of every cell's variance, with the autocorrelation that
    it has on average (as MESMER does, https://doi.org/10.5194/esd-11-139-2020).

    Args:
        patterns: e (K, Y, X).
        deviations: σ (K), in the field's units.
        memory: φ (K).
        rest: deviation of r (Y, X).
        rest_memory: φ of r.
    """

    patterns: np.ndarray
    deviations: np.ndarray
    memory: np.ndarray
    rest: np.ndarray
    rest_memory: float

    @classmethod
    def fit(
        cls, departures: np.ndarray, weights: np.ndarray, count: int = 20, degrees: float = 0.0
    ) -> Variability:
        """Fits a run's departures from its forced response.

        Args:
            departures: (T, Y, X), consecutive years.
            weights: areas (Y, X); cells that weigh nothing have no variability.
            count: most EOFs.
            degrees: of freedom that the forced response took from T.
        """
        flat = np.asarray(departures, dtype=np.float64).reshape(len(departures), -1)
        area = np.sqrt(weights.ravel())
        left, size, axes = np.linalg.svd(flat * area, full_matrices=False)
        most = int(np.sum(size > 1e-10 * max(float(size[0]), 1e-300)))
        count = min(count, most, max(1, len(flat) // 4))
        free = max(1.0, len(flat) - degrees)
        scores = left[:, :count] * size[:count]
        inverse = np.divide(1.0, area, out=np.zeros_like(area), where=area > 0)
        shape = (-1, *weights.shape)
        rest = flat - scores @ axes[:count] * inverse
        rest[:, area == 0] = 0.0
        square = max(float((rest**2).sum()), 1e-300)
        return cls(
            (axes[:count] * inverse).reshape(shape),
            np.sqrt((scores**2).sum(0) / free),
            np.clip([_lag_one(one) for one in scores.T], 0.0, 0.95),
            np.sqrt((rest**2).sum(0) / free).reshape(weights.shape),
            float(np.clip((rest[1:] * rest[:-1]).sum() / square, 0.0, 0.95)),
        )

    def sample(self, members: int, years: int, seed: int = 0) -> np.ndarray:
        """Returns realisations float32 (M, T, Y, X), which begin in the long-term distribution.

        Args:
            members: M.
            years: T.
            seed: of the draws.
        """
        rng = np.random.default_rng(seed)
        scores = _autoregression(rng, (members, years, len(self.memory)), self.memory)
        made = np.einsum("mtk,kyx->mtyx", scores * self.deviations, self.patterns)
        shape = (members, years, *self.rest.shape)
        memory = np.full(self.rest.shape, self.rest_memory)
        return (made + self.rest * _autoregression(rng, shape, memory)).astype(np.float32)


def _lag_one(series: np.ndarray) -> float:
    square = float(series @ series)
    return float(series[1:] @ series[:-1]) / square if square > 0 else 0.0


def _autoregression(
    rng: np.random.Generator, shape: tuple[int, ...], memory: np.ndarray
) -> np.ndarray:
    """Returns AR(1) series of unit variance along the second axis."""
    noise = rng.standard_normal(shape)
    for year in range(1, shape[1]):
        noise[:, year] = memory * noise[:, year - 1] + np.sqrt(1 - memory**2) * noise[:, year]
    return noise
